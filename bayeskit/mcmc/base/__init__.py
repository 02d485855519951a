"""What every sampler stands on: log density, transition kernel, schedules, convergence diagnostics."""
