"""What every GP inference shares: hyperparameters, default priors, inducing points, training data, the base class."""
