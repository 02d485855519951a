"""Summaries of a matrix of scores, by hand."""

import pytest

from bayeskit import metrics

R = [[0.9, 0.2, 0.1], [0.95, 0.8, 0.1], [0.6, 0.7, 1.0]]


def test_summaries_by_hand():
    assert metrics.average_accuracy(R) == pytest.approx((0.6 + 0.7 + 1.0) / 3)
    assert metrics.backward_transfer(R) == pytest.approx(((0.6 - 0.9) + (0.7 - 0.8)) / 2)
    assert metrics.forgetting(R) == pytest.approx(((0.95 - 0.6) + (0.8 - 0.7)) / 2)


@pytest.mark.parametrize("summary", [metrics.backward_transfer, metrics.forgetting])
def test_one_task_has_nothing_to_forget(summary):
    assert metrics.average_accuracy([[0.5]]) == 0.5
    with pytest.raises(ValueError, match="at least 2 tasks"):
        summary([[0.5]])
    with pytest.raises(ValueError, match="square"):
        summary(R[:2])
