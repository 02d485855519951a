import itertools
from dataclasses import replace

import pytest
import torch

from bayeskit import mcmc
from bayeskit.mcmc.base.log_density import value_and_gradient
from bayeskit.mcmc.sgmcmc.control_variate import control

X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(6, 2)
Y = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)


def logistic(rows):
    """Six rows of a logistic regression, from some of them."""

    def density(q):
        logits = q["w"] @ X[rows].mT
        likelihood = (Y[rows] * logits - torch.nn.functional.softplus(logits)).sum(-1)
        return 6 / len(rows) * likelihood - 0.5 * q["w"].square().sum(-1)

    return density


def mean(rows):
    """The same for the mean of the numbers: every batch has the same curvature."""
    return lambda q: 6 / len(rows) * -0.5 * (Y[rows] - q["m"][:, None]).square().sum(-1)


ALL = list(range(6))
PAIRS = [list(pair) for pair in itertools.combinations(ALL, 2)]


def gradient(density, name, value):
    return value_and_gradient(density, {name: value})[1][name]


def test_over_all_batches_the_estimate_is_unbiased(generator):
    q, center = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64)
    slope = {"w": gradient(logistic(ALL), "w", center)}
    found = [gradient(control(logistic(rows), {"w": center}, slope), "w", q) for rows in PAIRS]
    assert torch.allclose(torch.stack(found).mean(0), gradient(logistic(ALL), "w", q), rtol=1e-12)
    values = [control(logistic(rows), {"w": center}, slope)({"w": q}) - logistic(rows)({"w": center}) for rows in PAIRS]
    expected = logistic(ALL)({"w": q}) - logistic(ALL)({"w": center})
    assert torch.allclose(torch.stack(values).mean(0), expected, rtol=1e-12)


@pytest.mark.monte_carlo
def test_at_the_center_it_is_the_full_gradient_and_near_it_nearly(generator):
    center = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    slope = {"w": gradient(logistic(ALL), "w", center)}
    spreads = []
    for distance in (0.0, 0.001, 0.01):
        q = center + distance
        found = torch.stack([gradient(control(logistic(rows), {"w": center}, slope), "w", q) for rows in PAIRS])
        spreads.append((found - gradient(logistic(ALL), "w", q)).square().mean().item())
    plain = torch.stack([gradient(logistic(rows), "w", center) for rows in PAIRS])
    # Distance squared, up to a relative term of third order: 24 % at a distance of 0.1 over 20 seeds, hence 2.4 % here.
    assert spreads[0] < 1e-28 and spreads[2] / spreads[1] == pytest.approx(100, rel=0.1)
    assert spreads[2] < 0.001 * (plain - slope["w"]).square().mean()


KERNELS = [mcmc.SGLD(lr=0.05), mcmc.SGHMC(lr=0.05), mcmc.BAOAB(lr=0.05), mcmc.SGNHT(lr=0.05)]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
@pytest.mark.parametrize("refresh", [None, 3])
def test_with_one_curvature_for_all_it_is_the_full_batch(kernel, refresh):
    start = {"m": torch.tensor([0.0, 3.0], dtype=torch.float64)}
    budget = {"num_samples": 10, "burn_in": 4}
    full = mcmc.run(kernel, mean(ALL), start, **budget, generator=torch.Generator().manual_seed(0))
    controlled = mcmc.ControlVariate(kernel, mean(ALL), refresh)
    batches = [mean(rows) for rows in PAIRS]
    chain = mcmc.run(controlled, batches, start, **budget, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(chain.samples["m"], full.samples["m"], rtol=1e-11, atol=1e-12)
    plain = mcmc.run(kernel, batches, start, **budget, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(plain.samples["m"], full.samples["m"], atol=1e-2)


def test_the_center_moves_every_so_often(generator):
    kernel = mcmc.ControlVariate(mcmc.SGLD(lr=0.05), logistic(ALL), refresh=3)
    state = kernel.init({"w": torch.zeros(1, 2, dtype=torch.float64)}, logistic(ALL), generator=generator)
    centers = []
    for _ in range(9):
        place = state.position["w"]
        state, _ = kernel.step(state, logistic([0, 1]), generator=generator)
        centers.append(torch.equal(state.center["w"], place))
        assert torch.equal(state.gradient["w"], gradient(logistic(ALL), "w", state.center["w"]))
    assert centers == [True, False, False] * 3


def test_a_kernel_that_tunes_itself_is_tuned_first(generator):
    kernel = mcmc.ControlVariate(mcmc.PSGLD(), logistic(ALL))
    start = {"w": torch.zeros(3, 2, dtype=torch.float64)}
    batches = [logistic(rows) for rows in PAIRS]
    chain = mcmc.run(kernel, batches, start, num_samples=3, burn_in=20, generator=generator)
    assert chain.kernel.kernel.preconditioner["w"].shape == (1, 2)
    assert not torch.equal(chain.state.center["w"], start["w"])


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    class Killed(Exception):
        pass

    def run(path, number=None):
        calls = 0

        def batch(rows):
            def density(q):
                nonlocal calls
                calls += 1
                if calls == number:
                    raise Killed
                return logistic(rows)(q)

            return density

        kernel = mcmc.ControlVariate(mcmc.SGHMC(lr=0.05), logistic(ALL), refresh=4)
        start, g = {"w": torch.zeros(2, 2, dtype=torch.float64)}, torch.Generator().manual_seed(0)
        batches = [batch(rows) for rows in PAIRS]
        return mcmc.run(kernel, batches, start, num_samples=30, burn_in=5, generator=g, checkpoint=path)

    with pytest.raises(Killed):
        run(tmp_path / "run", 50)
    assert torch.equal(run(tmp_path / "run").samples["w"], run(None).samples["w"])


def test_the_checkpoint_of_another_kernel_inside_is_refused(tmp_path):
    def run(lr):
        kernel = mcmc.ControlVariate(mcmc.SGLD(lr=lr), mean(ALL))
        start, g = {"m": torch.zeros(2, dtype=torch.float64)}, torch.Generator()
        mcmc.run(kernel, mean(ALL), start, num_samples=2, burn_in=1, generator=g, checkpoint=tmp_path / "run")

    run(0.1)
    with pytest.raises(ValueError, match="differs in the kernel"):
        run(0.2)


def test_settings_are_checked(generator):
    kernel = mcmc.ControlVariate(mcmc.SGLD(lr=0.1), mean(ALL))
    with pytest.raises(ValueError, match="`refresh`"):
        replace(kernel, refresh=0).init({"m": torch.zeros(1)}, mean(ALL), generator=generator)
