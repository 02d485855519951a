# %% [markdown]
# # Avalanche trains, the previous posterior is the prior
#
# Is a digit odd? Digits 0 to 4 are learnt first, and then 5 to 9 without them. A network trained without
# a prior forgets. With the plugin its loss has the posterior of the first experience as a prior: online Laplace.

# %%
import warnings

import torch
from sklearn.datasets import load_digits
from torch import nn

from bayeskit import bnn
from bayeskit.core.likelihood import Categorical

for operator in ("nms", "qnms"):  # torchvision asks for them at its import, and has none beside a torch without CUDA
    torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what the requirements of Avalanche say when they are imported
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.training.supervised import Naive

    from bayeskit.integrations.avalanche import PosteriorPlugin

# %%
X, digits = (torch.tensor(part) for part in load_digits(return_X_y=True))
X, odd = X.float() / 16, digits % 2
train = torch.rand(len(X), generator=torch.Generator().manual_seed(0)) < 0.6
parts = [digits < 5, digits >= 5]


def experience(part):
    pairs = torch.utils.data.TensorDataset(X[train & part], odd[train & part])
    pairs.targets = odd[train & part].tolist()
    return as_classification_dataset(pairs)


stream = benchmark_from_datasets(train=[experience(part) for part in parts]).train_stream

# %%
settings = {"criterion": nn.CrossEntropyLoss(), "train_mb_size": 100, "train_epochs": 20, "evaluator": None}
inference = bnn.Laplace(subset="all", structure="full", prior_precision=1.0, pretrained=True)
for name in ("plain", "posterior"):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 2))
    plugin = PosteriorPlugin(network, Categorical(2), inference)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    strategy = Naive(model=network, optimizer=optimizer, plugins=[plugin] if name == "posterior" else [], **settings)
    for step, today in enumerate(stream):
        strategy.train(today)
        with torch.no_grad():
            p = plugin.predictive(X).probs if name == "posterior" else network(X).softmax(-1)
        right = (p.argmax(-1) == odd).double()
        shares = [f"{right[part & ~train].mean():.2f}" for part in parts[: step + 1]]
        print(f"{name:10s} after experience {step + 1}: accuracy on each so far", *shares)
