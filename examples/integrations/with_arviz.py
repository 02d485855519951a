# %% [markdown]
# # Draws for ArviZ
#
# How much does each dose of a drug raise the odds of recovery? A logistic regression of three coefficients, sampled by
# NUTS in four chains. ArviZ has the summary, the diagnostics and the figure.

# %%
import math
import warnings

import matplotlib.pyplot as plt
import torch

from bayeskit import mcmc

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ArviZ speaks of its own future when it is imported
    import arviz

dose = torch.linspace(-1.5, 1.5, 6).repeat_interleave(10)
age = torch.linspace(-1.5, 1.5, 10).repeat(6)
logits = torch.stack([torch.ones(60), dose, age], 1) @ torch.tensor([0.5, 1.5, -1.0])
generator = torch.Generator().manual_seed(0)
recovered = torch.bernoulli(logits.sigmoid(), generator=generator)


def log_density(q):
    """Of positions with chains leading, up to a constant: four chains at once."""
    logits = q["baseline"][:, None] + q["dose"][:, None] * dose + q["age"][:, None] * age
    likelihood = -torch.nn.functional.softplus(torch.where(recovered > 0, -logits, logits)).sum(-1)
    return likelihood - sum(leaf.square() for leaf in q.values()) / (2 * 2.5**2)


# %%
start = {name: 0.1 * torch.randn(4, generator=generator) for name in ("baseline", "dose", "age")}
chain = mcmc.run(mcmc.NUTS(), log_density, start, num_samples=250, burn_in=100, generator=generator)
found = mcmc.inference_data(chain)
print(arviz.summary(found)[["mean", "sd", "hdi_3%", "hdi_97%", "ess_bulk", "r_hat"]])
print("divergent steps:", int(found.sample_stats["diverging"].sum()))

# %% [markdown]
# The probability that the drug helps at all, and where each coefficient lies.

# %%
slope = found.posterior["dose"].values.ravel()
print(f"P(dose > 0) = {(slope > 0).mean():.3f}; a unit of dose multiplies the odds by {math.exp(slope.mean()):.1f}")
axes = arviz.plot_forest(found, combined=True, figsize=(6, 2.5))
axes[0].figure.savefig("with_arviz.png", dpi=120, bbox_inches="tight")
plt.close("all")
