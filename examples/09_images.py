"""Images from a torch `Dataset`, a convolutional network, and out-of-distribution detection.

The network learns the digits 0 to 4. The printed AUROC is that of its uncertainty for detecting the digits 5 to 9: 0.5
is chance, 1 is perfect.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

from bayeskit import BNNClassifier, bnn, metrics


class Digits(Dataset):
    """8 x 8 pictures as (1, 8, 8) tensors with their labels."""

    def __init__(self, low, high, rows=slice(None)):
        images, labels = load_digits(return_X_y=True)
        chosen = (labels >= low) & (labels <= high)
        self.images = torch.tensor(images[chosen][rows] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        self.labels = labels[chosen][rows]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], self.labels[i]


def network(in_features, out_features):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, out_features),
    )


train, test, outside = Digits(0, 4, slice(0, 500)), Digits(0, 4, slice(500, None)), Digits(5, 9)
for inference in (bnn.MAP(), bnn.Laplace(), bnn.DeepEnsemble()):
    model = BNNClassifier(network, inference=inference, random_state=0).fit(train)
    accuracy = (model.predict(test) == test.labels).mean()
    seen, unseen = (np.asarray(model.predictive(d).total) for d in (test, outside))
    print(
        f"{type(inference).__name__:12s} accuracy {accuracy:.3f}"
        f"   AUROC of the entropy against unseen digits {metrics.ood_auroc(seen, unseen):.3f}"
    )
