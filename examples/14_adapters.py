"""Adapters on a frozen transformer: a posterior over a few hundred weights of a network that takes tokens and a mask.

A small transformer learns one task by plain torch. It is then frozen, low-rank adapters are put on its feed-forward
layers, and only they and a new head are learnt for a second task, of which there are few examples. The printed
numbers are the learnt fraction of the weights, and the accuracy and negative log-likelihood of three methods.
"""

import torch
from torch import nn

from bayeskit import BNNClassifier, bnn, metrics
from bayeskit.core.optimize import Training


class Transformer(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.embedding = nn.Embedding(20, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(16, classes)

    def forward(self, input_ids, attention_mask):
        hidden = self.encoder(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        weights = attention_mask.unsqueeze(-1)
        return self.head((hidden * weights).sum(1) / weights.sum(1))


class LowRank(nn.Module):
    """`W x + b + B A x` with W and b frozen."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.empty(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        self.reset_parameters()

    def reset_parameters(self):  # called for each member of an ensemble
        nn.init.normal_(self.down, std=self.down.shape[1] ** -0.5)
        nn.init.normal_(self.up, std=0.1)

    @property
    def weight(self):  # read by torch's encoder layer
        return self.base.weight

    def forward(self, x):
        return self.base(x) + x @ self.down.mT @ self.up.mT


def sentences(n, task):
    """Sentences of 4 to 10 tokens: task 0 asks which of three tokens comes most often, task 1 whether high ones do."""
    tokens, length = torch.randint(1, 20, (n, 10)), torch.randint(4, 11, (n, 1))
    mask = (torch.arange(10) < length).long()
    tokens = tokens * mask
    counts = torch.stack([((tokens % 3 == r) & (tokens > 0)).sum(1) for r in range(3)], 1)
    label = counts.argmax(1) if task == 0 else ((tokens > 10).sum(1) > (mask.sum(1) / 2)).long()
    return {"input_ids": tokens, "attention_mask": mask}, label


torch.manual_seed(0)
x, y = sentences(1000, task=0)
network = Transformer(3)
optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
for _ in range(60):
    loss = nn.functional.cross_entropy(network(**x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"first task: loss {loss.item():.3f}")

network.requires_grad_(False)
layer = network.encoder.layers[0]
layer.linear1, layer.linear2 = LowRank(layer.linear1), LowRank(layer.linear2)
network.head = nn.Linear(16, 1)
learnt = sum(p.numel() for p in network.parameters() if p.requires_grad)
print(f"second task: {learnt} of {sum(p.numel() for p in network.parameters())} weights are learnt")

(x, y), (x_test, y_test) = sentences(150, task=1), sentences(1000, task=1)
training = Training(lr=2e-2, max_epochs=40, batch_size=32, patience=10, validation_fraction=0.2)
for name, inference in {
    "MAP": bnn.MAP(training=training),
    "Laplace, all adapters": bnn.Laplace(subset="all", training=training),
    "ensemble": bnn.DeepEnsemble(3, training=training),
}.items():
    model = BNNClassifier(network, inference=inference, random_state=0).fit(x, y)
    p = model.predict_proba(x_test)
    print(
        f"{name:22s} accuracy {model.score(x_test, y_test):.3f}"
        f"   negative log-likelihood {metrics.negative_log_likelihood(p, y_test.numpy()):.3f}"
    )
