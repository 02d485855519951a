# %% [markdown]
# # skorch trains, a posterior predicts
#
# How far will a patient's diabetes have come in a year? skorch trains a network, with its schedules and its early
# stopping, and its prediction is a number. A Laplace approximation at the trained weights gives a distribution.

# %%
import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetRegressor
from skorch.callbacks import EarlyStopping
from torch import nn

from bayeskit import bnn
from bayeskit.integrations.skorch import BayesianNetRegressor

X, y = load_diabetes(return_X_y=True)
X, X_test, y, y_test = train_test_split(X, y[:, None], train_size=300, random_state=0)
inputs, target = StandardScaler().fit(X), StandardScaler().fit(y)
X, X_test = (inputs.transform(part).astype("float32") for part in (X, X_test))
y = target.transform(y).astype("float32")


class Network(nn.Sequential):
    def __init__(self, hidden=20):
        super().__init__(nn.Linear(10, hidden), nn.Tanh(), nn.Linear(hidden, 1))


# %%
settings = {"max_epochs": 100, "lr": 0.05, "callbacks": [EarlyStopping(patience=5)], "verbose": 0}
torch.manual_seed(0)
plain = NeuralNetRegressor(Network, **settings).fit(X, y)
torch.manual_seed(0)
net = BayesianNetRegressor(Network, **settings, random_state=0).fit(X, y)
mean, std = (part * target.scale_ for part in net.predict(X_test, return_std=True))
off = np.abs(mean + target.mean_ - y_test)
alone = np.abs(target.inverse_transform(plain.predict(X_test)) - y_test).mean()
print(f"mean error: {alone:.1f} by skorch alone after {len(plain.history)} epochs, {off.mean():.1f} by the posterior")
share, width = (off < 1.645 * std).mean(), 2 * 1.645 * std.mean()
print(f"{share:.2f} of the patients lie in their intervals of 0.90, which are {width:.0f} wide")

# %% [markdown]
# `inference` is one more argument of the net, so a grid search reaches it as it reaches those of the module.

# %%
methods = [bnn.Laplace(pretrained=True), bnn.Laplace(subset="all", pretrained=True)]
search = GridSearchCV(net, {"inference": methods, "module__hidden": [5, 20]}, cv=3, scoring="neg_mean_absolute_error")
search.fit(X, y)
for score, setting in zip(search.cv_results_["mean_test_score"], search.cv_results_["params"], strict=True):
    print(f"{-score * target.scale_[0]:.1f} with {setting['module__hidden']:2d} units and {setting['inference']}")
