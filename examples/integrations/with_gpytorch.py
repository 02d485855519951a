# %% [markdown]
# # GPyTorch models in and out
#
# A model that GPyTorch trained, in your own loop, comes in as it is. It then has what every posterior of this library
# has: functions that can be evaluated anywhere, further data without another training. The joint
# distribution at some inputs goes back out as GPyTorch's own distribution.

# %%
import gpytorch
import matplotlib.pyplot as plt
import torch

from bayeskit import gp
from bayeskit.core.types import Data


class Model(gpytorch.models.ExactGP):
    def __init__(self, x, y, likelihood):
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5))

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


# %%
generator = torch.Generator().manual_seed(0)
x = 10 * torch.rand(40, 1, generator=generator, dtype=torch.float64)
y = x[:, 0].sin() + 0.1 * torch.randn(40, generator=generator, dtype=torch.float64)
likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
model = Model(x, y, likelihood).double()
objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
for _ in range(60):
    optimizer.zero_grad()
    loss = -objective(model(x), y)
    loss.backward()
    optimizer.step()

# %%
posterior, noise = gp.from_gpytorch(model, likelihood), gp.likelihood_from_gpytorch(likelihood)
grid = torch.linspace(-1, 13, 200, dtype=torch.float64)[:, None]
functions = posterior.sample_functions(100, generator=generator)  # the same functions at every call
within = torch.linspace(0, 10, 200, dtype=torch.float64)[:, None]
lows = within[functions(within)[..., 0].argmin(-1), 0]
print(f"the lowest point within the data lies at {lows.mean():.2f}, give or take {lows.std():.2f}")
later = Data(torch.tensor([[12.0]], dtype=torch.float64), torch.tensor([[-0.5]], dtype=torch.float64))
more = gp.Exact(learn=False).infer(posterior, noise, later, generator=generator).posterior
before, after = (process(later.x + 0.5).variance.sqrt().item() for process in (posterior, more))
print(f"std of the function at 12.5: {before:.2f}, and after one more row at 12 {after:.2f}")
normal = more(grid).to_gpytorch()  # and out: a gpytorch MultivariateNormal
print(f"{type(normal).__name__} over {len(grid)} inputs, log density of its mean {normal.log_prob(normal.mean):.0f}")
plt.plot(grid, functions(grid)[:20, :, 0].mT, color="tab:blue", alpha=0.3)
plt.plot(x, y, "k.")
plt.savefig("with_gpytorch.png", dpi=120)
plt.close("all")
