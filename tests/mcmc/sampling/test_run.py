from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from bayeskit import mcmc
from bayeskit.core import generators

X = torch.arange(12.0, dtype=torch.float64).reshape(12, 1) / 6 - 1


@dataclass(frozen=True)
class Batches:
    """The mean of twelve numbers, four at a time, shuffled anew in each pass."""

    generator: torch.Generator

    def __iter__(self) -> Iterator[mcmc.LogDensity]:
        for rows in torch.randperm(12, generator=generators.spawn(self.generator)).split(4):
            yield lambda q, rows=rows: -0.5 * 3 * (X[rows, 0] - q["mean"][:, None]).square().sum(-1)


def full(position):
    return -0.5 * (X[:, 0] - position["mean"][:, None]).square().sum(-1)


class Killed(Exception):
    pass


def killed_after(number, density):
    calls = 0

    def wrapped(position):
        nonlocal calls
        calls += 1
        if calls == number:
            raise Killed
        return density(position)

    return wrapped


@dataclass(frozen=True)
class KilledBatches:
    batches: Batches
    passes: int

    def __iter__(self):
        left = iter(self.batches)
        object.__setattr__(self, "passes", self.passes - 1)
        yield next(left)
        if self.passes == 0:
            raise Killed
        yield from left


@pytest.mark.parametrize("kind", ["sgld", "sgld by mini-batches", "psgld", "nuts", "hmc"])
@pytest.mark.parametrize("thin", [1, 3])
@pytest.mark.parametrize("disk", [False, True])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, kind, thin, disk):
    def run(path, kill=False):
        collector = mcmc.Disk(tmp_path / "draws", chunk=4) if disk and path else None
        g = torch.Generator().manual_seed(0)
        density = full
        if kind == "sgld by mini-batches":
            density = KilledBatches(Batches(g), 10) if kill else Batches(g)
        elif kill:
            density = killed_after({"sgld": 35, "psgld": 115, "nuts": 250, "hmc": 80}[kind], full)
        kernels = {"nuts": mcmc.NUTS(), "hmc": mcmc.HMC(), "psgld": mcmc.PSGLD()}
        kernel = kernels.get(kind, mcmc.SGLD(schedule=mcmc.polynomial_decay(5.0)))
        start = {"mean": torch.zeros(2, dtype=torch.float64)}
        budget = {"num_samples": 30, "burn_in": 8, "thin": thin}
        chain = mcmc.run(kernel, density, start, **budget, generator=g, checkpoint=path, collector=collector)
        return chain, g.get_state()

    whole, end = run(None)
    with pytest.raises(Killed):
        run(tmp_path / "run", kill=True)
    assert (tmp_path / "run").exists()
    resumed, again = run(tmp_path / "run")
    assert torch.equal(whole.samples["mean"], resumed.samples["mean"])
    assert whole.info.keys() == resumed.info.keys()
    assert all(torch.equal(whole.info[name], resumed.info[name]) for name in whole.info)
    assert torch.equal(whole.state.position["mean"], resumed.state.position["mean"]) and torch.equal(end, again)
    finished, _ = run(tmp_path / "run")
    assert torch.equal(whole.samples["mean"], finished.samples["mean"])


def test_an_interrupt_by_the_keyboard_writes_the_last_draw(tmp_path):
    def run(path, number=None):
        calls = 0

        def density(position):
            nonlocal calls
            calls += 1
            if calls == number:
                raise KeyboardInterrupt
            return full(position)

        g, start = torch.Generator().manual_seed(0), {"mean": torch.zeros(2, dtype=torch.float64)}
        chain = mcmc.run(
            mcmc.SGLD(lr=0.01), density, start, num_samples=4, burn_in=0, thin=100, generator=g, checkpoint=path
        )
        return chain, calls

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", 250)
    resumed, calls = run(tmp_path / "run")
    assert calls == 200 and torch.equal(resumed.samples["mean"], run(None)[0].samples["mean"])


@pytest.mark.parametrize("number", [1, 30, 140, 400])  # in the first part, in windows, in the last part
@pytest.mark.parametrize("chains", [2, 12])
def test_a_burn_in_that_is_interrupted_goes_on_where_it_was(tmp_path, number, chains):
    calls = 0

    def counted(position):
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return -0.5 * (position["x"] / torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)).square().sum(-1)

    def run(path):
        g, start = torch.Generator().manual_seed(0), {"x": torch.ones(chains, 3, dtype=torch.float64)}
        return mcmc.run(mcmc.HMC(), counted, start, num_samples=4, burn_in=60, generator=g, checkpoint=path)

    stop = None
    whole, in_all = run(None), calls
    stop, calls = 20 + number, 0  # finding the first step size, before there is anything to write, takes fewer than 20
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    assert torch.load(tmp_path / "run")["state"]["count"] < 60
    stop, calls = None, 0
    resumed = run(tmp_path / "run")
    assert torch.equal(whole.samples["x"], resumed.samples["x"])
    for tuned in ("step_size", "inverse_mass"):
        assert torch.equal(getattr(whole.kernel, tuned), getattr(resumed.kernel, tuned))
    assert calls <= in_all - number + 100  # a trajectory is repeated, and what comes before the first


def test_more_samples_continue_a_finished_run(tmp_path):
    def run(path, number):
        g, start = torch.Generator().manual_seed(0), {"mean": torch.zeros(2, dtype=torch.float64)}
        return mcmc.run(mcmc.SGLD(lr=0.01), full, start, num_samples=number, burn_in=2, generator=g, checkpoint=path)

    run(tmp_path / "run", 5)
    assert torch.equal(run(tmp_path / "run", 9).samples["mean"], run(None, 9).samples["mean"])


@pytest.mark.parametrize("change, named", [("kernel", "the kernel"), ("seed", "the seed"), ("thin", "thin")])
def test_the_checkpoint_of_another_run_is_refused(tmp_path, change, named):
    def run(changed):
        g = torch.Generator().manual_seed(int(changed == "seed"))
        kernel = mcmc.SGLD(lr=0.02 if changed == "kernel" else 0.01)
        start = {"mean": torch.zeros(2, dtype=torch.float64)}
        thin = 2 if changed == "thin" else 1
        mcmc.run(kernel, full, start, num_samples=2, burn_in=0, thin=thin, generator=g, checkpoint=tmp_path / "run")

    run(None)
    with pytest.raises(ValueError, match=f"differs in {named}"):
        run(change)


def test_thinning_keeps_every_third_and_averages_the_reports(generator):
    start = {"mean": torch.zeros(3, dtype=torch.float64)}

    def run(number, thin):
        g = torch.Generator().manual_seed(1)
        return mcmc.run(mcmc.SGLD(lr=0.01), full, start, num_samples=number, burn_in=4, thin=thin, generator=g)

    fine, coarse = run(12, 1), run(4, 3)
    assert torch.equal(fine.samples["mean"][:, 2::3], coarse.samples["mean"])
    assert torch.allclose(fine.info["log_density"].reshape(3, 4, 3).mean(-1), coarse.info["log_density"])


@pytest.mark.monte_carlo
def test_mini_batches_have_the_mean_of_the_full_density(generator):
    start = {"mean": torch.zeros(500, dtype=torch.float64)}
    kernel = mcmc.SGLD(lr=0.002)
    chain = mcmc.run(kernel, Batches(generator), start, num_samples=1, burn_in=400, generator=generator)
    # Precision 12; the gradient noise adds to the variance 1 / 12, at most by its share for independent batches.
    error = chain.samples["mean"].mean() - X.mean()
    assert abs(error) < 5 * (1 / 12 * 1.2 / 500) ** 0.5


def test_nan_is_caught_with_step_and_chain(generator):
    def density(position):
        return -0.5 * position["x"].square() * torch.tensor([1.0, 1e4], dtype=torch.float64)

    start = {"x": torch.ones(2, dtype=torch.float64)}
    with pytest.raises(FloatingPointError, match=r"SGLD: `x` is no longer finite after step \d+ in chain 1. Lower"):
        mcmc.run(mcmc.SGLD(lr=0.1), density, start, num_samples=500, burn_in=0, generator=generator)


@pytest.mark.parametrize("batches", [False, True])
def test_thinning_does_not_hide_the_step_at_which_nan_began(generator, batches):
    def density(position):
        return -0.5 * position["x"].square() * torch.tensor([1.0, 1e4], dtype=torch.float64)

    def message(thin):
        g = torch.Generator().manual_seed(0)
        noisy = [density, lambda q: 1.1 * density(q), lambda q: 0.9 * density(q)] if batches else density
        start = {"x": torch.ones(2, dtype=torch.float64)}
        with pytest.raises(FloatingPointError) as error:
            mcmc.run(mcmc.SGLD(lr=0.1), noisy, start, num_samples=600 // thin, burn_in=0, thin=thin, generator=g)
        return str(error.value)

    assert message(1) == message(7) == message(600)


@pytest.mark.parametrize(
    "settings",
    [{"num_samples": 0}, {"burn_in": -1}, {"thin": 0}, {"position": {"x": torch.zeros(2), "z": torch.ones(3)}}],
)
def test_arguments_are_checked(settings, generator):
    arguments = {"num_samples": 1, "burn_in": 0, "thin": 1, "position": {"x": torch.zeros(2)}} | settings
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
        mcmc.run(mcmc.SGLD(), lambda q: -q["x"].square(), generator=generator, **arguments)


def test_an_iterator_that_ends_says_so(generator):
    once = iter([lambda q: -q["x"].square()] * 3)
    with pytest.raises(ValueError, match="no mini-batches left"):
        mcmc.run(mcmc.SGLD(lr=0.1), once, {"x": torch.zeros(1)}, num_samples=9, burn_in=0, generator=generator)


def test_a_kernel_of_ones_own_is_one_class(generator):
    @dataclass(frozen=True)
    class State:
        position: mcmc.Position

    @dataclass(frozen=True)
    class Still(mcmc.TransitionKernel):
        def init(self, position, log_density, *, generator):
            return State(position)

        def step(self, state, log_density, *, generator):
            return state, {"log_density": log_density(state.position)}

    chain = mcmc.run(
        Still(), lambda q: -q["x"].square(), {"x": torch.ones(2)}, num_samples=3, burn_in=1, generator=generator
    )
    assert torch.equal(chain.samples["x"], torch.ones(2, 3)) and chain.kernel == Still()
