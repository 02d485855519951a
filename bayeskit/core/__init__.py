"""What every method stands on: data, posteriors, operators, likelihoods, predictive laws, training. It knows no method."""
