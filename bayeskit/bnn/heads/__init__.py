"""Bayesian last layers as modules, for any body and any training loop.

`rows` holds the laws of the weights, `row_prior` their prior, `bounds` the expectations of labels, `last_layer` what
every layer is, `likelihood_layer` the layer under any likelihood, `natural` its optimum for fixed features.
"""

from bayeskit.bnn.heads.classification import VBLLClassification as VBLLClassification
from bayeskit.bnn.heads.generative import VBLLGenerative as VBLLGenerative
from bayeskit.bnn.heads.heteroscedastic import VBLLHeteroscedastic as VBLLHeteroscedastic
from bayeskit.bnn.heads.inverse_wishart import InverseWishart as InverseWishart
from bayeskit.bnn.heads.last_layer import LastLayer as LastLayer
from bayeskit.bnn.heads.likelihood_layer import LikelihoodLayer as LikelihoodLayer
from bayeskit.bnn.heads.regression import VBLLRegression as VBLLRegression
from bayeskit.bnn.heads.row_prior import RowPrior as RowPrior
from bayeskit.bnn.heads.rows import Rows as Rows
from bayeskit.bnn.heads.student_t import VBLLStudentT as VBLLStudentT
