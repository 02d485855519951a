"""Gaussian processes: the process itself, and inferences that condition it on data."""

from bayeskit.gp.conditioned import Conditioned as Conditioned
from bayeskit.gp.conditioned import ConditionedMean as ConditionedMean
from bayeskit.gp.default import coregionalized as coregionalized
from bayeskit.gp.default import default_prior as default_prior
from bayeskit.gp.exact import Exact as Exact
from bayeskit.gp.output_kernel import OutputKernel as OutputKernel
from bayeskit.gp.process import GaussianProcess as GaussianProcess
from bayeskit.gp.sgpr import SGPR as SGPR
from bayeskit.gp.stacked import StackedProcess as StackedProcess
from bayeskit.gp.svgp import SVGP as SVGP
from bayeskit.gp.swsgp import SWSGP as SWSGP
