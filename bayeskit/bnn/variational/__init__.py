"""Mean-field Gaussian laws over the weights of any network, dense or sparse."""

from bayeskit.bnn.variational.network import Variational as Variational
from bayeskit.bnn.variational.network import variational as variational
