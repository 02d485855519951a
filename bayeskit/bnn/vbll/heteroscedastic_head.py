"""A Bayesian last layer for regression whose noise depends on the input."""

import torch

from bayeskit.bnn.vbll.bayesian_head import start
from bayeskit.bnn.vbll.likelihood_layer import LikelihoodLayer
from bayeskit.bnn.vbll.row_prior import RowPrior
from bayeskit.core.likelihood import Heteroscedastic


class VBLLHeteroscedastic(LikelihoodLayer):
    """`y_io = f_o(x_i) + N(0, exp g_o(x_i))` with `f_o = w_o' phi`, `g_o = c_o' phi`, both uncertain.

    `w_o ~ N(0, prior_scale / d)`, `c_o ~ N(0, noise_prior_scale / d)`, with a Gaussian posterior for each. The
    expectation is exact: with mu, v the moments of f and eta, u those of g,

        E log p(y | f, g) = -[ log 2 pi + eta + ((y - mu)^2 + v) exp(-eta + u / 2) ] / 2.

    The outputs of the layer are f_1 .. f_k followed by g_1 .. g_k.

    Args:
        in_features: Number d of features; a column of ones among them is a bias for f and g.
        out_features: Number k of outputs y.
        num_data: Size of the whole data set.
        covariance: Of the weights of an output: "diagonal", "dense", "low_rank" or "dense_precision".
        rank: Columns of the factor of "low_rank".
        prior_scale: d times the prior variance of a weight of f.
        noise_prior_scale: d times the prior variance of a weight of g.
        kl_weight: Factor on the divergence; 1 for the evidence lower bound.
        dtype: Floating type of the parameters; torch's default if None.

    References:
        Harrison, Willes, Snoek. Variational Bayesian last layers. ICLR 2024 (there the prior of w scales with the
        noise, and the bound is a heuristic; here the two are independent, and it is exact).

    >>> layer = VBLLHeteroscedastic(4, 1, num_data=10)
    >>> layer.predictive(torch.randn(5, 4)).variance.shape
    torch.Size([5, 1])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        num_data: int,
        covariance: str = "dense",
        rank: int = 8,
        prior_scale: float = 1.0,
        noise_prior_scale: float = 1.0,
        kl_weight: float = 1.0,
        dtype: torch.dtype | None = None,
    ):
        rows, prior = start(in_features, 2 * out_features, covariance, prior_scale=prior_scale, rank=rank, dtype=dtype)
        precision = prior.precision.clone()
        precision[out_features:] *= prior_scale / noise_prior_scale
        with torch.no_grad():
            rows.mean[out_features:] *= 0.1  # the log variance starts near 0, that of a standardized target
        super().__init__(
            rows, RowPrior(prior.mean, precision), Heteroscedastic(), num_data=num_data, kl_weight=kl_weight
        )
