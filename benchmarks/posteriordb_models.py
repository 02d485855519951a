"""The models of posteriordb that are known here, by its names; a model is a function of a posterior's data.

Positive parameters are sampled as logs, with the Jacobians of such changes put in.
"""

from collections.abc import Callable
from typing import Any

import torch
from posteriordb_model import Model, column, numbered, numbers
from posteriordb_regressions import (
    ar,
    blr,
    design,
    dogs,
    earnings,
    half_cauchy,
    kidscore,
    kilpisjarvi,
    linear,
    logistic,
    mesquite,
    nes,
    radon_pooled,
    wells,
)
from torch import Tensor
from torch.nn.functional import logsigmoid


def squared_exponential(x: Tensor, rho: Tensor, alpha: Tensor, diagonal: Tensor | float) -> tuple[Tensor, Tensor]:
    """Roots (c, n, n) of the kernel's matrices plus a diagonal, and which of them there are none of, (c,).

    A trajectory in an implausible region may need the root of a singular matrix: that is returned, not raised.
    """
    kernel = alpha.square()[:, None, None] * torch.exp(-0.5 * (x[:, None] - x).square() / rho.square()[:, None, None])
    eye = torch.eye(len(x), dtype=torch.float64)
    root, failed = torch.linalg.cholesky_ex(kernel + torch.as_tensor(diagonal).reshape(-1, 1, 1) * eye)
    return root, failed > 0


def length_and_scale(q: Tensor) -> Tensor:
    """Log density (c,) of log rho and log alpha: rho ~ Gamma(25, 4), alpha ~ N+(0, 2)."""
    rho, alpha = q[:, 0].exp(), q[:, 1].exp()
    return 24 * q[:, 0] - 4 * rho - 0.5 * (alpha / 2).square() + q[:, 0] + q[:, 1]


def gp_pois_regr(data) -> Model:
    """f = L z with L L' the kernel's matrix, k ~ Poisson(exp f); positions (log rho, log alpha, z)."""
    x, counts = column(data, "x"), column(data, "k")

    def functions(q):
        root, failed = squared_exponential(x, q[:, 0].exp(), q[:, 1].exp(), 1e-10)
        return torch.where(failed[:, None], torch.nan, (root @ q[:, 2:, None]).squeeze(-1))

    def row_terms(q, rows):
        f = functions(q)[:, rows]
        return counts[rows] * f - f.exp()

    def positions(values):
        root, _ = squared_exponential(x, values[:, 0], values[:, 1], 1e-10)
        z = torch.linalg.solve_triangular(root, values[:, 2:, None], upper=False).squeeze(-1)
        return torch.cat([values[:, :2].log(), z], -1)

    return Model(
        ("rho", "alpha", *numbered("f", len(x))),
        len(x) + 2,
        lambda q: length_and_scale(q) - 0.5 * q[:, 2:].square().sum(-1),
        lambda q: torch.cat([q[:, :2].exp(), functions(q)], -1),
        positions,
        len(x),
        row_terms,
    )


def gp_regr(data) -> Model:
    """y ~ N(0, kernel + sigma I), positions (log rho, log alpha, log sigma)."""
    x, y = column(data, "x"), column(data, "y")

    def log_density(q):
        rho, alpha, sigma = q.exp().T
        root, failed = squared_exponential(x, rho, alpha, sigma)
        white = torch.linalg.solve_triangular(root, y.expand(len(q), -1)[..., None], upper=False).squeeze(-1)
        fit = -0.5 * white.square().sum(-1) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        whole = length_and_scale(q) - 0.5 * sigma.square() + q[:, 2] + fit
        return torch.where(failed, torch.nan, whole)

    return Model(("rho", "alpha", "sigma"), 3, log_density, torch.exp, torch.log)


def eight_schools(data, *, centered: bool) -> Model:
    """theta ~ N(mu, tau), y ~ N(theta, sigma), mu ~ N(0, 5), tau ~ C+(0, 5); positions (theta or z, mu, log tau)."""
    y, sigma = column(data, "y"), column(data, "sigma")
    number = len(y)

    def parts(q):
        z, mu, log_tau = q[:, :number], q[:, number : number + 1], q[:, number + 1 :]
        return (z, (z - mu) * (-log_tau).exp()) if centered else (mu + z * log_tau.exp(), z)

    def log_prior(q):
        mu, log_tau = q[:, number], q[:, number + 1]
        hyper = -0.5 * (mu / 5).square() - torch.log1p((log_tau.exp() / 5).square()) + log_tau
        return hyper - 0.5 * parts(q)[1].square().sum(-1) - (number * log_tau if centered else 0)

    def positions(values):
        theta, mu, tau = values[:, :number], values[:, number : number + 1], values[:, number + 1 :]
        return torch.cat([theta if centered else (theta - mu) / tau, mu, tau.log()], -1)

    return Model(
        (*numbered("theta", number), "mu", "tau"),
        number + 2,
        log_prior,
        lambda q: torch.cat([parts(q)[0], q[:, number : number + 1], q[:, number + 1 :].exp()], -1),
        positions,
        number,
        lambda q, rows: -0.5 * ((y[rows] - parts(q)[0][:, rows]) / sigma[rows]).square(),
    )


def garch11(data) -> Model:
    """y_t ~ N(mu, s_t), s_t^2 = a0 + a1 (y_{t-1} - mu)^2 + b1 s_{t-1}^2.

    Positions (mu, log a0, logit a1, logit b1 / (1 - a1)).
    """
    y, first = column(data, "y"), float(data["sigma1"])

    def parameters(q):
        a1 = q[:, 2].sigmoid()
        return torch.stack([q[:, 0], q[:, 1].exp(), a1, (1 - a1) * q[:, 3].sigmoid()], -1)

    def positions(values):
        mu, a0, a1, b1 = values.T
        return torch.stack([mu, a0.log(), a1.logit(), (b1 / (1 - a1)).logit()], -1)

    def log_density(q):
        mu, a0, a1, b1 = parameters(q).T
        squares = (y - mu[:, None]).square()
        variances = [torch.full_like(mu, first**2)]
        for t in range(1, len(y)):
            variances.append(a0 + a1 * squares[:, t - 1] + b1 * variances[-1])
        s2 = torch.stack(variances, -1)
        jacobian = q[:, 1] + logsigmoid(q[:, 2]) + 2 * logsigmoid(-q[:, 2]) + logsigmoid(q[:, 3]) + logsigmoid(-q[:, 3])
        return jacobian - 0.5 * (squares / s2 + s2.log()).sum(-1)

    return Model(("mu", "alpha0", "alpha1", "beta1"), 4, log_density, parameters, positions)


def arma11(data) -> Model:
    """y_t = mu + phi y_{t-1} + theta e_{t-1} + e_t, e ~ N(0, sigma); positions (mu, phi, theta, log sigma)."""
    y = column(data, "y")
    spreads = numbers([10.0, 2.0, 2.0])

    def log_density(q):
        mu, phi, theta, log_sigma = q.T
        errors = [y[0] - mu - phi * mu]
        for t in range(1, len(y)):
            errors.append(y[t] - mu - phi * y[t - 1] - theta * errors[-1])
        e = torch.stack(errors, -1) / log_sigma.exp()[:, None]
        prior = -0.5 * (q[:, :3] / spreads).square().sum(-1) + half_cauchy(q, log_sigma.exp()) + log_sigma
        return prior - 0.5 * e.square().sum(-1) - len(y) * log_sigma

    return Model(
        ("mu", "phi", "theta", "sigma"),
        4,
        log_density,
        lambda q: torch.cat([q[:, :3], q[:, 3:].exp()], -1),
        lambda values: torch.cat([values[:, :3], values[:, 3:].log()], -1),
    )


def low_dim_gauss_mix(data) -> Model:
    """theta N(mu1, s1) + (1 - theta) N(mu2, s2), mu1 < mu2.

    Positions (mu1, log(mu2 - mu1), log s1, log s2, logit theta).
    """
    y = column(data, "y")

    def parameters(q):
        mu = torch.stack([q[:, 0], q[:, 0] + q[:, 1].exp()], -1)
        return torch.cat([mu, q[:, 2:4].exp(), q[:, 4:].sigmoid()], -1)

    def positions(values):
        gap = (values[:, 1:2] - values[:, :1]).log()
        return torch.cat([values[:, :1], gap, values[:, 2:4].log(), values[:, 4:].logit()], -1)

    def log_prior(q):
        normals = -0.5 * (parameters(q)[:, :4] / 2).square().sum(-1)
        beta = 5 * (logsigmoid(q[:, 4]) + logsigmoid(-q[:, 4]))  # Beta(5, 5) with the Jacobian of its logit
        return normals + beta + q[:, 1] + q[:, 2] + q[:, 3]

    def row_terms(q, rows):
        mu1, mu2, s1, s2, _ = parameters(q).T[..., None]
        one = logsigmoid(q[:, 4:]) - 0.5 * ((y[rows] - mu1) / s1).square() - s1.log()
        two = logsigmoid(-q[:, 4:]) - 0.5 * ((y[rows] - mu2) / s2).square() - s2.log()
        return torch.logaddexp(one, two)

    names = (*numbered("mu", 2), *numbered("sigma", 2), "theta")
    return Model(names, 5, log_prior, parameters, positions, len(y), row_terms)


def named(family: Callable[..., Model], *models: str, prefix: str = "") -> dict[str, Callable[[Any], Model]]:
    return {prefix + model: lambda data, model=model: family(data, model) for model in models}


KIDSCORE = ("momhs", "momiq", "momhsiq", "interaction", "interaction_c", "interaction_c2", "interaction_z", "mom_work")
EARNINGS = ("earn_height", "log10earn_height", "logearn_height", "logearn_height_male", "logearn_logheight_male")
MESQUITE = ("logmesquite", "logmesquite_logvolume", "logmesquite_logva", "logmesquite_logvas", "logmesquite_logvash")
WELLS = ("dist100_model", "dist100ars_model", "interaction_model", "interaction_c_model", "dae_model")

MODELS: dict[str, Callable[[Any], Model]] = {
    **named(kidscore, *KIDSCORE, prefix="kidscore_"),
    **named(earnings, *EARNINGS, "logearn_interaction", "logearn_interaction_z"),
    **named(mesquite, "mesquite", *MESQUITE),
    **named(wells, "wells_dist", *(f"wells_{name}" for name in WELLS)),
    "nes": nes,
    "blr": blr,
    "kilpisjarvi": kilpisjarvi,
    "radon_pooled": radon_pooled,
    "sesame_one_pred_a": lambda data: linear(design(column(data, "encouraged")), column(data, "watched")),
    "arK": ar,
    "nes_logit_model": lambda data: logistic(design(column(data, "income")), column(data, "vote")),
    "dogs": dogs,
    "gp_pois_regr": gp_pois_regr,
    "gp_regr": gp_regr,
    "eight_schools_centered": lambda data: eight_schools(data, centered=True),
    "eight_schools_noncentered": lambda data: eight_schools(data, centered=False),
    "garch11": garch11,
    "arma11": arma11,
    "low_dim_gauss_mix": low_dim_gauss_mix,
}
