import pytest
import torch

from bayeskit.mcmc.federated.client_split import deal

TARGETS = torch.tensor([5.0, 1.0, 4.0, 0.0, 3.0, 2.0, 6.0])


@pytest.mark.monte_carlo
def test_clients_are_of_equal_size_and_of_the_stated_heterogeneity(generator):
    rows = torch.randn(1_000, generator=generator)
    between = []
    for skew in (0.0, 0.5, 1.0):
        label = deal(rows, 4, skew=skew, generator=generator)
        assert label.bincount().tolist() == [250] * 4
        means = torch.stack([rows[label == number].mean() for number in range(4)])
        between.append(means.var() / rows.var())
    # At random four means of 250 rows differ by 1 / 250 of a variance; sorted quarters by nearly all of it.
    # Their variance times 250 is chi2_3 / 3, above 10 once in a million.
    assert between[0] < 10 / 250 < between[1] < between[2] and between[2] > 0.8
    assert deal(TARGETS, 3, skew=1.0, generator=generator).bincount().tolist() == [3, 2, 2]
    assert deal(TARGETS[:1], 4, skew=0.0, generator=generator).tolist() == [0]


def test_clients_of_ones_own_are_numbered_without_gaps(generator):
    known = torch.tensor([7, 7, 2, 9, 2, 2, 9])
    assert deal(TARGETS, known, skew=0.0, generator=generator).tolist() == [1, 1, 0, 2, 0, 0, 2]


@pytest.mark.parametrize(
    "clients, skew, message",
    [
        (0, 0.0, "`clients`"),
        (torch.zeros(3), 0.0, "`clients` must be 7 whole numbers"),
        (torch.zeros(3, dtype=torch.long), 0.0, "`clients` must be 7 whole numbers"),
        (2, 1.5, "`skew` must be from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_said(generator, clients, skew, message):
    with pytest.raises(ValueError, match=message):
        deal(TARGETS, clients, skew=skew, generator=generator)
