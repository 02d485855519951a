"""The registered GP inferences, one a file."""
