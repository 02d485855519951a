"""Markov chains on any log density: kernels, a runner and diagnostics. Nothing here knows of networks."""

from bayeskit.mcmc.density import LogDensity as LogDensity
from bayeskit.mcmc.density import Position as Position
from bayeskit.mcmc.density import curvature as curvature
from bayeskit.mcmc.density import hessian_diagonal as hessian_diagonal
from bayeskit.mcmc.diagnostics import ess as ess
from bayeskit.mcmc.diagnostics import rhat as rhat
from bayeskit.mcmc.entropy import EntropySGLD as EntropySGLD
from bayeskit.mcmc.groups import Groups as Groups
from bayeskit.mcmc.groups import group_labels as group_labels
from bayeskit.mcmc.kernel import AdaptiveKernel as AdaptiveKernel
from bayeskit.mcmc.kernel import Info as Info
from bayeskit.mcmc.kernel import TransitionKernel as TransitionKernel
from bayeskit.mcmc.kernel import adapt as adapt
from bayeskit.mcmc.nuts import NUTS as NUTS
from bayeskit.mcmc.run import Chain as Chain
from bayeskit.mcmc.run import run as run
from bayeskit.mcmc.schedules import Schedule as Schedule
from bayeskit.mcmc.schedules import polynomial_decay as polynomial_decay
from bayeskit.mcmc.sghmc import SGHMC as SGHMC
from bayeskit.mcmc.sgld import SGLD as SGLD
from bayeskit.mcmc.stochastic import StochasticKernel as StochasticKernel
from bayeskit.mcmc.stochastic import calmed as calmed
from bayeskit.mcmc.stochastic import measured_lr as measured_lr
from bayeskit.mcmc.structured import Structured as Structured
from bayeskit.mcmc.svgd import SVGD as SVGD
