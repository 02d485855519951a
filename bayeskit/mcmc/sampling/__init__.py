"""Running chains: the loop, storage, progress, and bridges to Pyro, ArviZ and torch optimizers."""
