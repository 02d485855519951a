"""Gaussian processes: the process itself, and inferences that condition it on data."""

from bayeskit.gp.cavities import leave_one_out as leave_one_out
from bayeskit.gp.conditioned import Conditioned as Conditioned
from bayeskit.gp.conditioned import ConditionedMean as ConditionedMean
from bayeskit.gp.coreset import CoresetGP as CoresetGP
from bayeskit.gp.deep_kernel import DeepKernel as DeepKernel
from bayeskit.gp.default import coregionalized as coregionalized
from bayeskit.gp.default import default_prior as default_prior
from bayeskit.gp.dual import DualSVGP as DualSVGP
from bayeskit.gp.dual_process import DualProcess as DualProcess
from bayeskit.gp.exact import Exact as Exact
from bayeskit.gp.export import predictive_module as predictive_module
from bayeskit.gp.from_gpytorch import from_gpytorch as from_gpytorch
from bayeskit.gp.fully_bayesian import FullyBayesian as FullyBayesian
from bayeskit.gp.gpytorch_likelihood import likelihood_from_gpytorch as likelihood_from_gpytorch
from bayeskit.gp.memory import MemoryDualGP as MemoryDualGP
from bayeskit.gp.memory_process import MemoryProcess as MemoryProcess
from bayeskit.gp.mixture import ProcessMixture as ProcessMixture
from bayeskit.gp.orthogonal import OrthogonalSVGP as OrthogonalSVGP
from bayeskit.gp.output_kernel import OutputKernel as OutputKernel
from bayeskit.gp.process import GaussianProcess as GaussianProcess
from bayeskit.gp.sgpr import SGPR as SGPR
from bayeskit.gp.stacked import StackedProcess as StackedProcess
from bayeskit.gp.svgp import SVGP as SVGP
from bayeskit.gp.swsgp import SWSGP as SWSGP
