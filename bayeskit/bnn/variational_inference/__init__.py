"""Mean-field Gaussian posteriors over the weights of any network, dense or sparse."""

from bayeskit.bnn.variational_inference.sparse_pushforward import SparseMonteCarlo as SparseMonteCarlo
from bayeskit.bnn.variational_inference.sparse_weights import SparseWeights as SparseWeights
from bayeskit.bnn.variational_inference.support_updates import Subspace as Subspace
from bayeskit.bnn.variational_inference.variational_module import Variational as Variational
from bayeskit.bnn.variational_inference.variational_module import variational as variational
