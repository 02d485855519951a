import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from bayeskit.core.types import Data, Rows

CPU = torch.device("cpu")


class Images(Dataset):
    """Ten images as NumPy arrays, with labels; remembers which were read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 10

    def __getitem__(self, i):
        self.read.append(i)
        return np.full((2, 3), i, dtype=np.float32), i % 2


@pytest.fixture
def data(generator):
    x, y = torch.randn(7, 2, generator=generator), torch.randn(7, 1, generator=generator)
    return Data(x, y, torch.rand(7, generator=generator))


class TestData:
    def test_total_weighs_and_rescales(self, data):
        values = torch.arange(14.0).view(2, 7)
        torch.testing.assert_close(data.total(values), (values * data.weights).sum(-1))
        assert Data(data.x, data.y, scale=3.0).total(values).tolist() == (3 * values.sum(-1)).tolist()

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
    def test_batches_pass_over_every_row_once(self, size, data, generator):
        batches = list(data.batches(size, generator=generator))
        assert [len(batch) for batch in batches[:-1]] == [min(size, 7)] * (len(batches) - 1)
        rows = torch.cat([torch.cat([b.x, b.y, b.weights[:, None]], 1) for b in batches])
        expected = torch.cat([data.x, data.y, data.weights[:, None]], 1)
        assert torch.equal(rows[rows[:, 0].argsort()], expected[expected[:, 0].argsort()])

    @pytest.mark.parametrize("size", [1, 2, 3, 7])
    def test_a_batch_total_is_unbiased_for_the_total(self, size, data):
        # a step on each batch with probability proportional to its size, summed over the batches
        values = torch.randn(7, generator=torch.Generator().manual_seed(1))
        batches = data.batches(size)
        totals = [len(batch) / 7 * batch.total(piece) for batch, piece in zip(batches, values.split(size), strict=True)]
        torch.testing.assert_close(torch.stack(totals).sum(), data.total(values))

    def test_batches_of_a_batch_keep_its_scale(self, data):
        half = next(data.batches(4))
        assert half.scale == 7 / 4
        assert [batch.scale for batch in half.batches(2)] == [7 / 2, 7 / 2]

    def test_shuffling_follows_the_generator_alone(self, data):
        def order(seed):
            return [b.x.tolist() for b in data.batches(3, generator=torch.Generator().manual_seed(seed))]

        state = torch.get_rng_state()
        assert order(0) == order(0) != order(1)
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(next(data.batches(3)).x, data.x[:3])

    def test_no_rows_have_no_batches(self, data):
        empty = data.rows(slice(0))
        assert len(empty) == 0 and list(empty.batches(3)) == []

    def test_rows_by_slice_index_and_mask(self, data):
        index, mask = torch.tensor([1, 4]), torch.zeros(7, dtype=torch.bool)
        mask[index] = True
        for key in (index, mask, slice(1, 5, 3)):
            part = data.rows(key)
            assert torch.equal(part.x, data.x[index]) and torch.equal(part.weights, data.weights[index])
            assert part.scale == 1

    def test_to_casts_numbers_and_keeps_codes(self, data):
        classes = Data(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]), torch.ones(2))
        moved = classes.to(dtype=torch.float64, device=CPU)
        assert (moved.x.dtype, moved.y.dtype, moved.weights.dtype) == (torch.int64, torch.int64, torch.float64)
        assert data.to(dtype=torch.float64).x.dtype == torch.float64


class TestRows:
    def test_rows_are_read_when_asked_for(self):
        dataset = Images()
        rows = Rows(dataset, dtype=torch.float64, device=CPU)
        assert rows.shape == (10, 2, 3) and len(rows) == 10 and rows.dtype == torch.float64
        dataset.read.clear()
        batch = rows[torch.tensor([3, 1])]
        assert dataset.read == [3, 1] and batch.dtype == torch.float64
        assert batch[:, 0, 0].tolist() == [3.0, 1.0]

    def test_every_kind_of_index(self):
        rows = Rows(Images(), dtype=torch.float32, device=CPU)
        everything = torch.arange(10.0)[:, None, None].expand(10, 2, 3)
        assert torch.equal(rows[:], everything)
        for index in (slice(2, 8, 3), torch.tensor([9, 0, 9]), everything[:, 0, 0] > 6, slice(0)):
            assert torch.equal(rows[index], everything[index])

    def test_items_without_targets_and_integer_inputs(self):
        tokens = [torch.tensor([1, 2]), torch.tensor([3, 4])]
        rows = Rows(tokens, dtype=torch.float32, device=CPU)
        assert rows.dtype == torch.int64 and rows[:].tolist() == [[1, 2], [3, 4]]

    def test_data_of_rows_cuts_into_batches_and_moves(self, generator):
        data = Data(Rows(Images(), dtype=torch.float32, device=CPU), torch.arange(10))
        for batch in data.batches(4, generator=generator):
            assert torch.equal(batch.x[:, 0, 0].long(), batch.y)
        assert data.to(dtype=torch.float64).x[:2].dtype == torch.float64

    def test_rows_survive_pickling(self):
        rows = Rows(TensorDataset(torch.arange(4.0).view(2, 2)), dtype=torch.float32, device=CPU)
        assert torch.equal(pickle.loads(pickle.dumps(rows))[:], rows[:])


def test_parts_of_rows_are_read_only_when_asked():
    reads = []

    class Counting(torch.utils.data.Dataset):
        def __len__(self):
            return 100

        def __getitem__(self, i):
            reads.append(i)
            return torch.full((2,), float(i)), 0.0

    data = Data(Rows(Counting(), dtype=torch.float64, device=torch.device("cpu")), torch.zeros(100, 1))
    reads.clear()
    part = data.rows(torch.arange(10, 90))
    assert len(part) == 80 and len(reads) <= 1  # one item tells the shape
    batch = next(iter(part.batches(16)))
    assert batch.x.tolist() == [[float(i)] * 2 for i in range(10, 26)]
    assert len(reads) <= 2 + 16
    assert part.rows(slice(0, 2)).x[:].tolist() == [[10.0, 10.0], [11.0, 11.0]]
