import pytest
import torch

from bayeskit.core.operators import factorize
from bayeskit.gp import DualProcess
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.variational.site_transfer import TRANSFERS, transferred
from bayeskit.gp.variational.whitened_gaussian import Sites

from ..problems import close, generator, process, test_inputs


def at(kernel, z):
    with torch.no_grad():
        return z, factorize(gram(kernel, z, z), name="K_zz").tril


def sites(m=8, k=2):
    """Sites of 30 data points in random directions."""
    g = generator(4)
    rows = torch.randn(k, m, 30, dtype=torch.float64, generator=g)
    pull = torch.randn(k, 30, 1, dtype=torch.float64, generator=g)
    return Sites((rows @ pull).squeeze(-1), rows @ rows.mT)


def moved(how, z_new, k=2):
    """The process at 8 points before and after a move, without data elsewhere."""
    base, z = process(k=k), test_inputs(8)
    old, new = at(base.kernel, z), at(base.kernel, z_new)
    after = transferred(sites(k=k), base.kernel, old, new, how)
    return DualProcess.of(base, *old, sites(k=k)), DualProcess.of(base, *new, after)


def covariances(process, x, k=2):
    dense = process(x).covariance.to_dense().reshape(len(x), k, len(x), k)
    return torch.stack([dense[:, j, :, j] for j in range(k)])


@pytest.mark.parametrize("how", TRANSFERS)
def test_sites_at_unchanged_points_are_unchanged(how):
    base, given = process(k=2), sites()
    place = at(base.kernel, test_inputs(8))
    assert transferred(given, base.kernel, place, place, how) is given


@pytest.mark.parametrize("how", TRANSFERS)
@pytest.mark.parametrize("z_new", [test_inputs(8).flip(0), torch.cat([test_inputs(5, seed=9), test_inputs(8)])])
def test_exact_where_the_old_points_are_among_the_new(how, z_new):
    before, after = moved(how, z_new)
    x = test_inputs(11, seed=5)
    close(after(x).mean, before(x).mean, 1e-8)
    close(covariances(after, x), covariances(before, x), 1e-8)


def test_the_marginal_is_the_distribution_of_the_values_at_the_new_points():
    z_new = test_inputs(6, seed=9)
    before, after = moved("marginal", z_new)
    close(after(z_new).mean, before(z_new).mean, 1e-8)
    close(covariances(after, z_new), covariances(before, z_new), 1e-8)


@pytest.mark.monte_carlo
def test_sites_transferred_as_they_are_are_over_confident():
    """S_site <= S_marginal, the exact posterior at Z_new, in the order of matrices; and strictly so."""
    z_new = test_inputs(6, seed=9)
    before, after = moved("site", z_new)
    gap = covariances(before, z_new) - covariances(after, z_new)
    assert torch.linalg.eigvalsh(gap).min() > -1e-10
    ratio = covariances(after, z_new).diagonal(0, 1, 2) / covariances(before, z_new).diagonal(0, 1, 2)
    assert ratio.min() < 0.5


@pytest.mark.parametrize("how", TRANSFERS)
def test_no_information_is_transferred_as_none(how):
    base = process()
    old, new = at(base.kernel, test_inputs(8)), at(base.kernel, test_inputs(5, seed=9))
    after = transferred(Sites.none(1, old[0]), base.kernel, old, new, how)
    assert after.shift.shape == (1, 5)
    assert not after.shift.any() and not after.precision.any()
