"""Gaussian processes: the process itself, and inferences that condition it on data."""

from bayeskit.gp.analysis.export import predictive_module as predictive_module
from bayeskit.gp.analysis.leave_one_out import leave_one_out as leave_one_out
from bayeskit.gp.gpytorch.convert import from_gpytorch as from_gpytorch
from bayeskit.gp.gpytorch.likelihood_conversion import likelihood_from_gpytorch as likelihood_from_gpytorch
from bayeskit.gp.kernels.coregionalization import OutputKernel as OutputKernel
from bayeskit.gp.kernels.deep import DeepKernel as DeepKernel
from bayeskit.gp.methods.coreset import CoresetGP as CoresetGP
from bayeskit.gp.methods.dual_svgp import DualSVGP as DualSVGP
from bayeskit.gp.methods.exact import Exact as Exact
from bayeskit.gp.methods.fully_bayesian import FullyBayesian as FullyBayesian
from bayeskit.gp.methods.memory_dual_gp import MemoryDualGP as MemoryDualGP
from bayeskit.gp.methods.orthogonal_svgp import OrthogonalSVGP as OrthogonalSVGP
from bayeskit.gp.methods.sgpr import SGPR as SGPR
from bayeskit.gp.methods.svgp import SVGP as SVGP
from bayeskit.gp.methods.swsgp import SWSGP as SWSGP
from bayeskit.gp.model.gp_priors import coregionalized as coregionalized
from bayeskit.gp.model.gp_priors import default_prior as default_prior
from bayeskit.gp.model.multitask import StackedProcess as StackedProcess
from bayeskit.gp.process.conditioned_kernel import Conditioned as Conditioned
from bayeskit.gp.process.conditioned_kernel import ConditionedMean as ConditionedMean
from bayeskit.gp.process.gaussian_process import GaussianProcess as GaussianProcess
from bayeskit.gp.process.process_mixture import ProcessMixture as ProcessMixture
from bayeskit.gp.variational.site_posterior import DualProcess as DualProcess
from bayeskit.gp.variational.streaming_posterior import MemoryProcess as MemoryProcess
