"""Stochastic-gradient and particle samplers, one a file."""
