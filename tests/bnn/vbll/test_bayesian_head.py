"""Last layers as modules: exported, in mixed precision, moved and saved, in a loop of one's own."""

import io

import pytest
import torch
from torch import nn

from bayeskit import bnn

from .heads import COVARIANCES, labels, problem, seeded

LAYERS = {
    **{f"regression-{c}": (bnn.VBLLRegression, {"covariance": c}) for c in COVARIANCES},
    "student": (bnn.VBLLStudentT, {}),
    "heteroscedastic": (bnn.VBLLHeteroscedastic, {}),
    "classification": (bnn.VBLLClassification, {}),
    "generative": (bnn.VBLLGenerative, {}),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def made(name, dtype=torch.float64):
    build, options = LAYERS[name]
    layer = seeded(build, 5, 3, num_data=30, **options).to(dtype)
    features, y = problem()
    return layer, features.to(dtype), (labels(features) if name in ("classification", "generative") else y.to(dtype))


@every_layer
def test_it_is_exported_with_its_body(name):
    layer, features, _ = made(name)
    network = nn.Sequential(nn.Linear(5, 5, dtype=torch.float64), nn.Tanh(), layer).eval()
    rows = torch.export.Dim("rows", min=2, max=1000)
    program = torch.export.export(network, (features,), dynamic_shapes=({0: rows},))
    for n in (30, 7):
        mean, root = program.module()(features[:n])
        values = layer.values(network[:2](features[:n]))
        assert torch.allclose(mean, values.mean, rtol=1e-12)
        assert torch.allclose(root.square().sum(-1), values.variance, rtol=1e-10)


@every_layer
def test_mixed_precision_changes_the_body_alone(name):
    layer, features, y = made(name, torch.float32)
    plain = layer.loss(features, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = layer.loss(features, y)
        from_half = layer.loss(features.bfloat16(), y)
    assert mixed.dtype == torch.float32
    assert torch.allclose(mixed, plain, rtol=1e-6)
    assert torch.allclose(from_half, plain, rtol=0.1)  # the features were rounded to three digits


@every_layer
def test_the_state_is_its_state_dict(name):
    layer, features, y = made(name)
    layer.fit(features, y)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    again = made(name)[0]
    with torch.no_grad():
        for value in again.parameters():
            value.zero_()
    again.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    assert torch.equal(again.loss(features, y), layer.loss(features, y))
    assert torch.equal(again(features)[1], layer(features)[1])


@pytest.mark.monte_carlo
@every_layer
def test_a_body_learns_with_it(name):
    layer, features, y = made(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(5, 5), nn.Tanh()).double()
    optimizer = torch.optim.Adam([*body.parameters(), *layer.parameters()], lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = layer.loss(body(features), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    before = body[0].weight.clone()
    with torch.no_grad():
        reached = layer.fit(body(features), y)
    assert torch.equal(body[0].weight, before)
    assert torch.isfinite(torch.tensor(reached))
    if name != "generative":  # whose `fit` is of another objective
        assert -30 * layer.loss(body(features), y).item() >= -30 * losses[-1]


@pytest.mark.monte_carlo
@every_layer
def test_draws_have_the_joint_moments(name):
    layer, features, _ = made(name)
    with torch.no_grad():
        values = layer.values(features[:3])
    draws = values.sample(4_000, generator=torch.Generator().manual_seed(0)).flatten(1)
    dense = values.covariance.to_dense()
    std = dense.diagonal().sqrt()
    # five standard errors, sd sd' sqrt(2 / s) at most
    assert ((torch.cov(draws.mT) - dense).abs() < 5 * (2 / 4_000) ** 0.5 * std[:, None] * std).all()
