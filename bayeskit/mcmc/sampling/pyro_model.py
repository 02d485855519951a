"""A pyro model as a log density for any kernel, many chains at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.func import vmap

from bayeskit.mcmc.base.log_density import Position
from bayeskit.mcmc.hamiltonian.nuts import quiet


class PyroDensity:
    """The log joint density of a pyro model's latent variables, in unconstrained coordinates.

    With `x = t(z)` pyro's transform to a variable's support,

        log p(z) = log p(x, observations) + log |det dt / dz|

    The chains of a position are evaluated together by `torch.func.vmap`; a model whose control flow depends on
    values is evaluated one chain after the other.

    Args:
        model: A function with `pyro.sample` statements, observations given by `obs=` or `pyro.condition`. Latent
            variables must be continuous, the same in every run, and have supports that do not depend on each other.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Raises:
        ValueError: A latent variable is discrete, a plate is subsampled, or nothing is latent.

    Examples:
        >>> from bayeskit import mcmc
        >>> with quiet(torch.Generator()):
        ...     import pyro
        >>> def model(y):
        ...     scale = pyro.sample("scale", pyro.distributions.Exponential(1.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", pyro.distributions.Normal(0.0, scale), obs=y)
        >>> g, density = torch.Generator().manual_seed(0), PyroDensity(model, torch.tensor([1.0, -2.0, 3.0]))
        >>> start = density.start(20, generator=g)
        >>> chain = mcmc.run(mcmc.HMC(), density, start, num_samples=10, burn_in=50, generator=g)
        >>> density.constrained(chain.samples)["scale"].min() > 0
        tensor(True)
    """

    def __init__(self, model: Callable[..., Any], *args: Any, **kwargs: Any):
        self.model, self.args, self.kwargs = model, args, kwargs
        with quiet(torch.Generator().manual_seed(0)):
            latent = _latent(self._trace({}))
            self.transforms = {name: biject_to(node["fn"].support) for name, node in latent.items()}
            self.like = {name: self.transforms[name].inv(node["value"]).detach() for name, node in latent.items()}

    def __call__(self, position: Position) -> Tensor:
        """Log densities of c positions, unconstrained leaves (c, *shape): (c,)."""
        leaves = [position[name] for name in self.transforms]
        with quiet(None):
            if len(leaves[0]) == 1:
                return self._one(*(leaf[0] for leaf in leaves)).unsqueeze(0)
            try:
                return vmap(self._one, randomness="different")(*leaves)
            except RuntimeError:  # control flow that depends on values: one chain at a time
                return torch.stack([self._one(*chain) for chain in zip(*leaves, strict=True)])

    def _one(self, *values: Tensor) -> Tensor:
        constrained, total = {}, torch.zeros((), dtype=values[0].dtype, device=values[0].device)
        for (name, transform), z in zip(self.transforms.items(), values, strict=True):
            constrained[name] = transform(z)
            total = total + transform.log_abs_det_jacobian(z, constrained[name]).sum()
        return total + self._trace(constrained).log_prob_sum()

    def _trace(self, values: dict[str, Tensor]) -> Any:
        from pyro import poutine

        conditioned = poutine.condition(self.model, values)
        return poutine.trace(conditioned).get_trace(*self.args, **self.kwargs)

    def start(self, num_chains: int, *, generator: torch.Generator) -> Position:
        """Uniform draws from (-2, 2) for every coordinate, leaves (c, *shape), as in Stan and pyro."""
        found = {}
        for name, leaf in self.like.items():
            uniform = torch.rand(
                (num_chains, *leaf.shape), generator=generator, device=generator.device, dtype=leaf.dtype
            )
            found[name] = (4 * uniform - 2).to(leaf.device)
        return found

    def constrained(self, samples: Position) -> Position:
        """The model's own variables for samples with leaves (..., *shape), such as `chain.samples`."""
        return {name: self.transforms[name](leaf) for name, leaf in samples.items()}


def _latent(trace: Any) -> dict[str, Any]:
    """The sites to sample, or an error that names what cannot be sampled."""
    from pyro.poutine.util import site_is_subsample

    found = {}
    for name, node in trace.nodes.items():
        if node["type"] != "sample":
            continue
        if site_is_subsample(node):
            if len(node["value"]) < node["fn"].size:
                raise ValueError(f"plate {name!r} takes a part of its rows at random; give it all of them.")
        elif not node["is_observed"]:
            if node["fn"].support.is_discrete:
                raise ValueError(f"latent variable {name!r} is discrete; sum it out, or give its value by `obs=`.")
            found[name] = node
    if not found:
        raise ValueError("the model has no latent variable to sample: every `pyro.sample` has an `obs=`.")
    return found
