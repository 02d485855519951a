"""Deep ensembles: several networks from random starts, trained side by side."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.func import vmap

from bayeskit.bnn.networks.builders import reinitialize
from bayeskit.bnn.networks.functional import call, flatten, frozen, is_random, parameters, unflatten
from bayeskit.bnn.networks.layers import normalizes, set_training
from bayeskit.bnn.pushforward.bayes_net import BayesNet, MonteCarlo
from bayeskit.bnn.training.map_training import QUICK_TRAINING, calibrate, prepare, seeded_by
from bayeskit.bnn.training.validation_search import (
    FEWEST_ROWS,
    average,
    candidates,
    check_precision,
    descend,
    holding_out,
)
from bayeskit.bnn.weights.weight_posterior import SampledWeights
from bayeskit.core import checks, generators, operators
from bayeskit.core.inference import Fit, Inference, Kind
from bayeskit.core.inputs import Batch
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import History, Training, minimize
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data, Params

DEFAULT_TRAINING = Training(lr=2e-2, max_epochs=300, batch_size=128, patience=10, validation_fraction=0.2)
"""Adam with early stopping; every member holds out another fifth of the rows."""


@dataclass(eq=False, repr=False)
class DeepEnsemble(Inference):
    """Networks trained from different random starts; the posterior is the uniform law over them.

    Each member maximizes `log p(y | f(.; w)) + log p(w)`. The rows are cut into folds and each member holds out one of
    them: together the members see every row, all folds together choose the epoch at which everyone stops, and the
    likelihood's own parameters are set by rows that the member asked had not seen. Members are independent but for
    that epoch, the order of the mini-batches and the parameters of the likelihood.

    Args:
        num_members: Number of networks.
        training: Settings of the loop; None for Adam with early stopping, folds of a fifth of the rows.
        prior_precision: A factor on the prior's precision, or "validation": 1, then 0.1 and 0.01 as long as the
            held-out log-likelihood gains. A prior that is the posterior of earlier data is taken as it is.
        together: Train all members in one pass (`torch.func.vmap`); a network that does not allow it (BatchNorm,
            control flow that looks at values) is trained in a loop over members, which gives the same numbers.

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
        """Train the members; the posterior is their uniform law."""
        self.check(prior, likelihood, data)
        checks.positive(self.num_members, name="num_members", integer=True)
        training = DEFAULT_TRAINING if self.training is None else self.training
        training.validate()
        check_precision(self.prior_precision, "validation")
        weights, network, data = prepare(prior, likelihood, data)
        with operators.recording() as notes:
            members = _Members(network, list(weights.mean), data.x[:2], self.num_members, generator)
            together = self.together and members.joinable(data.x[:2])
            if isinstance(self.prior_precision, str) and not weights.scale_known:
                training = holding_out(training, DEFAULT_TRAINING.validation_fraction)
            folds = _Folds.cut(data, training, self.num_members, generator=generator)
            likelihood = copy.deepcopy(likelihood)
            own = [p for p in likelihood.parameters() if p.requires_grad] if len(data) >= FEWEST_ROWS else []

            def score() -> Tensor:
                return likelihood.log_prob(members.held_out(folds), folds.unseen.y).detach()

            def run(settings: Training, factor: float) -> History:
                prior_law = weights.sharpened(factor)

                def loss(batch: Data) -> Tensor:
                    f = members.outputs(batch.x[:], together=together)  # (M, b, k)
                    totals = _totals(likelihood.log_prob(f, batch.y), batch)
                    return -(totals + prior_law.log_density(members.flat)).sum()

                return minimize(
                    loss,
                    [members.flat, *own],
                    replace(data, weights=folds.weights),
                    settings,
                    generator=generator,
                    description="ensemble",
                    validation=(lambda: -average(score(), folds.unseen)) if folds.any else None,
                    buffers=members.buffers.values(),
                )

            factors = candidates(self.prior_precision, search=folds.any and not weights.scale_known)
            history, factor = descend(run, score, [members.flat, *own, *members.buffers.values()], training, factors)
            if folds.any and own:
                calibrate(likelihood, members.held_out(folds).unsqueeze(0), folds.unseen)
        law = SampledWeights(unflatten(members.flat.detach(), members.like), members.buffers)
        posterior = BayesNet(frozen(members.network), law, MonteCarlo())
        diagnostics = {"trained together": together, "prior precision": factor, **notes}
        return Fit(posterior, likelihood, history=history, diagnostics=diagnostics)


class _Members:
    """The weights of M networks side by side, and their outputs."""

    def __init__(self, network: nn.Module, names: list[str], x: Batch, num_members: int, generator: torch.Generator):
        starts = [reinitialize(network, generator=generators.spawn(generator)) for _ in range(num_members)]
        self.network = network
        self.like = parameters(network, names)
        self.flat = torch.stack([flatten(parameters(start, names), self.like) for start in starts]).requires_grad_()
        stateful = normalizes(network)
        self.buffers: Params = {
            name: torch.stack([dict(start.named_buffers())[name] for start in starts])
            for name, _ in network.named_buffers()
            if stateful
        }
        self._source = generator if is_random(network, x) else None

    def joinable(self, x: Batch) -> bool:
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
        """Outputs while training, (M, b, k)."""
        set_training(self.network, not self.buffers or len(x) > 1)  # BatchNorm cannot see the spread of one row
        with seeded_by(self._source):
            if together:
                run = vmap(lambda w: call(self.network, unflatten(w, self.like), x), randomness="different")
                return run(self.flat)
            return torch.stack([self._member(i, x) for i in range(len(self.flat))])

    def held_out(self, folds: "_Folds") -> Tensor:
        """Function values at the rows of `folds.unseen`, each by the member that has not seen it, (m, k)."""
        self.network.eval()
        rows = folds.unseen.x[:].split(folds.sizes)
        with torch.no_grad():
            return torch.cat([self._member(i, x) for i, x in enumerate(rows)])

    def _member(self, i: int, x: Batch) -> Tensor:
        buffers = {name: value[i] for name, value in self.buffers.items()}
        return call(self.network, {**unflatten(self.flat[i], self.like), **buffers}, x)


@dataclass(frozen=True, eq=False)
class _Folds:
    """Which rows each member holds out.

    Args:
        unseen: The held-out rows, member after member.
        sizes: How many each member has of them; empty if nothing is held out.
        weights: The case weight of a row for each member, (n, M), zero where it is held out.
    """

    unseen: Data
    sizes: list[int]
    weights: Tensor

    @classmethod
    def cut(cls, data: Data, training: Training, num_members: int, *, generator: torch.Generator) -> Self:
        """Folds of a random order of the rows, given to the members in turn."""
        weights = torch.ones(len(data), dtype=torch.get_default_dtype(), device=data.y.device)
        weights = (weights if data.weights is None else data.weights).unsqueeze(-1).repeat(1, num_members)
        order = torch.randperm(len(data), generator=generator, device=generator.device).to(data.y.device)
        if training.validation_fraction == 0 or len(data) < FEWEST_ROWS:
            return cls(data.rows(order[:0]), [], weights)
        folds = order.tensor_split(max(2, math.floor(1 / training.validation_fraction + 1e-9)))
        given = [folds[i % len(folds)] for i in range(num_members)]
        for i, fold in enumerate(given):
            weights[fold, i] = 0
        return cls(data.rows(torch.cat(given)), [len(fold) for fold in given], weights)

    @property
    def any(self) -> bool:
        """Whether rows are held out."""
        return bool(self.sizes)


def _totals(terms: Tensor, batch: Data) -> Tensor:
    """The log-likelihood of each member's own rows on the scale of all the data: (M, b) to (M,)."""
    assert batch.weights is not None  # (b, M)
    return replace(batch, weights=None).total(terms * batch.weights.mT.to(terms.dtype))
