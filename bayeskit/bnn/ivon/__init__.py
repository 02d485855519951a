"""IVON: the optimizer and the inference."""
