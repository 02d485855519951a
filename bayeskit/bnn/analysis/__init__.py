"""Analysis of a fitted network: influence of observations, convergence of chains."""
