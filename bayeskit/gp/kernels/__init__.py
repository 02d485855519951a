"""Kernels and their evaluation; nothing here depends on data."""
