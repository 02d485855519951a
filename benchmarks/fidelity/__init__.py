"""Posterior fidelity: distances of every method from one reference posterior on two tables."""
