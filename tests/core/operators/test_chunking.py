import pytest

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
