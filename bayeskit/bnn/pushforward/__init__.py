"""From a distribution over weights to one over functions: linearized or by Monte Carlo."""
