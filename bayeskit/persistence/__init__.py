"""Saved estimators: one file, no code in it."""

from bayeskit.persistence.files import load as load
from bayeskit.persistence.files import save as save
