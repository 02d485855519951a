"""Hamiltonian Monte Carlo: HMC and NUTS with their warm-up."""
