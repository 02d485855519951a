"""Gaussian processes: the process itself, and inferences that condition it on data."""

from bayeskit.gp.conditioned import Conditioned as Conditioned
from bayeskit.gp.conditioned import ConditionedMean as ConditionedMean
from bayeskit.gp.dual import DualSVGP as DualSVGP
from bayeskit.gp.dual_process import DualProcess as DualProcess
from bayeskit.gp.exact import Exact as Exact
from bayeskit.gp.process import GaussianProcess as GaussianProcess
from bayeskit.gp.process import default_prior as default_prior
from bayeskit.gp.sgpr import SGPR as SGPR
from bayeskit.gp.svgp import SVGP as SVGP
