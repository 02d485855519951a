import pytest
import torch

from bayeskit.core.operators import chunking


@pytest.mark.parametrize(("total", "cost"), [(0, 1), (1, 10**12), (7, 3), (10, 1), (11, 5), (3, 0)])
def test_chunks_cover_everything_once_within_the_budget(total, cost, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 10)
    pieces = [range(total)[piece] for piece in chunking.chunks(total, cost)]
    assert [i for piece in pieces for i in piece] == list(range(total))
    assert all(len(piece) == 1 or len(piece) * cost <= 10 for piece in pieces)


def test_the_smaller_budget_and_what_fits(monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 10)
    monkeypatch.setattr(chunking, "CACHE_ELEMENTS", 2)
    assert len(list(chunking.chunks(10, 1))) == 1
    assert len(list(chunking.chunks(10, 1, cached=True))) == 5
    assert chunking.fits(10) and not chunking.fits(11)


def test_pieces_cut_one_axis_and_keep_an_empty_input(monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 4)
    x = torch.arange(20.0).reshape(2, 5, 2)
    found = list(chunking.pieces(x, 2, dim=-2))
    assert [piece.shape[-2] for piece in found] == [2, 2, 1] and torch.equal(torch.cat(found, -2), x)
    assert [len(piece) for piece in chunking.pieces(torch.zeros(5, 3), 2, elements=6)] == [3, 2]
    assert [piece.shape for piece in chunking.pieces(torch.zeros(0, 3), 2)] == [(0, 3)]
