"""The regressions of posteriordb, normal and logistic, as functions of their data."""

import math
from collections.abc import Callable

import torch
from posteriordb_model import Model, column, numbered, numbers
from torch import Tensor
from torch.nn.functional import logsigmoid

Prior = Callable[[Tensor, Tensor], Tensor]


def design(*features: Tensor) -> Tensor:
    """The features with a column of ones before them, (n, 1 + features)."""
    return torch.stack([torch.ones_like(features[0]), *features], 1)


def flat(beta: Tensor, sigma: Tensor) -> Tensor:
    return torch.zeros_like(sigma)


def half_cauchy(beta: Tensor, sigma: Tensor) -> Tensor:
    return -torch.log1p((sigma / 2.5).square())


def normal_prior(beta_sd: Tensor | float, sigma_sd: float = math.inf, mean: Tensor | float = 0.0) -> Prior:
    def log_prior(beta, sigma):
        return -0.5 * ((beta - mean) / beta_sd).square().sum(-1) - 0.5 * (sigma / sigma_sd).square()

    return log_prior


def linear(x: Tensor, y: Tensor, prior: Prior = flat, names: tuple[str, ...] | None = None) -> Model:
    """y ~ N(x beta, sigma), positions (beta, log sigma)."""

    def log_prior(q):
        return prior(q[:, :-1], q[:, -1].exp()) + q[:, -1]

    def row_terms(q, rows):
        return -0.5 * ((y[rows] - q[:, :-1] @ x[rows].mT) / q[:, -1:].exp()).square() - q[:, -1:]

    return Model(
        names or (*numbered("beta", x.shape[1]), "sigma"),
        x.shape[1] + 1,
        log_prior,
        lambda q: torch.cat([q[:, :-1], q[:, -1:].exp()], -1),
        lambda values: torch.cat([values[:, :-1], values[:, -1:].log()], -1),
        len(y),
        row_terms,
    )


def logistic(x: Tensor, y: Tensor, prior_sd: float = math.inf, names: tuple[str, ...] | None = None) -> Model:
    """logit P(y = 1) = x beta."""
    signed = x * (2 * y - 1)[:, None]
    return Model(
        names or ("alpha", *numbered("beta", x.shape[1] - 1)),
        x.shape[1],
        lambda q: -0.5 * (q / prior_sd).square().sum(-1),
        lambda q: q,
        lambda values: values,
        len(y),
        lambda q, rows: logsigmoid(q @ signed[rows].mT),
    )


def centered(x: Tensor) -> Tensor:
    return x - x.mean()


def product(x: Tensor, z: Tensor) -> Tensor:
    """The two and their interaction as a design."""
    return design(x, z, x * z)


def kidscore(data, model: str) -> Model:
    hs, iq, y = (column(data, key) for key in ("mom_hs", "mom_iq", "kid_score"))
    if model == "mom_work":
        return linear(design(*((column(data, "mom_work") == level).double() for level in (2, 3, 4))), y)
    if model in ("momhs", "momiq", "momhsiq", "interaction"):
        plain = {"momhs": design(hs), "momiq": design(iq), "momhsiq": design(hs, iq), "interaction": product(hs, iq)}
        return linear(plain[model], y, half_cauchy)
    z = {
        "interaction_c": lambda: product(centered(hs), centered(iq)),
        "interaction_c2": lambda: product(hs - 0.5, iq - 100),
        "interaction_z": lambda: product(centered(hs) / (2 * hs.std()), centered(iq) / (2 * iq.std())),
    }
    return linear(z[model](), y)


def earnings(data, model: str) -> Model:
    earn, height = column(data, "earn"), column(data, "height")
    male = column(data, "male") if "male" in data else torch.zeros_like(earn)
    target = {"earn_height": earn, "log10earn_height": earn.log10()}.get(model, earn.log())
    features = {
        "logearn_height_male": design(height, male),
        "logearn_logheight_male": design(height.log(), male),
        "logearn_interaction": product(height, male),
        "logearn_interaction_z": product(centered(height) / height.std(), male),
    }
    return linear(features.get(model, design(height)), target)


def mesquite(data, model: str) -> Model:
    d1, d2, canopy, group = (column(data, key) for key in ("diam1", "diam2", "canopy_height", "group"))
    weight = column(data, "weight")
    if model == "mesquite":
        return linear(design(d1, d2, canopy, column(data, "total_height"), column(data, "density"), group), weight)
    volume, area, shape = (d1 * d2 * canopy).log(), (d1 * d2).log(), (d1 / d2).log()
    total, density = (column(data, key).log() if key in data else group for key in ("total_height", "density"))
    features = {
        "logmesquite": (d1.log(), d2.log(), canopy.log(), total, density, group),
        "logmesquite_logvolume": (volume,),
        "logmesquite_logva": (volume, area, group),
        "logmesquite_logvas": (volume, area, shape, total, density, group),
        "logmesquite_logvash": (volume, area, shape, total, group),
    }
    return linear(design(*features[model]), weight.log())


def nes(data) -> Model:
    ages = [(column(data, "age_discrete") == group).double() for group in (2, 3, 4)]
    rest = [column(data, key) for key in ("educ1", "gender", "income")]
    return linear(design(column(data, "real_ideo"), column(data, "race_adj"), *ages, *rest), column(data, "partyid7"))


def blr(data) -> Model:
    return linear(column(data, "X"), column(data, "y"), normal_prior(10.0, 10.0))


def kilpisjarvi(data) -> Model:
    prior = normal_prior(numbers([data["psalpha"], data["psbeta"]]), mean=numbers([data["pmualpha"], data["pmubeta"]]))
    return linear(design(column(data, "x")), column(data, "y"), prior, ("alpha", "beta", "sigma"))


def radon_pooled(data) -> Model:
    prior = normal_prior(10.0, 1.0)
    return linear(design(column(data, "floor_measure")), column(data, "log_radon"), prior, ("alpha", "beta", "sigma_y"))


def ar(data) -> Model:
    y, order = column(data, "y"), data["K"]
    lags = [y[order - k : len(y) - k] for k in range(1, order + 1)]

    def prior(beta, sigma):
        return normal_prior(10.0)(beta, sigma) + half_cauchy(beta, sigma)

    return linear(design(*lags), y[order:], prior, ("alpha", *numbered("beta", order), "sigma"))


def wells(data, model: str) -> Model:
    dist, y = column(data, "dist"), column(data, "switched")
    if model == "wells_dist":
        return logistic(design(dist), y, names=("beta[1]", "beta[2]"))
    arsenic = column(data, "arsenic")
    features = {
        "wells_dist100_model": lambda: design(dist / 100),
        "wells_dist100ars_model": lambda: design(dist / 100, arsenic),
        "wells_interaction_model": lambda: product(dist / 100, arsenic),
        "wells_interaction_c_model": lambda: product(centered(dist) / 100, centered(arsenic)),
        "wells_dae_model": lambda: design(dist / 100, arsenic, column(data, "educ") / 4),
    }
    return logistic(features[model](), y)


def dogs(data) -> Model:
    y = column(data, "y")  # (dogs, trials)
    before = torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], 1).cumsum(1)
    avoided = torch.arange(y.shape[1], dtype=y.dtype) - before
    x = design(avoided.reshape(-1), before.reshape(-1))
    return logistic(x, y.reshape(-1), prior_sd=100.0, names=numbered("beta", 3))
