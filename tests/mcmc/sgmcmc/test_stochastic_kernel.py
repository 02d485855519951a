"""What every kernel of one gradient a step owes, whatever its dynamics."""

from dataclasses import replace

import pytest
import torch

from bayeskit import mcmc

from ..gaussian import PRECISIONS, log_density

KERNELS = [mcmc.SGLD(), mcmc.SGHMC(), mcmc.SGNHT(), mcmc.BAOAB()]  # those that learn units become these
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)


def run(kernel, start, density=log_density, seed=0, **budget):
    settings = {"num_samples": 3, "burn_in": 2, "generator": torch.Generator().manual_seed(seed)} | budget
    return mcmc.run(kernel, density, start, **settings)


@every_kernel
def test_chains_do_not_see_each_other(generator, kernel):
    start = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    changed = torch.cat([start[:1], start[1:] + 5])
    together, again = (run(replace(kernel, lr=0.01), {"x": x}).samples["x"] for x in (start, changed))
    assert torch.equal(together[0], again[0]) and not torch.equal(together[1], again[1])


@every_kernel
def test_nothing_is_changed_in_place(generator, kernel):
    start = {"x": torch.randn(3, 8, generator=generator, dtype=torch.float64)}
    before = start["x"].clone()
    state = kernel.init(start, log_density, generator=generator)
    after, _ = kernel.step(state, log_density, generator=generator)
    kept = after.position["x"].clone()
    kernel.step(after, log_density, generator=generator)
    assert torch.equal(start["x"], before) and torch.equal(after.position["x"], kept)


@every_kernel
def test_leaves_of_several_shapes_move_as_one_would(generator, kernel):
    def split(position):
        return log_density({"x": torch.cat([position["a"].flatten(1), position["b"][:, None]], dim=1)})

    x = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    cold = replace(kernel, lr=0.02, temperature=0.0)
    one = run(cold, {"x": x}).samples["x"]
    two = run(cold, {"a": x[:, :7].reshape(5, 7, 1), "b": x[:, 7]}, split).samples
    assert torch.allclose(torch.cat([two["a"].flatten(2), two["b"][..., None]], dim=2), one, rtol=1e-13)


@every_kernel
def test_float32_stays_float32(kernel):
    chain = run(kernel, {"x": torch.ones(2, 3)}, lambda q: -0.5 * q["x"].square().sum(-1))
    assert chain.samples["x"].dtype == torch.float32 and torch.isfinite(chain.samples["x"]).all()


@pytest.mark.parametrize("kernel", [*KERNELS, mcmc.EntropySGLD(), mcmc.PSGLD()], ids=lambda k: type(k).__name__)
def test_expanded_gradients_are_clipped(generator, kernel):
    # The gradient of a linear log density is an expanded tensor, and here the same one for both leaves.
    kernel = replace(kernel, lr=0.01, gradient_clip=2.0, temperature=0.25)
    start = {name: torch.zeros(3, 4, dtype=torch.float64) for name in ("x", "y")}
    linear = {factor: (lambda q, factor=factor: factor * (q["x"] + q["y"]).sum(-1)) for factor in (10.0, 1000.0)}
    one, two = (run(kernel, start, density, burn_in=0, num_samples=3) for density in linear.values())
    # sqrt(lr) |g| = 1 = gradient_clip sqrt(T) at the first: that is where the second is cut off to.
    assert one.info["clipped"].max() == 0 and two.info["clipped"].min() == 1
    if not isinstance(kernel, mcmc.PSGLD):  # which learns units as it goes
        assert torch.equal(one.samples["x"], two.samples["x"])


@every_kernel
def test_a_preconditioner_is_a_change_of_variables(generator, kernel):
    # q = s z: the kernel in units s on q is the plain kernel on z.
    s = torch.linspace(0.5, 2, 8, dtype=torch.float64)
    z = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    there = run(replace(kernel, preconditioner={"x": s}), {"x": s * z}).samples["x"]
    here = run(kernel, {"x": z}, lambda q: log_density({"x": s * q["x"]})).samples["x"]
    assert torch.allclose(there, s * here, rtol=1e-10, atol=1e-12)


@every_kernel
def test_n_times_the_density_is_a_temperature_and_asks_for_an_nth_of_the_step(generator, kernel):
    # The two ways to write a posterior of n rows: what users of mean losses call lr is n times the full-scale one.
    start = {"x": torch.randn(3, 8, generator=generator, dtype=torch.float64)}
    n = 1000.0
    mean = run(replace(kernel, lr=0.02, temperature=1 / n), start).samples["x"]
    total = run(replace(kernel, lr=0.02 / n), start, lambda q: n * log_density(q)).samples["x"]
    assert torch.allclose(mean, total, rtol=1e-10, atol=1e-12)


@every_kernel
def test_at_temperature_zero_nothing_is_drawn_and_the_mode_is_found(generator, kernel):
    start = {"x": torch.randn(3, 8, generator=generator, dtype=torch.float64)}
    before = generator.get_state()
    # A gradient step contracts the slowest direction, l = 0.1, by 1 - lr l at least: 0.99^1600 = 1e-7.
    cold = replace(kernel, lr=0.1, temperature=0.0)
    chain = mcmc.run(cold, log_density, start, num_samples=1, burn_in=1600, generator=generator)
    assert torch.equal(generator.get_state(), before)
    assert chain.samples["x"].abs().max() < 1e-6


@pytest.mark.monte_carlo
@every_kernel
def test_the_measured_step_follows_the_preconditioned_curvature(generator, kernel):
    start = {"x": torch.zeros(2, 8, dtype=torch.float64)}
    lr = kernel.init(start, log_density, generator=generator).lr
    assert lr == pytest.approx(kernel.relative_lr / 10, rel=0.05)  # the top precision is 10
    white = replace(kernel, preconditioner={"x": PRECISIONS.rsqrt()})
    assert white.init(start, log_density, generator=generator).lr == pytest.approx(kernel.relative_lr, rel=0.05)


@pytest.mark.monte_carlo
@every_kernel
@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_excess_variance_of_mini_batches_on_average_over_directions(generator, kernel, share):
    start = {"x": torch.zeros(2, 8, dtype=torch.float64)}
    lr = kernel.prepared(log_density, start, share=share, generator=generator).lr
    # What is stable for the stiffest direction, 10, or what noise of variance l / share adds to T on average over the
    # directions, lr l / (2 share friction), held at relative_lr / 2. The Hessian is diagonal, so its average is exact.
    friction = 1 - getattr(kernel, "momentum", 0.0)
    bearable = share * friction / PRECISIONS.mean() if share < 1 else torch.tensor(1.0)
    assert lr == pytest.approx(kernel.relative_lr * min(0.1, float(bearable)), rel=0.05)


@every_kernel
def test_a_schedule_scales_what_is_reported(kernel):
    falling = replace(kernel, lr=0.1, schedule=mcmc.polynomial_decay(delay=2.0, power=1.0))
    chain = run(falling, {"x": torch.zeros(1, 8, dtype=torch.float64)})
    expected = torch.tensor([[0.1 / (1 + t / 2) for t in range(2, 5)]], dtype=torch.float64)
    assert torch.allclose(chain.info["step_size"], expected)


CHECKED = {"temperature", "lr", "momentum", "gradient_noise", "relative_lr", "thermostat", "decay", "damping"}


@pytest.mark.parametrize(
    "kernel, name",
    [(kernel, name) for kernel in KERNELS for name in sorted(CHECKED & kernel.__dataclass_fields__.keys())],
)
def test_settings_are_checked(kernel, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        run(replace(kernel, **{name: -1.0}), {"x": torch.zeros(1, 8)})


@every_kernel
def test_a_flat_start_asks_for_a_step(kernel):
    with pytest.raises(ValueError, match="give `lr`"):
        run(kernel, {"x": torch.zeros(1, 2)}, lambda q: 0 * q["x"].sum(-1))


def funnel(position):
    """Noise of one row that the mean can fit: its precision has no bound, and with it no step size is stable."""
    s, x = position["log_noise"], position["x"]
    return -0.5 * (s / 3).square() - 0.5 * s - 0.5 * x.square() * (-s).exp()


@pytest.mark.monte_carlo
@every_kernel
def test_a_curvature_without_bound_does_not_end_a_chain(kernel):
    start = {"log_noise": torch.zeros(200, dtype=torch.float64), "x": torch.zeros(200, dtype=torch.float64)}
    bold = replace(kernel, lr=0.25, gradient_clip=10.0)
    chain = run(bold, start, funnel, num_samples=1, thin=1000)
    assert 0 < chain.info["clipped"].mean() < 0.1  # and says how often it had to be held back
    assert chain.samples["log_noise"].abs().max() < 100  # 28 with standard deviation 5 for SGHMC


def test_without_the_limit_it_does():
    start = {"log_noise": torch.zeros(200, dtype=torch.float64), "x": torch.zeros(200, dtype=torch.float64)}
    with pytest.raises(FloatingPointError):
        run(mcmc.SGHMC(lr=0.25), start, funnel, num_samples=1, thin=1000)


@every_kernel
def test_in_equilibrium_nothing_is_clipped(generator, kernel):
    start = {"x": torch.randn(100, 8, generator=generator, dtype=torch.float64) * PRECISIONS.rsqrt()}
    assert run(kernel, start, num_samples=1, thin=300).info["clipped"].max() == 0
    assert "clipped" not in run(replace(kernel, lr=0.01), start).info  # nobody is asked to with a step that is given
