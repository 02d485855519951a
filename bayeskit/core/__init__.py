"""What every method stands on: data, posteriors, operators, likelihoods, predictives, training. It knows no method."""
