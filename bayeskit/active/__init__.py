"""Active learning: acquisition functions, pool queries and the loop over rounds.

An acquisition is a plain function of the posterior over the function and p(y | f), `bald(values, likelihood)`.
`query` applies one to a pool, `run` is the loop over rounds.
"""

from bayeskit.active.acquisition import bald as bald
from bayeskit.active.acquisition import entropy as entropy
from bayeskit.active.acquisition import margin as margin
from bayeskit.active.acquisition import uniform as uniform
from bayeskit.active.acquisition import variance as variance
from bayeskit.active.batch import Batch as Batch
from bayeskit.active.batch import batch_bald as batch_bald
from bayeskit.active.epig import epig as epig
from bayeskit.active.pool import ACQUISITIONS as ACQUISITIONS
from bayeskit.active.pool import query as query
from bayeskit.active.rounds import Round as Round
from bayeskit.active.rounds import run as run
