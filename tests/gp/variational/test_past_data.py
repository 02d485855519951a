from dataclasses import replace

import torch

from bayeskit.core.operators import factorize
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.variational.elbo_row_sites import rows_bound
from bayeskit.gp.variational.past_data import PastData, PastDataTerm
from bayeskit.gp.variational.per_datum_sites import RowSites
from bayeskit.gp.variational.projected_data import ProjectedData
from bayeskit.gp.variational.whitened_gaussian import Sites, WhitenedGaussian
from bayeskit.gp.variational.whitened_posterior import optimal_sites

from ..problems import close, constant, generator, noise, process, regression, test_inputs


def stream(n=25):
    """25 discarded data points and 15 kept ones, with q optimal for all of them."""
    data, z = regression(40), test_inputs(8)
    model = learnable(process(mean=constant(0.2)), noise(learn=True), learn=True)
    first, second = (data.rows(slice(0, n)), data.rows(slice(n, None)))
    with torch.no_grad():
        tril = torch.linalg.cholesky(gram(model.kernel, z, z))
        sites, _ = optimal_sites(model, tril, z, first, Sites.none(1, z), max_steps=1)
        more, _ = optimal_sites(model, tril, z, second, Sites.none(1, z), before=sites, max_steps=1)
        rest = PastData.none(1, z).joined(model, (z, tril), sites + more, first, sites)
    past = PastDataTerm.at(model, (z, tril), rest, torch.zeros(40 - n).double())
    held = [RowSites.at(model, tril, z, rows, sites + more) for rows in (second, data)]
    return model, z, (second, data), held, past


def test_discarded_data_count_in_the_bound_as_if_they_were_kept():
    """For Gaussian noise, at the hyperparameters of their site, up to a constant for any sites of the kept data."""
    model, z, (second, data), (some, every), past = stream()
    gaps = []
    with torch.no_grad():
        for factor in (1.0, 1.3):
            some_now, every_now = replace(some, pull=some.pull * factor), replace(every, pull=every.pull.clone())
            every_now.pull[:, 25:] *= factor
            values = rows_bound(model, z, second, some_now, past)[0], rows_bound(model, z, data, every_now)[0]
            gaps.append(values[0] - values[1])
    close(gaps[0], gaps[1], 1e-8)


def test_the_noise_of_discarded_data_is_learned_from_their_misfit():
    """With q where it is, the derivative in the noise is that of the expected log-likelihood of all data."""
    model, z, (second, data), _, past = stream()
    with torch.no_grad():
        tril = torch.linalg.cholesky(gram(model.kernel, z, z))
        total = past.sites_at(model, tril, z)[0]
        more = optimal_sites(model, tril, z, second, Sites.none(1, z), before=total, max_steps=1)[0]
        q = WhitenedGaussian.from_sites(total + more)
        mean, variance = ProjectedData.build(model, tril, z, data).marginals(q)
    expected = data.total(model.expected_log_prob(mean.mT, variance.mT, data.y))
    (reference,) = torch.autograd.grad(expected, [model.likelihood.raw_noise])
    held = second.total(model.expected_log_prob(mean.mT[25:], variance.mT[25:], second.y))
    factor = factorize(torch.eye(8).double() + (total + more).precision, name="precision of q(v)")
    term = past.value(model, (total, total.shift.sum()), mean.new_zeros(1, 8), factor, mean.new_zeros(1, 15))
    close(torch.autograd.grad(held + term, [model.likelihood.raw_noise])[0], reference, 1e-8)


def test_unexplained_variance_counts_for_all_data_points_that_a_kept_one_stands_for():
    model, z, (second, _), (some, _), past = stream()
    with torch.no_grad():
        counts = torch.linspace(0, 3, 15).double()
        values = [rows_bound(model, z, second, some, replace(past, counts=c))[0] for c in (0 * counts, counts)]
        tril = torch.linalg.cholesky(gram(model.kernel, z, z))
        a = torch.linalg.solve_triangular(tril, gram(model.kernel, z, second.x), upper=False)
        open_ = gram(model.kernel, second.x, second.x).diagonal() - a.square().sum(0)
    close(values[1] - values[0], -0.5 * (counts * some.precision[0] * open_).sum(), 1e-8)


def test_a_site_on_function_values_does_not_depend_on_mean_and_kernel():
    """A site on u = f(Z) - m(Z) is one on f(Z), its height included."""
    z, g = test_inputs(8), generator(4)
    model = learnable(process(mean=constant(0.2)), noise(), learn=True)
    root = torch.randn(1, 8, 20, dtype=torch.float64, generator=g)
    sites = Sites(torch.randn(1, 8, dtype=torch.float64, generator=g), root @ root.mT)
    f = torch.randn(5, 8, dtype=torch.float64, generator=g)
    with torch.no_grad():
        at = (z, torch.linalg.cholesky(gram(model.kernel, z, z)))
        past = PastDataTerm.at(model, at, replace(PastData.none(1, z), sites=sites), z.new_zeros(0))
        values = []
        for rise, stretch in ((0.0, 1.0), (0.7, 1.3)):
            model.mean.raw_constant.add_(rise)
            model.kernel.base_kernel.lengthscale = model.kernel.base_kernel.lengthscale * stretch
            tril = torch.linalg.cholesky(gram(model.kernel, z, z))
            now, height = past.sites_at(model, tril, z)
            v = torch.linalg.solve_triangular(tril, (f - model.mean(z)).mT, upper=False)
            values.append(height + now.shift[0] @ v - 0.5 * (v * (now.precision[0] @ v)).sum(0))
    close(values[1], values[0], 1e-8)


def test_a_site_at_other_inducing_points_is_its_expectation():
    """E[log t(w) | v] at another Z, by the distribution of the old values given the new ones; differentiable there."""
    z, z_new, g = test_inputs(8), test_inputs(6, seed=9).requires_grad_(), generator(4)
    model = learnable(process(mean=constant(0.2)), noise(), learn=True)
    root = torch.randn(1, 8, 20, dtype=torch.float64, generator=g)
    sites = Sites(torch.randn(1, 8, dtype=torch.float64, generator=g), root @ root.mT)
    v = torch.randn(6, 5, dtype=torch.float64, generator=g)
    with torch.no_grad():
        tril = torch.linalg.cholesky(gram(model.kernel, z, z))
        past = PastDataTerm.at(model, (z, tril), replace(PastData.none(1, z), sites=sites), z.new_zeros(0))
        square, cross = gram(model.kernel, z_new, z_new), gram(model.kernel, z, z_new)
        told = torch.linalg.solve(square, cross.mT).mT
        mean = torch.linalg.solve(tril, told @ torch.linalg.cholesky(square) @ v)
        left = torch.linalg.solve(tril, torch.linalg.solve(tril, tril @ tril.mT - told @ cross.mT).mT)
    now, height = past.sites_at(model, torch.linalg.cholesky(gram(model.kernel, z_new, z_new)), z_new)
    value = height + now.shift[0] @ v - 0.5 * (v * (now.precision[0] @ v)).sum(0)
    p = sites.precision[0]
    close(value, sites.shift[0] @ mean - 0.5 * ((mean * (p @ mean)).sum(0) + (p * left).sum()), 1e-8)
    assert torch.autograd.grad(value.sum(), z_new)[0].abs().sum() > 0
