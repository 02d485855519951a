"""Bayesian neural networks: a network, a law of its weights, and a push-forward to functions."""

from bayeskit.bnn.averager import SWAGAverager as SWAGAverager
from bayeskit.bnn.batch_statistics import statistics_of_draws as statistics_of_draws
from bayeskit.bnn.default import default_prior as default_prior
from bayeskit.bnn.dropout import DropoutMasks as DropoutMasks
from bayeskit.bnn.dropout import draw_dropout as draw_dropout
from bayeskit.bnn.ensemble import DeepEnsemble as DeepEnsemble
from bayeskit.bnn.laplace import Laplace as Laplace
from bayeskit.bnn.map import MAP as MAP
from bayeskit.bnn.mc_dropout import MCDropout as MCDropout
from bayeskit.bnn.mcmc import MCMC as MCMC
from bayeskit.bnn.network import MLP as MLP
from bayeskit.bnn.posterior import BayesNet as BayesNet
from bayeskit.bnn.posterior import Linearize as Linearize
from bayeskit.bnn.posterior import MonteCarlo as MonteCarlo
from bayeskit.bnn.posterior import PushForward as PushForward
from bayeskit.bnn.posterior import gaussian_prior as gaussian_prior
from bayeskit.bnn.posterior import linearize as linearize
from bayeskit.bnn.posterior import monte_carlo as monte_carlo
from bayeskit.bnn.swag import SWAG as SWAG
from bayeskit.bnn.weights import GaussianWeights as GaussianWeights
from bayeskit.bnn.weights import PointWeights as PointWeights
from bayeskit.bnn.weights import SampledWeights as SampledWeights
from bayeskit.bnn.weights import WeightPosterior as WeightPosterior
