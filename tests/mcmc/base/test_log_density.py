import pytest
import torch

from bayeskit import mcmc
from bayeskit.mcmc.base.log_density import ravel, unravel, value_and_gradient


def test_ravel_and_back(generator):
    position = {"a": torch.randn(3, generator=generator), "b": torch.randn(3, 2, 4, generator=generator).double()}
    flat = ravel(position)
    assert flat.shape == (3, 9)
    back = unravel(flat, position)
    assert all(torch.equal(back[name], leaf) and back[name].dtype == leaf.dtype for name, leaf in position.items())
    assert unravel(flat[:1], position)["b"].shape == (1, 2, 4)


def test_gradients_are_those_of_each_chain(generator):
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    value, slope = value_and_gradient(lambda q: q["x"].sin().prod(-1), {"x": x})
    one = x[2].clone().requires_grad_()
    one.sin().prod().backward()
    assert torch.allclose(slope["x"][2], one.grad) and torch.allclose(value, x.sin().prod(-1))


def test_curvature_is_the_top_eigenvalue_of_each_chain(generator):
    basis = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    hessian = basis @ torch.diag(torch.tensor([9.0, 3.0, 2.0, 1.0, 0.1], dtype=torch.float64)) @ basis.mT

    def log_density(q):
        return -0.5 * q["scale"] * torch.einsum("ci,ij,cj->c", q["x"], hessian, q["x"]) + 0 * q["scale"]

    position = {"x": torch.zeros(2, 5, dtype=torch.float64), "scale": torch.tensor([1.0, 4.0], dtype=torch.float64)}
    found = mcmc.curvature(log_density, position, generator=generator)
    assert torch.allclose(found, torch.tensor([9.0, 36.0], dtype=torch.float64), rtol=1e-4)


@pytest.mark.monte_carlo
def test_the_diagonal_of_a_hessian(generator):
    matrix = torch.tensor([[5.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    start = {"x": torch.ones(3, 2, dtype=torch.float64)}

    def log_density(q):
        return -0.5 * torch.einsum("ci,ij,cj->c", q["x"], matrix, q["x"])

    found = mcmc.hessian_diagonal(log_density, start, num_probes=400, generator=generator)["x"]
    # z_i z_j H_ij has standard deviation 1 per probe
    assert ((found + matrix.diagonal()).abs() < 5 / 400**0.5).all()
