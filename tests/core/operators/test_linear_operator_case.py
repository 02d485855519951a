"""linear_operator's own contract, run over the operators of this library: two hooks an operator."""

import unittest

import pytest
import torch
from gpytorch.kernels import RBFKernel
from linear_operator import settings
from linear_operator.operators import BlockInterleavedLinearOperator, DenseLinearOperator, DiagLinearOperator
from linear_operator.test.linear_operator_test_case import LinearOperatorTestCase

from bayeskit.core import operators


def network(weights, x):
    inner, outer = weights.split([12, 8])
    return torch.tanh(x @ inner.view(2, 6))[:, :4] @ outer.view(4, 2) + x


# linear_operator indexes through sparse products, which this version of torch calls experimental
@pytest.mark.filterwarnings("ignore:Sparse")
class Hooks(LinearOperatorTestCase, unittest.TestCase):
    """Runs in float64, so that gradients of solves are compared to more than their rounding."""

    __test__ = False
    seed = 0

    def __init_subclass__(cls):
        cls.__test__ = True

    def setUp(self):
        super().setUp()
        torch.set_default_dtype(torch.float64)
        # The contract assumes the library's defaults, which BoTorch changes for the whole process when it is imported.
        self.enterContext(settings.fast_computations(covar_root_decomposition=True, log_prob=True, solves=True))
        self.enterContext(settings.max_cholesky_size(800))

    def tearDown(self):
        torch.set_default_dtype(torch.float32)
        super().tearDown()


class TestLinearized(Hooks):
    def create_linear_op(self):
        x = torch.tensor([[0.3, -1.0], [1.2, 0.5], [-0.7, 0.9]])
        weights = torch.linspace(-1.5, 1.5, 20).sin()
        covariance = DiagLinearOperator(torch.linspace(0.5, 1.5, 20))
        return operators.Linearized(weights, covariance, x, function=network)

    def evaluate_linear_op(self, linear_op):
        jacobian = torch.func.jacrev(lambda w: network(w, linear_op.x).flatten())(linear_op.mean)
        return jacobian @ linear_op.weight_covariance.to_dense() @ jacobian.mT


class TestMaskedDiagonal(Hooks):
    def create_linear_op(self):
        # all active, in another order: the contract asks for solves
        return operators.MaskedDiagonal(torch.tensor([2.0, 0.5, 1.5]), torch.tensor([2, 0, 1]), size=3)

    def evaluate_linear_op(self, linear_op):
        return torch.diag(linear_op.values[[1, 2, 0]])


class TestInverse(Hooks):
    def create_linear_op(self):
        return operators.Inverse(torch.tensor([[2.0, 0.5, 0.1], [0.5, 1.5, 0.3], [0.1, 0.3, 1.0]]))

    def evaluate_linear_op(self, linear_op):
        tril = linear_op.tril.to_dense().tril()
        return torch.linalg.inv(tril @ tril.mT)


class TestInverseBatch(TestInverse):
    def create_linear_op(self):
        matrix = torch.tensor([[2.0, 0.5, 0.1], [0.5, 1.5, 0.3], [0.1, 0.3, 1.0]])
        return operators.Inverse(torch.stack([matrix, matrix + torch.eye(3)]))


class TestKroneckerInverse(Hooks):
    def create_linear_op(self):
        a, g = torch.tensor([[1.0, 0.4], [0.4, 0.8]]), torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 0.7]])
        (values_a, vectors_a), (values_g, vectors_g) = torch.linalg.eigh(a), torch.linalg.eigh(g)
        return operators.KroneckerInverse(vectors_a, values_a, vectors_g, values_g, 0.5)

    def evaluate_linear_op(self, linear_op):
        basis = torch.einsum("...ij,...kl->...ikjl", linear_op.vectors_a, linear_op.vectors_g)
        basis = basis.flatten(-4, -3).flatten(-2)
        products = linear_op.values_a.unsqueeze(-1) * linear_op.values_g.unsqueeze(-2)
        values = 1 / (products + linear_op.shift[..., None, None])
        return basis @ torch.diag_embed(values.flatten(-2)) @ basis.mT


class TestScaled(Hooks):
    def create_linear_op(self):
        return operators.Scaled(torch.tensor([0.5, 2.0, 1.0]), torch.eye(3) + 0.3)

    def evaluate_linear_op(self, linear_op):
        return linear_op.scale.unsqueeze(-1) * linear_op.inner.to_dense() * linear_op.scale.unsqueeze(-2)


class TestMixed(Hooks):
    def create_linear_op(self):
        roots = torch.linspace(-1.5, 2.0, 18).reshape(2, 3, 3).sin()
        blocks = roots @ roots.mT + torch.diag(torch.tensor([1.0, 0.5, 2.0]))
        independent = BlockInterleavedLinearOperator(DenseLinearOperator(blocks))
        return operators.Mixed(torch.tensor([[1.0, 0.5], [-0.4, 0.9]]), independent)

    def evaluate_linear_op(self, linear_op):
        rows = torch.block_diag(*[linear_op.mixing] * 3)
        return rows @ linear_op.inner.to_dense() @ rows.mT


class TestKernelOperator(Hooks):
    kernel = RBFKernel().requires_grad_(False)

    def create_linear_op(self):
        x = torch.tensor([[0.3, -1.0], [1.2, 0.5], [-0.7, 0.9], [2.0, 2.0]])
        return operators.KernelOperator(x, x, kernel=self.kernel)

    def evaluate_linear_op(self, linear_op):
        squared = (linear_op.x1.unsqueeze(-2) - linear_op.x2.unsqueeze(-3)).square().sum(-1)
        return torch.exp(-0.5 * squared / self.kernel.lengthscale.item() ** 2)

    def test_float(self):  # float64 whatever it is asked for
        assert self.create_linear_op().float().dtype == torch.float64

    test_half = test_float
