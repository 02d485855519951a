"""Adapters to the tools that people already use, each an optional extra and a module of its own.

    baal          draws in the array convention of BaaL's heuristics
    skactiveml    estimators for scikit-activeml's query strategies
    skorch        inferences inside skorch's `NeuralNet`
    botorch       estimators as BoTorch models: acquisition functions, batches, fantasies
    avalanche     yesterday's posterior as the penalty of an Avalanche strategy

GPyTorch's kernels, means and models go in and out by `gp` itself, ArviZ by `mcmc.inference_data`.
"""
