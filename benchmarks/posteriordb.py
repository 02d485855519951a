"""Posteriors of posteriordb as log densities of unconstrained numbers, with what is known about them.

Data, reference draws and moments lie in the folder `BAYESKIT_POSTERIORDB` (posteriordb, BSD-3, Stan developers), as
`data/NAME.json.zip`, `draws/NAME.json.zip` and `summaries/*.json`. Positive parameters are sampled as logs.
"""

import json
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

REFERENCE_ERROR = 1e-4
"""Squared standard error of a mean of 10,000 reference draws, in squared standard deviations."""


@dataclass(frozen=True)
class Target:
    """A log density of c positions (c, d), and the parameters (c, k) that the reference speaks of.

    Args:
        dimension: d.
        log_density: (c, d) to (c,), up to a constant, with the Jacobians of the changes of variables.
        parameters: (c, d) to (c, k).
        names: Of the k parameters.
        mean: Reference means, (k,).
        sd: Reference standard deviations, (k,).
        error: Squared standard error of the reference means, in squared standard deviations; 0 where they are exact.
    """

    dimension: int
    log_density: Callable[[Tensor], Tensor]
    parameters: Callable[[Tensor], Tensor]
    names: tuple[str, ...]
    mean: Tensor
    sd: Tensor
    error: float


def numbers(values):
    return torch.tensor(values, dtype=torch.float64)


def folder() -> Path:
    return Path(os.environ["BAYESKIT_POSTERIORDB"])


def read(path: Path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def draws(name: str) -> dict[str, Tensor]:
    """The reference draws of each parameter, chains side by side, (10000,)."""
    chains = read(folder() / "draws" / f"{name}.json.zip")
    return {key: torch.cat([numbers(chain[key]) for chain in chains]) for key in chains[0]}


# Each model takes its data to (d, log density, parameters, names).


def normal_linear(x: Tensor, y: Tensor, *, log_prior: Callable[[Tensor, Tensor], Tensor] = lambda beta, sigma: 0.0):
    """y ~ N(x beta, sigma), positions (beta, log sigma); flat priors if none is given."""

    def parameters(q):
        return torch.cat([q[:, :-1], q[:, -1:].exp()], dim=-1)

    def log_density(q):
        beta, log_sigma = q[:, :-1], q[:, -1]
        residuals = (y - beta @ x.mT) / log_sigma.exp()[:, None]
        fit = -0.5 * residuals.square().sum(-1) - len(y) * log_sigma
        return fit + log_sigma + log_prior(beta, log_sigma.exp())

    names = tuple(f"beta[{i + 1}]" for i in range(x.shape[1]))
    return x.shape[1] + 1, log_density, parameters, (*names, "sigma")


def columns(data, *keys):
    return torch.stack([torch.ones(len(data[keys[0]]), dtype=torch.float64)] + [numbers(data[key]) for key in keys], 1)


def half_cauchy(_, sigma):
    return -torch.log1p((sigma / 2.5).square())


def kidscore_momiq(data):
    return normal_linear(columns(data, "mom_iq"), numbers(data["kid_score"]), log_prior=half_cauchy)


def kidscore_interaction_c2(data):
    hs, iq = numbers(data["mom_hs"]) - 0.5, numbers(data["mom_iq"]) - 100
    return normal_linear(torch.stack([torch.ones_like(hs), hs, iq, hs * iq], 1), numbers(data["kid_score"]))


def nes(data):
    age = numbers(data["age_discrete"])
    ages = [(age == group).double() for group in (2, 3, 4)]
    rest = [numbers(data[key]) for key in ("educ1", "gender", "income")]
    x = torch.cat([columns(data, "real_ideo", "race_adj"), torch.stack(ages + rest, 1)], 1)
    return normal_linear(x, numbers(data["partyid7"]))


def blr(data):
    def log_prior(beta, sigma):
        return -0.5 * (beta / 10).square().sum(-1) - 0.5 * (sigma / 10).square()

    return normal_linear(numbers(data["X"]), numbers(data["y"]), log_prior=log_prior)


def kilpisjarvi(data):
    means, sds = numbers([data["pmualpha"], data["pmubeta"]]), numbers([data["psalpha"], data["psbeta"]])

    def log_prior(beta, _):
        return -0.5 * ((beta - means) / sds).square().sum(-1)

    dimension, log_density, parameters, _ = normal_linear(columns(data, "x"), numbers(data["y"]), log_prior=log_prior)
    return dimension, log_density, parameters, ("alpha", "beta", "sigma")


def ar(data):
    y, order = numbers(data["y"]), data["K"]
    lags = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], 1)

    def log_prior(beta, sigma):
        return -0.5 * (beta / 10).square().sum(-1) + half_cauchy(beta, sigma)

    x = torch.cat([torch.ones(len(lags), 1, dtype=torch.float64), lags], 1)
    dimension, log_density, parameters, names = normal_linear(x, y[order:], log_prior=log_prior)
    return dimension, log_density, parameters, ("alpha", *names[:-2], "sigma")


def gp_pois_regr(data):
    """f = L z with L L' the kernel's matrix, rho ~ Gamma(25, 4), alpha ~ N+(0, 2), k ~ Poisson(exp f)."""
    x, counts = numbers(data["x"]), numbers(data["k"])
    squares, n = (x[:, None] - x).square(), len(x)

    def functions(q):
        rho, alpha = q[:, 0].exp(), q[:, 1].exp()
        kernel = alpha.square()[:, None, None] * torch.exp(-0.5 * squares / rho.square()[:, None, None])
        jittered = kernel + 1e-10 * torch.eye(n, dtype=torch.float64)
        # A trajectory that leaves the plausible may ask for a matrix that has no root: NaN there, not an error.
        root, failed = torch.linalg.cholesky_ex(jittered)
        f = (root @ q[:, 2:, None]).squeeze(-1)
        return rho, alpha, torch.where(failed[:, None] > 0, torch.nan, f)

    def log_density(q):
        rho, alpha, f = functions(q)
        prior = 24 * rho.log() - 4 * rho - 0.5 * (alpha / 2).square() - 0.5 * q[:, 2:].square().sum(-1)
        return prior + q[:, 0] + q[:, 1] + (counts * f - f.exp()).sum(-1)

    def parameters(q):
        rho, alpha, f = functions(q)
        return torch.cat([rho[:, None], alpha[:, None], f], dim=-1)

    return n + 2, log_density, parameters, ("rho", "alpha", *(f"f[{i + 1}]" for i in range(n)))


def logistic(x: Tensor, y: Tensor, names: tuple[str, ...]):
    """logit P(y = 1) = x beta, flat prior."""
    signed = x * (2 * y - 1)[:, None]

    def log_density(q):
        return torch.nn.functional.logsigmoid(q @ signed.mT).sum(-1)

    return x.shape[1], log_density, lambda q: q, names


def wells_dist(data):
    return logistic(columns(data, "dist"), numbers(data["switched"]), ("beta[1]", "beta[2]"))


def nes_logit_model(data):
    return logistic(columns(data, "income"), numbers(data["vote"]), ("alpha", "beta[1]"))


MODELS = {
    "kidiq-kidscore_momiq": kidscore_momiq,
    "kidiq_with_mom_work-kidscore_interaction_c2": kidscore_interaction_c2,
    "arK-arK": ar,
    "gp_pois_regr-gp_pois_regr": gp_pois_regr,
    "kilpisjarvi_mod-kilpisjarvi": kilpisjarvi,
    "nes2000-nes": nes,
    "sblrc-blr": blr,
    "wells_data-wells_dist": wells_dist,
    "nes_logit_data-nes_logit_model": nes_logit_model,
}


def load(name: str) -> Target:
    """The target of a name of `MODELS`, with exact moments where the folder has them, else those of the draws."""
    data = read(folder() / "data" / f"{name.partition('-')[0]}.json.zip")
    dimension, log_density, parameters, names = MODELS[name](data)
    mean, sd, error = reference(name, names)
    return Target(dimension, log_density, parameters, names, mean, sd, error)


def reference(name: str, names: tuple[str, ...]) -> tuple[Tensor, Tensor, float]:
    summaries = {}
    for path in (folder() / "summaries").glob("*.json"):
        summaries |= json.loads(path.read_text())
    exact = summaries.get(name, {})
    exact = exact.get("exact_by_2d_quadrature", exact)
    if "sd" in exact:
        return numbers(exact["mean"]), numbers(exact["sd"]), 0.0
    known = draws(name)
    values = torch.stack([known[key] for key in names], 1)
    return values.mean(0), values.std(0), REFERENCE_ERROR


def unconstrained(name: str) -> Tensor:
    """The reference draws as positions (10000, d), where every parameter is a position or its logarithm."""
    target, known = load(name), draws(name)
    logs = {"sigma", "rho", "alpha"} if name.startswith("gp") else {"sigma"}
    values = torch.stack([known[key].log() if key in logs else known[key] for key in target.names], 1)
    if not name.startswith("gp"):
        return values
    x = numbers(read(folder() / "data" / "gp_pois_regr.json.zip")["x"])
    kernel = torch.exp(2 * values[:, 1, None, None] - 0.5 * (x[:, None] - x).square() / values[:, :1, None].exp() ** 2)
    root = torch.linalg.cholesky(kernel + 1e-10 * torch.eye(len(x), dtype=torch.float64))
    z = torch.linalg.solve_triangular(root, values[:, 2:, None], upper=False).squeeze(-1)
    return torch.cat([values[:, :2], z], 1)


def stein(target: Target, q: Tensor, per_draw: float = 1.0) -> float:
    """The largest |z| of `E[d log p] = 0` and `E[(q_i - E q_i) d_i log p] = -1` over draws (s, d).

    Args:
        target: What the draws should come from.
        q: The draws.
        per_draw: Effective draws a draw.
    """
    points = q.detach().requires_grad_()
    slopes = torch.autograd.grad(target.log_density(points).sum(), points)[0]
    terms = torch.cat([slopes, (q - q.mean(0)) * slopes + 1], dim=1)
    return (terms.mean(0).abs() / (terms.std(0) / math.sqrt(len(q) * per_draw))).max().item()
