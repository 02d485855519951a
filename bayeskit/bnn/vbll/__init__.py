"""Bayesian last layers as modules, for any body and any training loop.

`row_gaussians` holds the variational distributions of the weights, `row_prior` their prior, `softmax_bounds` the
expected log-likelihoods of labels, `bayesian_head` the base of all layers, `likelihood_layer` the layer under any
likelihood and its optimum for fixed features.
"""

from bayeskit.bnn.vbll.bayesian_head import LastLayer as LastLayer
from bayeskit.bnn.vbll.classification_head import VBLLClassification as VBLLClassification
from bayeskit.bnn.vbll.generative_head import VBLLGenerative as VBLLGenerative
from bayeskit.bnn.vbll.heteroscedastic_head import VBLLHeteroscedastic as VBLLHeteroscedastic
from bayeskit.bnn.vbll.inverse_wishart import InverseWishart as InverseWishart
from bayeskit.bnn.vbll.likelihood_layer import LikelihoodLayer as LikelihoodLayer
from bayeskit.bnn.vbll.regression_head import VBLLRegression as VBLLRegression
from bayeskit.bnn.vbll.row_gaussians import Rows as Rows
from bayeskit.bnn.vbll.row_prior import RowPrior as RowPrior
from bayeskit.bnn.vbll.student_t_head import VBLLStudentT as VBLLStudentT
