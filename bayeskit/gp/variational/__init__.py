"""Variational families of GPs, their natural gradients and their bounds."""
