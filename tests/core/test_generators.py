import pytest
import torch

from bayeskit.core import generators


@pytest.fixture(autouse=True)
def global_generator_untouched():
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.monte_carlo
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_takes_the_dtype_and_repeats(dtype):
    like = torch.zeros(1, dtype=dtype)
    first, second = (
        generators.normal((50, 40), like=like, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert first.dtype == dtype and torch.equal(first, second)
    # 2000 draws: the mean has standard error 0.022, the variance 0.032
    assert abs(float(first.mean())) < 5 * 0.022 and abs(float(first.var()) - 1) < 5 * 0.032


def test_fork_repeats_without_moving_the_original(generator):
    state = generator.get_state()
    forked = generators.fork(generator)
    ahead = [generators.seed(forked) for _ in range(3)]
    assert torch.equal(state, generator.get_state())
    assert ahead == [generators.seed(generator) for _ in range(3)]


def test_spawned_generators_differ_and_repeat():
    def streams():
        parent = torch.Generator().manual_seed(3)
        return [generators.seed(generators.spawn(parent)) for _ in range(5)]

    assert streams() == streams()
    assert len(set(streams())) == 5


def test_seed_is_an_integer_that_others_take(generator):
    value = generators.seed(generator)
    assert isinstance(value, int) and 0 <= value < 2**31 - 1


def test_seeded_code_follows_the_generator_and_leaves_the_global_one():
    def draw(seed):
        with generators.seeded(torch.Generator().manual_seed(seed)):
            return torch.randn(3)

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))


def test_seeded_restores_the_global_generator_after_an_error(generator):
    with pytest.raises(RuntimeError), generators.seeded(generator):
        torch.randn(3)
        raise RuntimeError


def test_seeded_moves_the_generator_on(generator):
    with generators.seeded(generator):
        first = torch.randn(3)
    with generators.seeded(generator):
        second = torch.randn(3)
    assert not torch.equal(first, second)
