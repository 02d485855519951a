"""Inputs of several tensors, and how a network is called on them."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.utils.data import Dataset

from bayeskit.core.checkpoint import digest
from bayeskit.core.inputs import NamedInputs, Rows, as_inputs, one_tensor, parts
from bayeskit.core.modules import arguments, known_attention, output, run
from bayeskit.core.optimize.training_settings import Training, identity
from bayeskit.core.types import Data

CPU = torch.device("cpu")


@pytest.fixture
def leaves(generator):
    return {
        "ids": torch.randint(9, (7, 3), generator=generator),
        "mask": torch.rand(7, 3, generator=generator) > 0.5,
        "numbers": torch.randn(7, 2, 2, generator=generator),
    }


class TestNamedInputs:
    def test_it_cuts_as_its_leaves_do(self, leaves):
        x = as_inputs(leaves)
        index, mask = torch.tensor([5, 1]), leaves["mask"][:, 0]
        for key in (slice(1, 6, 2), index, mask, slice(0)):
            cut = x[key]
            assert len(cut) == len(leaves["ids"][key])
            assert all(torch.equal(value, leaves[name][key]) for name, value in cut.leaves.items())
        assert [len(part) for part in x.split([3, 4])] == [3, 4]
        assert torch.equal(x.split([3, 4])[1].leaves["ids"], leaves["ids"][3:])
        assert x.unsqueeze(0).leaves["numbers"].shape == (1, 7, 2, 2)

    def test_it_tells_its_size_and_type(self, leaves):
        x = as_inputs(leaves)
        assert (len(x), x.shape, x.dtype, x.device) == (7, (7, 3 + 3 + 4), torch.float32, CPU)
        assert x.is_floating_point() and not as_inputs({"ids": leaves["ids"]}).is_floating_point()

    def test_numbers_are_cast_and_codes_kept(self, leaves):
        types = {name: value.dtype for name, value in as_inputs(leaves).to(torch.float64).leaves.items()}
        assert types == {"ids": torch.int64, "mask": torch.bool, "numbers": torch.float64}
        assert as_inputs(leaves).to(device=CPU).leaves["numbers"].dtype == torch.float32

    def test_it_is_a_tree_for_vmap(self, leaves):
        sums = vmap(lambda x: x.leaves["numbers"].sum() + x.leaves["ids"].sum())(as_inputs(leaves))
        assert torch.allclose(sums, leaves["numbers"].flatten(1).sum(1) + leaves["ids"].sum(1))
        assert torch.equal(pickle.loads(pickle.dumps(as_inputs(leaves))).leaves["ids"], leaves["ids"])
        assert [part.shape for part in parts(as_inputs(leaves))] == [(7, 3), (7, 3), (7, 2, 2)]

    def test_arrays_and_lists_become_tensors_and_tensors_stay(self, leaves):
        x = as_inputs({"a": np.ones((2, 3), dtype=np.float32), "b": [1, 2], "c": leaves["ids"][:2]})
        assert [value.dtype for value in x.leaves.values()] == [torch.float32, torch.int64, torch.int64]
        assert as_inputs(x) is x and as_inputs(leaves["ids"]) is leaves["ids"]

    @pytest.mark.parametrize(
        ("wrong", "error", "message"),
        [
            (
                {"ids": torch.zeros(3, 2), "mask": torch.zeros(4, 2)},
                ValueError,
                "same number of rows; got 3 in 'ids', 4",
            ),
            ({}, ValueError, "at least one tensor"),
            ({"text": ["a", "b"]}, TypeError, r"`X\['text'\]` must be numeric"),
            ({"text": "a"}, TypeError, r"`X\['text'\]` must be a tensor or an array of numbers; got str"),
            ({"inner": {"ids": torch.zeros(2)}}, TypeError, r"`X\['inner'\]` must be a tensor.*got dict"),
            ({"labels": None}, TypeError, "got NoneType"),
            ({"ids": [[1, 2], [3]]}, TypeError, r"`X\['ids'\]` must be numeric"),
            ({"one": torch.tensor(1.0)}, ValueError, r"`X\['one'\]` must have a row for every input"),
            ({0: torch.zeros(2)}, TypeError, "named by strings; got 0"),
        ],
    )
    def test_what_is_wrong_is_said(self, wrong, error, message):
        with pytest.raises(error, match=message):
            as_inputs(wrong, name="X")


class TestData:
    def test_batches_of_named_inputs(self, leaves, generator):
        data = Data(leaves, torch.arange(7))
        assert isinstance(data.x, NamedInputs) and len(data) == 7
        for batch in data.batches(3, generator=generator):
            assert torch.equal(batch.x.leaves["numbers"], leaves["numbers"][batch.y])
        moved = data.to(dtype=torch.float64)
        assert moved.x.dtype == torch.float64 and moved.x.leaves["ids"].dtype == torch.int64

    def test_a_checkpoint_knows_every_leaf(self, leaves, generator):
        def fingerprint(x):
            data = Data(x, torch.zeros(7, 1))
            return identity(Training(), [], data, generator, "run")["the data"]

        changed = {**leaves, "mask": ~leaves["mask"]}
        assert fingerprint(leaves) != fingerprint(changed)
        tensor = leaves["ids"]
        assert fingerprint(tensor) == digest(tensor, torch.zeros(7, 1), None)

    def test_no_gaussian_process_gets_several_tensors(self, leaves):
        assert torch.equal(one_tensor(leaves["ids"]), leaves["ids"])
        with pytest.raises(TypeError, match=r"One table.*\['ids', 'mask', 'numbers'\]"):
            one_tensor(leaves)


class Items(Dataset):
    """Dictionaries as items, of lengths that may differ."""

    def __init__(self, lengths):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        return {"ids": torch.arange(self.lengths[i]), "weight": np.float64(i)}, i


class TestRows:
    def test_items_that_are_dictionaries(self):
        rows = Rows(Items([2, 2, 2]), dtype=torch.float32, device=CPU)
        assert (rows.shape, len(rows), rows.dtype) == ((3, 3), 3, torch.float32)
        batch = rows[torch.tensor([2, 0])]
        assert batch.leaves["weight"].tolist() == [2.0, 0.0] and batch.leaves["weight"].dtype == torch.float32
        assert batch.leaves["ids"].dtype == torch.int64
        assert len(rows[:0]) == 0 and rows[:0].leaves["ids"].shape == (0, 2)
        part = Data(rows, torch.arange(3)).rows(torch.tensor([2]))
        assert isinstance(part.x, Rows) and part.x[:].leaves["weight"].tolist() == [2.0]
        assert rows.to(torch.float64)[:1].leaves["weight"].dtype == torch.float64

    def test_items_of_different_lengths(self):
        rows = Rows(Items([2, 3]), dtype=torch.float32, device=CPU)
        with pytest.raises(ValueError, match="same shape in every item.*Pad or truncate them"):
            rows[:]

    def test_items_that_are_something_else(self):
        with pytest.raises(TypeError, match="must be tensors, arrays or dictionaries.*got tuple"):
            Rows([((torch.zeros(2), torch.zeros(2)), 0)], dtype=torch.float32, device=CPU)


class Named(nn.Module):
    def forward(self, ids, mask=None):
        return ids if mask is None else ids * mask


class Whole(nn.Module):
    def forward(self, batch):
        return batch["ids"]


class Wrapper(nn.Module):
    def forward(self, *args, **kwargs):
        return kwargs["ids"]


class WholeAndMore(nn.Module):
    def forward(self, batch, **settings):
        return batch["ids"]


class TestCalls:
    @pytest.mark.parametrize("network", [Named(), Whole(), Wrapper(), WholeAndMore()])
    def test_by_name_or_as_a_whole(self, network):
        ids = torch.arange(4.0).view(2, 2)
        assert torch.equal(run(network, as_inputs({"ids": ids})), ids)

    def test_names_that_forward_lacks_or_misses(self):
        for wrong in ({"ids": torch.zeros(2), "types": torch.zeros(2)}, {"mask": torch.zeros(2)}):
            with pytest.raises(TypeError, match=r"`Named.forward` takes \['ids', 'mask'\]; got inputs named"):
                arguments(Named(), as_inputs(wrong))

    def test_the_tensor_that_is_meant(self):
        logits = torch.zeros(2, 3)
        for result in (logits, SimpleNamespace(loss=None, logits=logits), {"logits": logits}, (logits, None), [logits]):
            assert output(result) is logits
        for result in (None, (), {"hidden": logits}, SimpleNamespace(last_hidden_state=logits), "text"):
            with pytest.raises(TypeError, match="must return a tensor, something with `logits`"):
                output(result)

    def test_attention_is_left_as_it_was(self):
        before = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
        with pytest.raises(ZeroDivisionError), known_attention():
            assert not torch.backends.mha.get_fastpath_enabled()
            assert torch.backends.cuda.flash_sdp_enabled()  # no transform is active
            vmap(lambda v: v if not torch.backends.cuda.flash_sdp_enabled() else 1 / 0)(torch.zeros(2))
            raise ZeroDivisionError
        assert before == (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled())
