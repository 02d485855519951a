"""The costs that `bnn_speed.py` prints, one family a file."""
