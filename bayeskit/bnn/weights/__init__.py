"""Distributions over weights and their covariance operators."""
