"""Many normals at once against torch's, and life without a compiler. The function alone: bnn/test_ivon_kernel.py."""

import shutil

import pytest
import torch

from bayeskit.core import generators, normals

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
ENOUGH = generators.COMPILED_FROM


@needs_compiler
@pytest.mark.parametrize("shape", [(ENOUGH + 5,), (3, ENOUGH // 2, 1)])
def test_many_normals_are_those_of_torch_and_so_is_the_generator(shape):
    ours, theirs = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    like = torch.zeros(1)
    for size in (shape, (7,), shape):  # in turns with a few, which torch draws
        found = generators.normal(size, like=like, generator=ours)
        # logarithm and sine are good to 1e-6
        assert torch.allclose(found, torch.randn(size, generator=theirs), rtol=1e-5, atol=3e-6)
        assert torch.equal(ours.get_state(), theirs.get_state())


@needs_compiler
def test_the_compiled_function_is_asked_for_many_floats_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(normals.Normals, "normal_", lambda self, out, generator: asked.append(out.shape))
    assert normals.load() is not None
    asked.clear()
    for size, dtype in (((ENOUGH,), torch.float32), ((ENOUGH - 1,), torch.float32), ((ENOUGH,), torch.float64)):
        generators.normal(size, like=torch.zeros(1, dtype=dtype), generator=torch.Generator())
    assert asked == [(ENOUGH,)]


def test_without_a_compiler_they_are_torchs(monkeypatch):
    monkeypatch.setattr(normals, "load", lambda: None)
    found = generators.normal((ENOUGH,), like=torch.zeros(1), generator=torch.Generator().manual_seed(2))
    assert torch.equal(found, torch.randn(ENOUGH, generator=torch.Generator().manual_seed(2)))


def test_a_compiler_that_is_missing_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert normals.load.__wrapped__() is None
