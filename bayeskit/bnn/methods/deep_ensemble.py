"""Deep ensembles: several networks trained from different random initial values."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.func import vmap

from bayeskit.bnn.networks.builders import reinitialize
from bayeskit.bnn.networks.functional import call, flatten, frozen, parameters, unflatten
from bayeskit.bnn.pushforward.bayes_net import BayesNet, MonteCarlo
from bayeskit.bnn.training.map_training import QUICK_TRAINING, prepare
from bayeskit.bnn.training.training_pass import TrainingPass
from bayeskit.bnn.training.validation_search import (
    ValidationSearch,
    calibrate,
    candidates,
    check_precision,
    enough_rows,
    with_held_out,
)
from bayeskit.bnn.weights.weight_posterior import SampledWeights
from bayeskit.core import checks, generators, operators
from bayeskit.core.inference import Fit, Inference, Kind
from bayeskit.core.inputs import Batch
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import History, Training, minimize
from bayeskit.core.posterior import Posterior, SampledValues
from bayeskit.core.types import Data, Params
from bayeskit.core.validation_plan import divisions, grouped, planned

DEFAULT_TRAINING = Training(lr=2e-2, max_epochs=300, batch_size=128, patience=10, validation_fraction=0.2)
"""Adam with early stopping; every member holds out another fifth of the data, so that five see all of it."""


@dataclass(eq=False, repr=False)
class DeepEnsemble(Inference):
    """Networks trained from different random initial values; the posterior is the uniform distribution over them.

    Each member maximizes `log p(y | f(.; w)) + log p(w)`. The data are split into folds and each member holds out one
    of them: together the members see all data, all folds together choose the epoch at which training stops, and the
    likelihood's own parameters are fitted to each fold's predictions by the member that held it out. Members share
    nothing but that epoch, the order of the mini-batches and the parameters of the likelihood.

    Args:
        num_members: Number of networks.
        training: Settings of the loop; None for Adam with early stopping, folds of a fifth of the data.
        prior_precision: A factor on the prior's precision, or "validation": 1, then 0.1 and 0.01 as long as the
            held-out log-likelihood gains. A prior that is the posterior of earlier data is used unchanged.
        together: Train all members in one pass (`torch.func.vmap`); a network that does not support it (BatchNorm,
            control flow that depends on values) is trained in a loop over members, with the same result.

    References:
        Lakshminarayanan, Pritzel, Blundell. Simple and scalable predictive uncertainty estimation using deep
        ensembles. NeurIPS 2017.

    >>> from bayeskit.bnn import gaussian_prior
    >>> from bayeskit.core.likelihood import Gaussian
    >>> x, g = torch.linspace(-1, 1, 40)[:, None], torch.Generator().manual_seed(0)
    >>> prior, inference = gaussian_prior(nn.Linear(1, 1)), DeepEnsemble(num_members=3, training=Training(max_epochs=9))
    >>> fit = inference.infer(prior, Gaussian(), Data(x, 2 * x), generator=g)
    >>> fit.posterior(x).draws.shape
    torch.Size([3, 40, 1])
    """

    num_members: int = 5
    training: Training | None = None
    prior_precision: float | str = "validation"
    together: bool = True

    priors: ClassVar[tuple[type[Posterior], ...]] = (BayesNet,)
    kind: ClassVar[Kind] = "draws"
    quick: ClassVar[Mapping[str, Any]] = {"num_members": 3, "training": QUICK_TRAINING}

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """Train the members; the posterior is the uniform distribution over them."""
        self.check(prior, likelihood, data)
        checks.positive(self.num_members, name="num_members", integer=True)
        training = DEFAULT_TRAINING if self.training is None else self.training
        training.validate()
        check_precision(self.prior_precision, "validation")
        weights, network, data = prepare(prior, data)
        data, likelihood = planned(data, training.validation_split), copy.deepcopy(likelihood)
        with operators.recording() as notes:
            members = _Members(network, list(weights.mean), data, self.num_members, generator=generator)
            together = self.together and members.can_vmap(data.x[:2])
            searching = isinstance(self.prior_precision, str) and not weights.scale_known
            if searching:
                training = with_held_out(training, DEFAULT_TRAINING.validation_fraction)
            folds = _Folds.split(data, training, self.num_members, generator=generator)
            search = ValidationSearch(
                training,
                replace(data, weights=folds.weights, validation=None),
                folds.held_out,
                candidates(self.prior_precision, search=searching and folds.held_out is not None),
                enough=enough_rows(data),
            )
            own, state = search.learnt(likelihood), [members.flat, *members.buffers.values()]

            def score(held_out: Data) -> Tensor:
                return likelihood.log_prob(members.held_out_outputs(held_out, folds.sizes), held_out.y).detach()

            def run(settings: Training, factor: float) -> History:
                density = weights.sharpened(factor)

                def loss(batch: Data) -> Tensor:
                    f = members.outputs(batch.x[:], together=together)  # (M, b, k)
                    totals = _totals(likelihood.log_prob(f, batch.y), batch)
                    return -(totals + density.log_density(members.flat)).sum()

                return minimize(
                    loss,
                    [members.flat, *own],
                    search.train_data,
                    settings,
                    generator=generator,
                    description="ensemble",
                    validation=search.validation(score),
                    buffers=members.buffers.values(),
                )

            history, factor = search.run(run, score, [*state, *own])
            if search.held_out is not None and own:
                outputs = members.held_out_outputs(search.held_out, folds.sizes)
                calibrate(likelihood, SampledValues(outputs.unsqueeze(0)), search.held_out)
        draws = SampledWeights(unflatten(members.flat.detach(), members.like), members.buffers)
        posterior = BayesNet(frozen(members.network), draws, MonteCarlo())
        diagnostics = {"trained together": together, "prior precision": factor, **notes}
        diagnostics["held-out data"] = search.num_held_out
        return Fit(posterior, likelihood, history=history, diagnostics=diagnostics)


class _Members:
    """The stacked weights of M networks, and their outputs."""

    def __init__(
        self, network: nn.Module, names: list[str], data: Data, num_members: int, *, generator: torch.Generator
    ):
        starts = [reinitialize(network, generator=generators.spawn(generator)) for _ in range(num_members)]
        self.network = network
        self.like = parameters(network, names)
        self.flat = torch.stack([flatten(parameters(start, names), self.like) for start in starts]).requires_grad_()
        self._pass = TrainingPass(network, data, generator=generator)
        self.buffers: Params = {
            name: torch.stack([dict(start.named_buffers())[name] for start in starts])
            for name, _ in network.named_buffers()
            if self._pass.normalizes
        }

    def can_vmap(self, x: Batch) -> bool:
        """Whether one pass can run all the members."""
        if self.buffers:
            return False
        try:
            with torch.no_grad():
                self.outputs(x, together=True)
        except RuntimeError:
            return False
        return True

    def outputs(self, x: Batch, *, together: bool) -> Tensor:
        """Outputs in training mode, (M, b, k)."""
        with self._pass(len(x)):
            if together:
                run = vmap(lambda w: call(self.network, unflatten(w, self.like), x), randomness="different")
                return run(self.flat)
            return torch.stack([self._member(i, x) for i in range(len(self.flat))])

    def held_out_outputs(self, held_out: Data, sizes: list[int]) -> Tensor:
        """Outputs for held-out data, each by the member that has not seen it, (m, k)."""
        self.network.eval()
        with torch.no_grad():
            return torch.cat([self._member(i, x) for i, x in enumerate(held_out.x[:].split(sizes))])

    def _member(self, i: int, x: Batch) -> Tensor:
        buffers = {name: value[i] for name, value in self.buffers.items()}
        return call(self.network, {**unflatten(self.flat[i], self.like), **buffers}, x)


@dataclass(frozen=True, eq=False)
class _Folds:
    """The data that each member holds out.

    Args:
        held_out: The held-out data, member after member; None if nothing is held out.
        sizes: How many of them each member has.
        weights: The case weight of each observation for each member, (n, M), zero where it is held out.
    """

    held_out: Data | None
    sizes: list[int]
    weights: Tensor

    @classmethod
    def split(cls, data: Data, training: Training, num_members: int, *, generator: torch.Generator) -> Self:
        """Independent divisions of the data, assigned to the members in turn."""
        weights = torch.ones(len(data), dtype=torch.get_default_dtype(), device=data.y.device)
        weights = (weights if data.weights is None else data.weights).unsqueeze(-1).repeat(1, num_members)
        found = divisions(data, training.validation_fraction, generator=generator) if enough_rows(data) else None
        if not found:
            return cls(None, [], weights)
        given = [found.pairs[i % len(found)] for i in range(num_members)]
        for i, (trained, _) in enumerate(given):
            left_out = torch.ones(len(data), dtype=torch.bool, device=weights.device)
            left_out[trained] = False
            weights[left_out, i] = 0
        held_out = found.source.rows(torch.cat([rows for _, rows in given]))
        return cls(replace(held_out, validation=grouped(held_out)), [len(rows) for _, rows in given], weights)


def _totals(terms: Tensor, batch: Data) -> Tensor:
    """The log-likelihood of each member's training data on the scale of all the data: (M, b) to (M,)."""
    assert batch.weights is not None  # (b, M)
    return replace(batch, weights=None).total(terms * batch.weights.mT.to(terms.dtype))
