"""Gaussian processes: the process itself, and inferences that condition it on data."""

from bayeskit.gp.conditioned import Conditioned as Conditioned
from bayeskit.gp.conditioned import ConditionedMean as ConditionedMean
from bayeskit.gp.coreset import CoresetGP as CoresetGP
from bayeskit.gp.exact import Exact as Exact
from bayeskit.gp.orthogonal import OrthogonalSVGP as OrthogonalSVGP
from bayeskit.gp.process import GaussianProcess as GaussianProcess
from bayeskit.gp.process import default_prior as default_prior
from bayeskit.gp.sgpr import SGPR as SGPR
from bayeskit.gp.svgp import SVGP as SVGP
from bayeskit.gp.swsgp import SWSGP as SWSGP
