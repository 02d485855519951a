"""The other registered inferences of networks, one a file."""
