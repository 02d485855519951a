"""Bayesian neural networks: a network, a law of its weights, and a push-forward to functions."""

from bayeskit.bnn.default import default_prior as default_prior
from bayeskit.bnn.ensemble import DeepEnsemble as DeepEnsemble
from bayeskit.bnn.laplace import Laplace as Laplace
from bayeskit.bnn.map import MAP as MAP
from bayeskit.bnn.mcmc import MCMC as MCMC
from bayeskit.bnn.mean_field import MeanFieldVI as MeanFieldVI
from bayeskit.bnn.network import MLP as MLP
from bayeskit.bnn.posterior import BayesNet as BayesNet
from bayeskit.bnn.posterior import Linearize as Linearize
from bayeskit.bnn.posterior import MonteCarlo as MonteCarlo
from bayeskit.bnn.posterior import PushForward as PushForward
from bayeskit.bnn.posterior import gaussian_prior as gaussian_prior
from bayeskit.bnn.posterior import linearize as linearize
from bayeskit.bnn.posterior import monte_carlo as monte_carlo
from bayeskit.bnn.ssvi import SSVI as SSVI
from bayeskit.bnn.variational import SparseMonteCarlo as SparseMonteCarlo
from bayeskit.bnn.variational import SparseWeights as SparseWeights
from bayeskit.bnn.variational import Subspace as Subspace
from bayeskit.bnn.variational import Variational as Variational
from bayeskit.bnn.variational import variational as variational
from bayeskit.bnn.weights import GaussianWeights as GaussianWeights
from bayeskit.bnn.weights import PointWeights as PointWeights
from bayeskit.bnn.weights import SampledWeights as SampledWeights
from bayeskit.bnn.weights import WeightPosterior as WeightPosterior
