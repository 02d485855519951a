"""Networks as users write them, and small data sets."""

from types import SimpleNamespace

import torch
from torch import nn

from bayeskit.core.types import Data


def seeded(build, *arguments, seed=0):
    """A module built with fixed initial values of its layers."""
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
    """Control flow that depends on values, which torch.func does not support."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.head = nn.Linear(2, 1)

    def forward(self, x):
        x = torch.tanh(self.layer(x))
        if x.sum() > 0:
            x = 2 * x
        return self.head(x)


class LowRank(nn.Module):
    """A frozen linear layer plus an adapter, `W x + b + B (A x)`, whose B starts at zero."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        options = {"dtype": base.weight.dtype}
        self.down = nn.Parameter(torch.empty(rank, base.in_features, **options))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, **options))
        self.register_buffer("scaling", torch.tensor(0.5, **options))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.down, std=self.down.shape[1] ** -0.5)
        nn.init.zeros_(self.up)

    def forward(self, x):
        return self.base(x) + self.scaling * (x @ self.down.mT) @ self.up.mT


class Adapted(nn.Module):
    """A frozen network with trainable adapters."""

    def __init__(self, inputs=4, outputs=1, dtype=None):
        super().__init__()
        self.first = LowRank(nn.Linear(inputs, 6, dtype=dtype))
        self.last = LowRank(nn.Linear(6, outputs, dtype=dtype))

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


class TokenClassifier(nn.Module):
    """A transformer over token ids and a mask, with an object for output that holds the logits, like Hugging Face."""

    def __init__(self, outputs=3, dtype=None):
        super().__init__()
        self.classifier = nn.Linear(8, outputs, dtype=dtype)  # registered first, runs last
        self.embedding = nn.Embedding(11, 8, padding_idx=0, dtype=dtype)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, dtype=dtype)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, input_ids, attention_mask=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.encoder(self.embedding(input_ids), src_key_padding_mask=mask == 0)
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1)
        return SimpleNamespace(logits=self.classifier(pooled), hidden_states=hidden)


class Residual(nn.Module):
    """A residual network whose last layer is registered first."""

    def __init__(self, inputs=4, outputs=1, dtype=None):
        super().__init__()
        self.head = nn.Linear(6, outputs, dtype=dtype)
        self.inner = nn.Linear(6, 6, dtype=dtype)
        self.lift = nn.Linear(inputs, 6, dtype=dtype)

    def forward(self, x):
        hidden = self.lift(x)
        return self.head(hidden + torch.tanh(self.inner(hidden)))


def sentences(generator, n=40, length=6):
    """Token ids of sentences of several lengths with their masks, and the class of the first token."""
    ids = torch.randint(1, 11, (n, length), generator=generator)
    lengths = torch.randint(2, length + 1, (n, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}, ids[:, 0] % 3


def lines(generator, n=60, dtype=torch.float64):
    """A noisy linear function of two features."""
    x = torch.randn(n, 2, generator=generator, dtype=dtype)
    return Data(x, x.sum(-1, keepdim=True) + 0.1 * torch.randn(n, 1, generator=generator, dtype=dtype))


def images(generator, n=60, outputs=3):
    """Noise images with a bright column, and the column as label."""
    labels = torch.randint(0, outputs, (n,), generator=generator)
    x = 0.3 * torch.randn(n, 1, 8, 8, generator=generator)
    x[torch.arange(n), :, :, labels] += 1
    return x, labels
