"""Samplers whose data live with clients."""
