"""The bridge to and from GPyTorch."""
