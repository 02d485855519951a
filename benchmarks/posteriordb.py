"""Posteriors of posteriordb with their references: draws, or exact moments.

The folder `BAYESKIT_POSTERIORDB` holds posteriordb (BSD-3, Stan developers) or a part of it: data, draws and posteriors
where posteriordb has them (`posterior_database/...`), or all of them as `data/NAME.json.zip` and `draws/NAME.json.zip`.
Moments in `summaries/*.json` go before draws if they are exact. For a posterior of one's own see `own`.
"""

import json
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from posteriordb_model import Model, numbers
from posteriordb_models import MODELS
from torch import Tensor

REFERENCE_ERROR = 1e-4
"""Squared standard error of a mean of 10,000 reference draws, in squared standard deviations."""

SHIPPED = (
    "kidiq-kidscore_momiq",
    "kidiq_with_mom_work-kidscore_interaction_c2",
    "arK-arK",
    "kilpisjarvi_mod-kilpisjarvi",
    "nes2000-nes",
    "sblrc-blr",
    "wells_data-wells_dist",
    "nes_logit_data-nes_logit_model",
    "gp_pois_regr-gp_pois_regr",
)
"""The sets of the published table."""

PLACES = {
    "data": ("data", "posterior_database/data/data"),
    "draws": ("draws", "posterior_database/reference_posteriors/draws/draws"),
    "posteriors": ("posteriors", "posterior_database/posteriors"),
}


@dataclass(frozen=True)
class Target:
    """A model with its reference.

    Args:
        model: The log density, and the k parameters that the reference speaks of.
        mean: Reference means, (k,).
        sd: Reference standard deviations, (k,).
        error: Squared standard error of the reference means, in squared standard deviations; 0 where they are exact.
        draws: Reference draws of the parameters, (s, k), or None.
    """

    model: Model
    mean: Tensor
    sd: Tensor
    error: float
    draws: Tensor | None = None


def load(name: str) -> Target:
    """The target of a posterior's name, "DATA-MODEL".

    Raises:
        ValueError: Its model is not one of `MODELS`, or there is no reference.
        FileNotFoundError: The folder has no such data.
    """
    data, model, reference = parts(name)
    if model not in MODELS:
        raise ValueError(
            f"the model {model!r} of {name!r} is not known: add a function from its data to a `Model` to `MODELS` in "
            "benchmarks/posteriordb_models.py, or hand in your log density and the draws by `--own FILE.py`."
        )
    known = MODELS[model](read(find("data", data)))
    exact = exact_moments(name)
    draws = reference_draws(reference, known.names)
    if exact is not None:
        return Target(known, *exact, 0.0, draws)
    if draws is None:
        raise ValueError(
            f"nothing to hold {name!r} against: put its reference draws at "
            f"{folder() / PLACES['draws'][0] / reference}.json.zip, or exact moments into summaries/*.json."
        )
    return Target(known, draws.mean(0), draws.std(0), 1 / len(draws), draws)


def own(log_density: Callable[[Tensor], Tensor], draws: Tensor, names: tuple[str, ...] | None = None) -> Target:
    """The target of a log density of one's own, from positions (c, d) to (c,), and reference draws (s, d) of it.

    Args:
        log_density: On all of R^d, in the coordinates of the draws (a positive number as its logarithm).
        draws: (s, d), independent or nearly so; their number is what the allowance takes their error from.
        names: Of the d numbers.
    """
    x = draws.detach().double()
    names = names or tuple(f"q[{i + 1}]" for i in range(x.shape[1]))
    model = Model(names, x.shape[1], log_density, lambda q: q, lambda values: values)
    return Target(model, x.mean(0), x.std(0), 1 / len(x), x)


def folder() -> Path:
    if "BAYESKIT_POSTERIORDB" not in os.environ:
        raise ValueError("set BAYESKIT_POSTERIORDB to a folder with posteriordb, or the part of it that is wanted")
    return Path(os.environ["BAYESKIT_POSTERIORDB"])


def find(kind: str, name: str) -> Path:
    """The file of a name, zipped or not, at any of the places where this kind of file may be."""
    tried = [folder() / place / f"{name}{end}" for place in PLACES[kind] for end in (".json.zip", ".json")]
    for path in tried:
        if path.exists():
            return path
    raise FileNotFoundError(f"no {kind} of {name!r}: looked for {', '.join(str(path) for path in tried)}")


def read(path: Path):
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def parts(name: str) -> tuple[str, str, str]:
    """The names of a posterior's data, model and reference draws, as its own file has them or else as its name says."""
    data, _, model = name.partition("-")
    try:
        entry = read(find("posteriors", name))
    except FileNotFoundError:
        return data, model, name
    return entry["data_name"], entry["model_name"], entry.get("reference_posterior_name") or name


def reference_draws(name: str, names: tuple[str, ...]) -> Tensor | None:
    """The draws of the parameters, chains one after the other, (s, k); None if the folder has none."""
    try:
        chains = read(find("draws", name))
    except FileNotFoundError:
        return None
    missing = [key for key in names if key not in chains[0]]
    if missing:
        raise ValueError(f"the draws of {name!r} are of {list(chains[0])} and lack {missing}, which the model has")
    return torch.stack([torch.cat([numbers(chain[key]) for chain in chains]) for key in names], 1)


def exact_moments(name: str) -> tuple[Tensor, Tensor] | None:
    """Exact means and standard deviations, (k,) each, if `summaries/*.json` have them."""
    for path in (folder() / "summaries").glob("*.json"):
        entry = json.loads(path.read_text()).get(name, {})
        entry = entry.get("exact_by_2d_quadrature", entry)
        if "sd" in entry:
            return numbers(entry["mean"]), numbers(entry["sd"])
    return None


def stein(target: Target, q: Tensor, per_draw: float = 1.0) -> float:
    """The largest |z| of `E[d log p] = 0` and `E[(q_i - E q_i) d_i log p] = -1` over draws (s, d).

    Args:
        target: What the draws should come from.
        q: The draws.
        per_draw: Effective draws a draw.
    """
    points = q.detach().requires_grad_()
    slopes = torch.autograd.grad(target.model.log_density(points).sum(), points)[0]
    terms = torch.cat([slopes, (q - q.mean(0)) * slopes + 1], dim=1)
    return (terms.mean(0).abs() / (terms.std(0) / math.sqrt(len(q) * per_draw))).max().item()
