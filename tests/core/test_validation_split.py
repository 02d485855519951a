"""Validation data are independent of the training data: copies stay together, classes keep a row to train on."""

import numpy as np
import pytest
import torch

from bayeskit.core.optimize import Training, split
from bayeskit.core.types import Data
from bayeskit.core.validation_split import duplicate_groups, independent_folds


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.0, 1e-8])
@pytest.mark.parametrize("num_folds", [1, 5])
def test_copies_are_in_one_fold(seed, noise, num_folds):
    rng = np.random.default_rng(seed)
    copies = rng.permutation(np.repeat(np.arange(40), 3))
    x = rng.normal(size=(40, 4))[copies] * [1, 1e-6, 1e6, 1]
    x = torch.as_tensor(x * (1 + noise * rng.normal(size=x.shape)))
    folds = independent_folds(
        Data(x, torch.zeros(120, 1)), 0.2, num_folds, generator=torch.Generator().manual_seed(seed)
    )
    parts = [set(copies[fold.numpy()]) for fold in folds]
    assert all(len(fold) == 3 * len(part) for fold, part in zip(folds, parts, strict=True))
    assert all(22 <= len(fold) <= 27 for fold in folds)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_different_rows_are_not_copies(scale):
    x = torch.linspace(0, 1, 500, dtype=torch.float64)[:, None] * scale
    assert len(np.unique(duplicate_groups(x))) == 500
    x[0] = 1e6 * scale  # one outlier does not make the others equal
    assert len(np.unique(duplicate_groups(x + 1e3 * scale))) == 500


@pytest.mark.parametrize("seed", range(20))
def test_every_class_keeps_a_row_and_classes_are_stratified(seed):
    y = torch.tensor([0] * 60 + [1] * 30 + [2] * 2 + [3])
    data = Data(torch.arange(93.0)[:, None], y)
    generator = torch.Generator().manual_seed(seed)
    train, held_out = split(data, Training(validation_fraction=0.2), generator=generator)
    assert set(train.y.tolist()) == {0, 1, 2, 3} and (held_out.y == 0).sum() in (11, 12, 13)
    for fold in independent_folds(data, 0.2, 5, generator=generator):
        rest = np.delete(y.numpy(), fold.numpy())
        assert set(rest) == {0, 1, 2, 3}


@pytest.mark.parametrize("n", [2, 3, 40])
def test_copies_of_one_row_are_all_trained_on(n):
    data = Data(torch.ones(n, 2), torch.zeros(n, 1))
    assert split(data, Training(validation_fraction=0.5), generator=torch.Generator()) == (data, None)
