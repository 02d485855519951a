import os

import pytest
import torch

from bayeskit.core.checkpoint import Checkpoint, digest, snapshot


def test_a_nest_comes_back_with_the_same_bits(tmp_path, generator):
    x = torch.randn(3, generator=generator, dtype=torch.float64)
    state = {"x": x, "deep": [{"n": 3, "rate": 0.1}, None, "name"], 7: generator.get_state()}
    file = Checkpoint(tmp_path / "new" / "run.ckpt")
    assert file.load() is None
    file.save(state)
    loaded = file.load()
    assert torch.equal(loaded["x"], x) and loaded["deep"] == state["deep"] and torch.equal(loaded[7], state[7])
    assert os.listdir(tmp_path / "new") == ["run.ckpt"]


def test_a_write_that_fails_leaves_the_previous_state(tmp_path, monkeypatch):
    file = Checkpoint(tmp_path / "run.ckpt")
    file.save({"step": 1})

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        file.save({"step": 2})
    assert file.load() == {"step": 1} and os.listdir(tmp_path) == ["run.ckpt"]


@pytest.mark.parametrize("content", [b"not a checkpoint", b""])
def test_a_foreign_file_is_named(tmp_path, content):
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"notes.txt is not a bayeskit checkpoint.*Delete it"):
        Checkpoint(tmp_path / "notes.txt").load()


def test_a_file_of_torch_that_is_not_ours_is_named(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="not a bayeskit checkpoint"):
        Checkpoint(tmp_path / "model.pt").load()


def test_reading_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "boom"),))

    torch.save({"format": "bayeskit checkpoint", "version": 1, "state": Bomb()}, tmp_path / "bomb")
    with pytest.raises(ValueError, match="not a bayeskit checkpoint"):
        Checkpoint(tmp_path / "bomb").load()
    assert not (tmp_path / "boom").exists()


def test_a_later_version_is_refused(tmp_path):
    torch.save({"format": "bayeskit checkpoint", "version": 99, "state": {}}, tmp_path / "run")
    with pytest.raises(ValueError, match="version 99"):
        Checkpoint(tmp_path / "run").load()


def test_another_run_is_refused_and_the_difference_named(tmp_path):
    file = Checkpoint(tmp_path / "run")
    file.save({"identity": {"lr": 0.1, "the data": "a"}, "step": 2})
    assert file.resume({"lr": 0.1, "the data": "a"})["step"] == 2
    with pytest.raises(ValueError, match="differs in lr, the data"):
        file.resume({"lr": 0.2, "the data": "b"})


def test_snapshot_is_independent():
    x = torch.zeros(2, requires_grad=True)
    copy = snapshot({"a": [x]})
    with torch.no_grad():
        x += 1
    assert torch.equal(copy["a"][0], torch.zeros(2)) and not copy["a"][0].requires_grad


def test_digest_tells_values_types_and_shapes_apart():
    x = torch.arange(6.0)
    variants = [x, x.double(), x.reshape(2, 3), x + 1, None, x.bool(), x.bfloat16()]
    assert len({digest(v) for v in variants}) == len(variants)
    assert digest(x.reshape(2, 3).mT) == digest(x.reshape(2, 3).mT.contiguous())
