"""A Bayesian last layer for classes, discriminative."""

import torch

from bayeskit.bnn.vbll.bayesian_head import start
from bayeskit.bnn.vbll.likelihood_layer import LikelihoodLayer
from bayeskit.core.likelihood import Bernoulli, Categorical


class VBLLClassification(LikelihoodLayer):
    """`p(y_i = k) = softmax(f(x_i))_k`, `f_k = w_k' phi`, `w_k ~ N(0, prior_scale / d)`, with `q(w_k) = N(m_k, S_k)`.

    The expectation of `log sum_k exp f_k` is bounded in closed form, by Jensen's inequality or more tightly by the
    bound of Knowles and Minka (see `softmax_bounds`), so the loss has no sampling noise. Prediction is deterministic
    as well: quadrature over the Gaussian logits.

    Args:
        in_features: Number d of features.
        num_classes: Number of classes; two of them share one logit.
        num_data: Size of the whole data set.
        covariance: Of the weights of a class: "diagonal", "dense", "low_rank" or "dense_precision".
        bound: "knowles_minka", "jensen", or "expectation" for quadrature.
        rank: Columns of the factor of "low_rank".
        prior_scale: d times the prior variance of a weight.
        kl_weight: Factor on the divergence; 1 for the evidence lower bound.
        dtype: Floating type of the parameters; torch's default if None.

    References:
        Harrison, Willes, Snoek. Variational Bayesian last layers. ICLR 2024, section 3.

    >>> layer = VBLLClassification(4, 3, num_data=10, bound="jensen")
    >>> layer.predictive(torch.randn(5, 4)).probs.shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        num_data: int,
        covariance: str = "dense",
        bound: str = "knowles_minka",
        rank: int = 8,
        prior_scale: float = 1.0,
        kl_weight: float = 1.0,
        dtype: torch.dtype | None = None,
    ):
        likelihood = Bernoulli() if num_classes == 2 else Categorical(num_classes)
        logits = 1 if num_classes == 2 else num_classes
        rows, prior = start(in_features, logits, covariance, prior_scale=prior_scale, rank=rank, dtype=dtype)
        super().__init__(rows, prior, likelihood, num_data=num_data, kl_weight=kl_weight, bound=bound)
