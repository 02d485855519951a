"""One pass of a network in training mode: what BatchNorm and dropout need at every step of a training loop."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bayeskit.bnn.networks.functional import is_random
from bayeskit.bnn.networks.layers import normalizes, set_training
from bayeskit.core import generators
from bayeskit.core.types import Data


class TrainingPass:
    """A context in which a network runs on a mini-batch in training mode.

    A batch of one sample runs in evaluation mode where BatchNorm layers are trained: it has no variance to normalize
    by. Dropout draws from the generator given.

    Args:
        network: Its mode is changed in place.
        data: Some inputs of it are used to find out whether the network draws random numbers.
        names: Parameters that are trained; None for those that require a gradient.
        generator: Source of what the network draws.
    """

    def __init__(
        self, network: nn.Module, data: Data, *, names: Iterable[str] | None = None, generator: torch.Generator
    ):
        self.network, self.names = network, None if names is None else list(names)
        self.normalizes = normalizes(network, self.names)
        self.generator = generator if is_random(network, data.x[:2]) else None

    @contextmanager
    def __call__(self, num_rows: int) -> Iterator[None]:
        """Training mode for a batch of this many samples; the mode is left as it is at the end."""
        training = not self.normalizes or num_rows > 1
        if self.network.training != training:
            set_training(self.network, training, names=self.names)
        with _seeded(self.generator):
            yield


@contextmanager
def _seeded(generator: torch.Generator | None) -> Iterator[None]:
    """The global generator seeded from this one within the context; nothing for None."""
    if generator is None:
        yield
    elif torch.cuda.is_initialized():
        with generators.seeded(generator):
            yield
    else:  # the same numbers; `torch.manual_seed` would format a stack trace for uninitialized devices
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(generators.seed(generator))
        try:
            yield
        finally:
            torch.set_rng_state(state)
