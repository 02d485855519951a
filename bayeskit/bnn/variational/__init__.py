"""Mean-field Gaussian laws over the weights of any network, dense or sparse."""

from bayeskit.bnn.variational.build import variational as variational
from bayeskit.bnn.variational.network import Variational as Variational
from bayeskit.bnn.variational.push_forward import SparseMonteCarlo as SparseMonteCarlo
from bayeskit.bnn.variational.sparse_weights import SparseWeights as SparseWeights
from bayeskit.bnn.variational.subspace import Subspace as Subspace
