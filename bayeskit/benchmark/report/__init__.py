"""What a comparison shows: tables, figures, sentences and the HTML report."""
