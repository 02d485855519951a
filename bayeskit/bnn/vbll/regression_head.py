"""A Bayesian last layer for regression with Gaussian noise."""

from typing import Any

import torch

from bayeskit.bnn.vbll.bayesian_head import start
from bayeskit.bnn.vbll.inverse_wishart import InverseWishart
from bayeskit.bnn.vbll.likelihood_layer import LikelihoodLayer
from bayeskit.core.likelihood import Gaussian


class VBLLRegression(LikelihoodLayer):
    """`y_io = w_o' phi_i + N(0, s_o)`, `w_o ~ N(0, prior_scale / d)`, with `q(w_o) = N(m_o, S_o)`.

    The loss is minus the evidence lower bound per data point, every output with its own noise and covariance,

        1/n sum_io [ ((y_io - m_o' phi_i)^2 + phi_i' S_o phi_i) / s_o + log 2 pi s_o ] / 2 + KL(q || p) / num_data,

    constants included: at the optimum of fixed features (see `fit`) it is minus the log evidence per data point. Append
    a column of ones to the features for a bias.

    Args:
        in_features: Number d of features.
        out_features: Number k of outputs.
        num_data: Size of the whole data set.
        covariance: Of the weights of an output: "diagonal", "dense", "low_rank" or "dense_precision".
        rank: Columns of the factor of "low_rank".
        prior_scale: d times the prior variance of a weight.
        noise: Initial noise variance, a number or one per output (k,).
        learn_noise: Whether it is learnt.
        noise_prior: A prior of the noise variances, or None for none.
        kl_weight: Factor on the divergence; 1 for the bound.
        dtype: Floating type of the parameters; torch's default if None.

    References:
        Harrison, Willes, Snoek. Variational Bayesian last layers. ICLR 2024, section 2.

    >>> layer, features = VBLLRegression(4, 2, num_data=10), torch.randn(10, 4)
    >>> layer.loss(features, torch.zeros(10, 2)).shape, layer.values(features).covariance.shape
    (torch.Size([]), torch.Size([20, 20]))
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
        noise: Any = 0.1,
        learn_noise: bool = True,
        noise_prior: InverseWishart | None = None,
        kl_weight: float = 1.0,
        dtype: torch.dtype | None = None,
    ):
        rows, prior = start(in_features, out_features, covariance, prior_scale=prior_scale, rank=rank, dtype=dtype)
        likelihood = Gaussian(torch.as_tensor(noise, dtype=torch.float64).expand(out_features), learn=learn_noise)
        super().__init__(rows, prior, likelihood, num_data=num_data, kl_weight=kl_weight, noise_prior=noise_prior)
