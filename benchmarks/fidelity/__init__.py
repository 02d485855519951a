"""One posterior over functions on two tables, what is known of it, and how near each method comes."""
