"""A Gaussian process as a posterior over functions: its conditioned kernels and function samples."""
