"""Markov chains on any log density: kernels, a runner and diagnostics. Nothing here knows of networks."""

from bayeskit.mcmc.collect import Collector as Collector
from bayeskit.mcmc.collect import Disk as Disk
from bayeskit.mcmc.density import LogDensity as LogDensity
from bayeskit.mcmc.density import Position as Position
from bayeskit.mcmc.density import curvature as curvature
from bayeskit.mcmc.density import hessian_diagonal as hessian_diagonal
from bayeskit.mcmc.diagnostics import ess as ess
from bayeskit.mcmc.diagnostics import mcse as mcse
from bayeskit.mcmc.diagnostics import rhat as rhat
from bayeskit.mcmc.diagnostics import tail_ess as tail_ess
from bayeskit.mcmc.hmc import HMC as HMC
from bayeskit.mcmc.inference_data import inference_data as inference_data
from bayeskit.mcmc.kernel import AdaptiveKernel as AdaptiveKernel
from bayeskit.mcmc.kernel import Info as Info
from bayeskit.mcmc.kernel import TransitionKernel as TransitionKernel
from bayeskit.mcmc.kernel import adapt as adapt
from bayeskit.mcmc.nuts import NUTS as NUTS
from bayeskit.mcmc.pyro_model import PyroDensity as PyroDensity
from bayeskit.mcmc.run import Chain as Chain
from bayeskit.mcmc.run import run as run
from bayeskit.mcmc.sgld import SGLD as SGLD
from bayeskit.mcmc.sgld import polynomial_decay as polynomial_decay
from bayeskit.mcmc.stein import ksd as ksd
