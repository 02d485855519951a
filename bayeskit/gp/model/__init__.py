"""Shared parts of GP inferences: hyperparameters, default priors, inducing points, training sets, the base class."""
