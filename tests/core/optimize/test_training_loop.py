import copy
import math

import pytest
import torch
from sklearn.base import clone
from torch import nn

from bayeskit.core.optimize import Callback, Training, minimize, split
from bayeskit.core.types import Data


@pytest.fixture
def data(generator):
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    return Data(x, x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def squared(net):
    return lambda batch: batch.total((net(batch.x) - batch.y).square().sum(-1))


def noisy(net, generator):
    """Draws from the same generator as the shuffling."""

    def loss(batch):
        jitter = torch.randn(batch.x.shape, generator=generator, dtype=batch.x.dtype)
        return batch.total((net(batch.x + 0.01 * jitter) - batch.y).square().sum(-1))

    return loss


def bits(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


class Killed(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_resume_gives_the_same_bits_as_one_run(tmp_path, data, optimizer, schedule):
    settings = dict(
        max_epochs=10, batch_size=16, optimizer=optimizer, schedule=schedule, checkpoint_every=1, patience=9
    )

    def train(path, kill_at=None):
        g, net = torch.Generator().manual_seed(3), network()
        loss, calls = noisy(net, g), 0

        def counted(batch):
            nonlocal calls
            calls += 1
            if calls == kill_at:
                raise Killed
            return loss(batch)

        history = minimize(counted, net.parameters(), data, Training(checkpoint=path, **settings), generator=g)
        return bits(net), history, g.get_state(), calls

    whole = train(None)
    with pytest.raises(Killed):
        train(tmp_path / "run", kill_at=5 * 4 + 3)  # in the middle of the sixth epoch
    resumed = train(tmp_path / "run")
    assert torch.equal(whole[0], resumed[0]) and whole[1] == resumed[1] and torch.equal(whole[2], resumed[2])
    assert resumed[3] == 5 * 4
    finished = train(tmp_path / "run")  # a third run finds everything done
    assert torch.equal(whole[0], finished[0]) and whole[1] == finished[1] and finished[3] == 0


def test_an_interrupt_by_the_keyboard_keeps_the_checkpoint(tmp_path, data):
    def train(path, interrupt_at=None):
        net, calls = network(), 0

        def loss(batch):
            nonlocal calls
            calls += 1
            if calls == interrupt_at:
                raise KeyboardInterrupt
            return squared(net)(batch)

        training = Training(max_epochs=8, batch_size=10, checkpoint=path, checkpoint_every=100)
        history = minimize(loss, net.parameters(), data, training, generator=torch.Generator().manual_seed(0))
        return bits(net), history, calls

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", interrupt_at=3 * 5 + 2)
    parameters, history, calls = train(tmp_path / "run")
    assert calls == 5 * 5
    whole = train(None)
    assert torch.equal(parameters, whole[0]) and history == whole[1]


def test_more_epochs_continue_a_finished_run(tmp_path, data):
    def train(path, epochs):
        net = network()
        training = Training(max_epochs=epochs, batch_size=20, checkpoint=path)
        minimize(squared(net), net.parameters(), data, training, generator=torch.Generator().manual_seed(0))
        return bits(net)

    train(tmp_path / "run", 3)
    assert torch.equal(train(tmp_path / "run", 7), train(None, 7))


@pytest.mark.parametrize(
    "change, named", [("data", "the data"), ("seed", "the seed"), ("lr", "lr"), ("net", "starting")]
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, data, change, named):
    def train(changed):
        net = network()
        if changed == "net":
            nn.init.zeros_(net[0].weight)
        rows = Data(data.x, data.y + 1) if changed == "data" else data
        training = Training(max_epochs=2, checkpoint=tmp_path / "run", lr=0.02 if changed == "lr" else 0.01)
        generator = torch.Generator().manual_seed(int(changed == "seed"))
        minimize(squared(net), net.parameters(), rows, training, generator=generator)

    train(None)
    with pytest.raises(ValueError, match=f"belongs to another run: it differs in .*{named}"):
        train(change)


@pytest.mark.monte_carlo
def test_the_best_state_on_validation_comes_back(data, generator):
    net, seen = network(), []

    def validation():
        value = (bits(net)[0] - 0.3).abs()
        seen.append((value.item(), bits(net)))
        return value

    training = Training(lr=0.05, max_epochs=30, batch_size=25)
    history = minimize(
        squared(net), net.parameters(), data, training, generator=generator, validation=validation, buffers=[]
    )
    lowest, best = min(seen, key=lambda pair: pair[0])
    assert lowest < seen[-1][0] and torch.equal(bits(net), best)
    assert history["validation"] == [value for value, _ in seen] and len(history["loss"]) == 30


def test_buffers_come_back_with_the_best_state(data, generator):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    tracked, epochs = net[1].running_mean, []

    def validation():
        epochs.append(tracked.clone())
        return torch.tensor(abs(len(epochs) - 3.0))

    minimize(
        squared(net),
        net.parameters(),
        data,
        Training(max_epochs=6, batch_size=25),
        generator=generator,
        validation=validation,
        buffers=net.buffers(),
    )
    assert torch.equal(tracked, epochs[2]) and not torch.equal(tracked, epochs[-1])


@pytest.mark.monte_carlo
def test_full_batch_patience_returns_the_parameters_of_the_lowest_loss(generator):
    w = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    seen = []

    def loss(batch):
        seen.append((w.item() ** 2, w.item()))
        return w.square().sum()

    data = Data(torch.zeros(1, 1), torch.zeros(1, 1))
    training = Training(lr=0.7, optimizer="sgd", momentum=0.9, max_epochs=200, patience=5, tolerance=0)
    history = minimize(loss, [w], data, training, generator=generator)
    assert w.item() == min(seen)[1]
    assert len(history["loss"]) < 200
    assert min(history["loss"]) == min(seen)[0]


def test_early_stopping_counts_epochs_without_improvement(data, generator):
    values = iter([5.0, 4.0, 3.9999, 4.2, 3.9, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    training = Training(max_epochs=11, patience=3, tolerance=0.01)
    net = network()
    history = minimize(
        squared(net),
        net.parameters(),
        data,
        training,
        generator=generator,
        validation=lambda: torch.tensor(next(values)),
    )
    assert history["validation"] == pytest.approx([5.0, 4.0, 3.9999, 4.2, 3.9, 4.0, 4.0, 4.0])


def test_clipping_bounds_the_gradient_per_row(generator):
    w = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    data = Data(torch.zeros(10, 1), torch.zeros(10, 1))
    slope = torch.tensor([3.0, 0.0, 4.0, 0.0], dtype=torch.float64)
    training = Training(lr=1.0, optimizer="sgd", momentum=0.0, max_epochs=1, clip_norm=2.0)
    minimize(lambda b: 10 * (slope @ w), [w], data, training, generator=generator)
    assert torch.allclose(w, -slope * 2 / 5, rtol=1e-5)  # torch adds 1e-6 to the norm
    assert w.grad is None


@pytest.mark.parametrize(
    "schedule, expected", [("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25]), ("cosine", None)]
)
def test_schedules_fall_to_zero_by_steps(schedule, expected, generator):
    expected = expected or [0.5 * (1 + math.cos(math.pi * t / 4)) for t in range(4)]
    w, places = torch.zeros(1, dtype=torch.float64, requires_grad=True), []

    def loss(batch):
        places.append(w.item())
        return -2 * w.sum()  # two rows: slope -1 a row

    data = Data(torch.zeros(2, 1), torch.zeros(2, 1))
    training = Training(lr=1.0, optimizer="sgd", momentum=0.0, max_epochs=2, batch_size=1, schedule=schedule)
    minimize(loss, [w], data, training, generator=generator)
    steps = torch.tensor([*places, w.item()]).diff()
    assert steps.tolist() == pytest.approx(expected, abs=1e-6)


def test_nan_is_one_clear_sentence_with_the_step(data, generator):
    net, calls = network(), 0

    def loss(batch):
        nonlocal calls
        calls += 1
        return squared(net)(batch) * (math.nan if calls >= 8 else 1)

    with pytest.raises(FloatingPointError, match="warming up: the loss is nan in epoch 2, step 3. .*`lr`"):
        minimize(loss, net.parameters(), data, Training(batch_size=10), generator=generator, description="warming up")


@pytest.mark.monte_carlo
@pytest.mark.parametrize("failure", [math.nan, torch.linalg.LinAlgError("K is not positive definite")])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_step_too_long_is_taken_back(data, tmp_path, failure, checkpoint):
    """Steps of 3 leave where this loss is finite; from a start inside, shorter ones reach its minimum."""

    def train(epochs, path):
        w, g = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True), torch.Generator().manual_seed(0)

        def loss(batch):
            if w.detach().abs().max() > 2.5:
                if isinstance(failure, Exception):
                    raise failure
                return batch.total((batch.x @ w).squeeze(-1) * failure)
            return batch.total((batch.x @ w - batch.y).square().squeeze(-1))

        training = Training(lr=3.0, max_epochs=epochs, batch_size=10, checkpoint=path)
        return w, minimize(loss, [w], data, training, generator=g)

    path = tmp_path / "run" if checkpoint else None
    if checkpoint:
        train(50, path)
    w, history = train(100, path)
    assert len(history["loss"]) == 100 and 1 <= len(history["returns"]) <= 5
    assert (w.detach().squeeze() - torch.tensor([1.0, -2.0, 0.5])).abs().max() < 0.05


def test_the_history_is_the_loss_per_row(data, generator):
    net = network()
    expected = [(squared(net)(data) / 50).item()]
    history = minimize(
        squared(net), net.parameters(), data, Training(lr=1e-12, max_epochs=1, batch_size=16), generator=generator
    )
    assert history["loss"] == pytest.approx(expected, rel=1e-9)  # an uneven last mini-batch included


def test_frozen_parameters_and_other_leaves_are_left_alone(data, generator):
    net = network()
    net[0].weight.requires_grad_(False)
    before, other = copy.deepcopy(net[0].weight), torch.ones((), dtype=torch.float64, requires_grad=True)
    minimize(lambda b: other * squared(net)(b), net.parameters(), data, Training(max_epochs=2), generator=generator)
    assert torch.equal(before, net[0].weight) and other.grad is None


def test_split_holds_out_once(data, generator):
    training = Training(validation_fraction=0.2)
    train, held_out = split(data, training, generator=generator)
    assert len(train) == 40 and len(held_out) == 10
    together = torch.cat([train.x, held_out.x])
    assert torch.equal(together.sort(0).values, data.x.sort(0).values)
    assert split(data, Training(), generator=generator) == (data, None)


@pytest.mark.parametrize(
    "setting", [{"lr": 0}, {"max_epochs": 0}, {"optimizer": "adma"}, {"schedule": "x"}, {"validation_fraction": 1.5}]
)
def test_settings_are_checked(setting, data, generator):
    net = network()
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}`"):
        minimize(squared(net), net.parameters(), data, Training(**setting), generator=generator)


def test_training_is_a_scikit_learn_object():
    training = Training(lr=0.5)
    assert clone(training).lr == 0.5 and "lr=0.5" in repr(training) and training.set_params(patience=3).patience == 3


WORKER = """
import torch

from bayeskit.core.optimize import Training, minimize
from bayeskit.core.types import Data


def work(rank, folder):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(21, 3, generator=g, dtype=torch.float64)
    data = Data(x, x.sin().sum(1, keepdim=True), torch.rand(21, generator=g, dtype=torch.float64))
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    running = torch.zeros(3, dtype=torch.float64)  # statistics as of BatchNorm

    def loss(batch):
        running.lerp_(batch.x.mean(0), 0.1)
        return batch.total((batch.x @ w - batch.y[:, 0]) ** 2) + 3 * (w - 1).square().sum()

    training = Training(max_epochs=5, batch_size=5, clip_norm=1.0, patience=4, checkpoint=folder + "/run")
    generator = torch.Generator().manual_seed(7 + rank)
    history = minimize(loss, [w], data, training, generator=generator, buffers=[running])
    return w.detach(), history["loss"], running
"""


def test_two_processes_do_what_one_does(two_ranks, tmp_path):
    first, second, work = two_ranks(WORKER)
    (tmp_path / "alone").mkdir()
    alone = work(0, str(tmp_path / "alone"))
    assert torch.equal(first[0], second[0]) and first[1] == second[1]  # though their generators differed
    assert torch.equal(first[2], second[2])  # though each saw its own rows
    assert torch.allclose(alone[0], first[0], rtol=1e-10, atol=0)  # only the order of sums differs
    assert first[1] == pytest.approx(alone[1], rel=1e-10)


@pytest.mark.monte_carlo
def test_what_is_called_after_a_step_may_change_what_was_stepped():
    x, data = torch.zeros(2, requires_grad=True), Data(torch.zeros(4, 1), torch.zeros(4, 1))
    seen = []

    def after_step(run):
        seen.append(x.detach().clone())
        assert run.optimizer.state[x]["exp_avg"].shape == (2,)
        with torch.no_grad():
            x[0] = 0

    def loss(batch):
        return batch.total(((x - 1) ** 2).sum().expand(len(batch)))

    callbacks = [Callback(after_step=after_step)]
    minimize(loss, [x], data, Training(lr=0.1, max_epochs=5), generator=torch.Generator(), callbacks=callbacks)
    assert len(seen) == 5 and x[0] == 0 and x[1] > 0.3
    assert all(step[0] < 0.15 for step in seen)


def test_after_every_epoch_the_caller_is_called_once():
    w, seen = torch.zeros(1, requires_grad=True), []

    def loss(batch):
        return batch.total((batch.x[:, 0] - w) ** 2)

    data = Data(torch.ones(6, 1), torch.zeros(6, 1))
    training = Training(lr=0.1, max_epochs=3, batch_size=2)
    callbacks = [Callback(after_epoch=lambda run: seen.append((run.epoch, w.item())))]
    minimize(loss, [w], data, training, generator=torch.Generator(), callbacks=callbacks)
    assert [epoch for epoch, _ in seen] == [1, 2, 3] and seen[-1][1] == w.item() and sorted(seen) == seen
