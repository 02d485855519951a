"""MAP training, validation search, the log posterior and default priors."""
