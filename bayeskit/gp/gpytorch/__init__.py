"""Conversion of GPyTorch models and likelihoods."""
