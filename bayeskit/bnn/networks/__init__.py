"""Networks as functions of their weights: builders, layers, batched evaluation."""
