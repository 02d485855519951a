"""Bayesian neural networks: a network, a law of its weights, and a push-forward to functions."""

from bayeskit.bnn.default import default_prior as default_prior
from bayeskit.bnn.ensemble import DeepEnsemble as DeepEnsemble
from bayeskit.bnn.influence import leave_one_out as leave_one_out
from bayeskit.bnn.influence import sensitivity as sensitivity
from bayeskit.bnn.ivon import IVON as IVON
from bayeskit.bnn.ivon_optimizer import IVONOptimizer as IVONOptimizer
from bayeskit.bnn.laplace import Laplace as Laplace
from bayeskit.bnn.map import MAP as MAP
from bayeskit.bnn.mcmc import MCMC as MCMC
from bayeskit.bnn.merging import merge as merge
from bayeskit.bnn.network import MLP as MLP
from bayeskit.bnn.posterior import BayesNet as BayesNet
from bayeskit.bnn.posterior import Linearize as Linearize
from bayeskit.bnn.posterior import MonteCarlo as MonteCarlo
from bayeskit.bnn.posterior import PushForward as PushForward
from bayeskit.bnn.posterior import gaussian_prior as gaussian_prior
from bayeskit.bnn.posterior import linearize as linearize
from bayeskit.bnn.posterior import monte_carlo as monte_carlo
from bayeskit.bnn.weights import GaussianWeights as GaussianWeights
from bayeskit.bnn.weights import PointWeights as PointWeights
from bayeskit.bnn.weights import SampledWeights as SampledWeights
from bayeskit.bnn.weights import WeightPosterior as WeightPosterior
