# %% [markdown]
# # BoTorch with a posterior of this library
#
# Eight evaluations of Branin's function, then sixteen more in batches of two that BoTorch's expected improvement
# chooses. The model is any fitted regressor, here an exact process; the guide covers networks and few data points.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from botorch.acquisition import qLogExpectedImprovement
from botorch.optim import optimize_acqf
from botorch.test_functions import Branin
from botorch.utils.sampling import draw_sobol_samples

from bayeskit import GPRegressor
from bayeskit.integrations.botorch import as_model

warnings.simplefilter("ignore")  # of searches that end at their limit of steps
problem = Branin(negate=True).double()
X = draw_sobol_samples(problem.bounds, n=1, q=8, seed=1)[0]


def observe(x):
    return problem(x)


# %% [markdown]
# The loop is fit, wrap, optimize the acquisition function, evaluate. Inputs and outputs keep their units.

# %%
y = observe(X)
for batch in range(8):
    print(f"{len(X)} evaluations: {problem.optimal_value - y.max().item():.3f} short of the maximum")
    model = as_model(GPRegressor(random_state=0).fit(X.numpy(), y.numpy()))
    acquisition = qLogExpectedImprovement(model, best_f=y.max())
    chosen, _ = optimize_acqf(
        acquisition, problem.bounds, q=2, num_restarts=2, raw_samples=32, options={"maxiter": 30, "seed": batch}
    )
    X, y = torch.cat([X, chosen]), torch.cat([y, observe(chosen)])
print(f"{len(X)} evaluations: {problem.optimal_value - y.max().item():.3f} short of the maximum")

# %%
regret = problem.optimal_value - np.maximum.accumulate(y.numpy())
plt.semilogy(1 + np.arange(len(y)), regret)
plt.axvline(8, color="gray", linestyle=":", label="here BoTorch takes over")
plt.xlabel("evaluations")
plt.ylabel("regret")
plt.legend(frameon=False)
plt.savefig("with_botorch.png", dpi=120)
plt.close("all")
