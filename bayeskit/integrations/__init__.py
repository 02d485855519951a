"""Adapters to other libraries, each an optional extra and a separate module.

    baal          posterior samples in the array convention of BaaL's heuristics
    skactiveml    estimators for scikit-activeml's query strategies
    skorch        inferences inside skorch's `NeuralNet`
    botorch       estimators as BoTorch models: acquisition functions, batches, fantasies
    avalanche     the previous posterior as the penalty of an Avalanche strategy

GPyTorch's kernels, means and models are converted by `gp`, chains to ArviZ by `mcmc.inference_data`.
"""
