"""What is asked of a fitted network: influence of samples, agreement of chains."""
