"""Networks as users write them."""

import torch
from torch import nn


def seeded(build, *arguments, seed=0):
    """A module built with its layers' starting values fixed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(*arguments)


class Convolutional(nn.Module):
    """Images (n, 1, 8, 8) to k outputs, with BatchNorm, dropout and an in-place activation, in float32."""

    def __init__(self, outputs=3, *, normalize=True):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if normalize else nn.Identity()
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 4, 3, stride=2)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4 * 3 * 3, outputs)

    def forward(self, x):
        hidden = self.act(self.norm(self.first(x)))
        hidden = self.act(self.second(hidden))
        return self.head(self.drop(hidden.flatten(1)))


class Recursive(nn.Module):
    """Control flow that looks at the values: torch.func cannot follow it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.head = nn.Linear(2, 1)

    def forward(self, x):
        x = torch.tanh(self.layer(x))
        if x.sum() > 0:
            x = 2 * x
        return self.head(x)


def images(generator, n=60, outputs=3):
    """Noise images with a bright column, and the column as label."""
    labels = torch.randint(0, outputs, (n,), generator=generator)
    x = 0.3 * torch.randn(n, 1, 8, 8, generator=generator)
    x[torch.arange(n), :, :, labels] += 1
    return x, labels
