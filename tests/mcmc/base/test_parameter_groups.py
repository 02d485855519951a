import pytest
import torch

from bayeskit.mcmc import group_labels

SHAPES = {
    "0.weight": torch.Size([2, 3]),
    "0.bias": torch.Size([2]),
    "2.weight": torch.Size([1, 2]),
    "scale": torch.Size([]),
}


@pytest.mark.parametrize(
    "groups, expected",
    [
        ("leaf", [0] * 6 + [1] * 2 + [2] * 2 + [3]),
        ("layer", [0] * 8 + [1] * 2 + [2]),
        ("neuron", [0, 0, 0, 1, 1, 1, 0, 1, 2, 2, 3]),
        ("parameter", list(range(11))),
        (
            {"0.weight": torch.tensor([[7], [5]]), "0.bias": torch.tensor(5), "2.weight": torch.tensor(7)}
            | {"scale": torch.tensor(-1)},
            [2, 2, 2, 1, 1, 1, 1, 1, 2, 2, 0],
        ),
    ],
)
def test_labels(groups, expected):
    labels = group_labels(groups, SHAPES)
    assert {name: label.shape for name, label in labels.items()} == SHAPES
    assert torch.cat([label.reshape(-1) for label in labels.values()]).tolist() == expected


@pytest.mark.parametrize(
    "groups, message",
    [
        ("neurons", "did you mean 'neuron'"),
        ({"0.weight": torch.zeros(1, dtype=torch.long)}, "each of"),
        ({name: torch.zeros(7, dtype=torch.long) for name in SHAPES}, "must broadcast to the shape"),
        ({name: torch.zeros(1) for name in SHAPES}, "must be a tensor of integers"),
    ],
)
def test_what_does_not_fit_is_said(groups, message):
    with pytest.raises(ValueError, match=message):
        group_labels(groups, SHAPES)
