"""Curvature of the log posterior: GGN, Kronecker factors, NTK and the evidence they give."""
