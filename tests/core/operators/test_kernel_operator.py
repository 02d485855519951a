"""k(x1, x2) beyond the contract: learning the kernel, kernels with a batch, chunks, pieces."""

import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from linear_operator.operators import IdentityLinearOperator, KroneckerProductLinearOperator

from bayeskit.core import operators
from bayeskit.core.operators import chunking


@pytest.fixture
def x(generator):
    return torch.randn(7, 2, generator=generator).double()


def test_gradients_reach_the_kernel_through_every_route(x, generator):
    kernel = ScaleKernel(MaternKernel(nu=1.5, ard_num_dims=2)).double()
    rhs = torch.randn(14, 3, generator=generator).double()

    parameters = list(kernel.parameters())

    def gradients(value):
        return torch.autograd.grad(
            value.sum(), parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )

    eye = IdentityLinearOperator(2, dtype=torch.float64)
    op = KroneckerProductLinearOperator(operators.KernelOperator(x, x, kernel=kernel), eye)
    matrix = torch.kron(kernel(x, x).to_dense(), torch.eye(2).double())
    noisy = matrix + torch.eye(14)
    pairs = [
        (op @ rhs, matrix @ rhs),
        (op.to_dense() ** 2, matrix**2),
        (op.diagonal(), matrix.diagonal()),
        (
            operators.block_diagonal(op, 2) ** 2,
            torch.stack([matrix[i : i + 2, i : i + 2] for i in range(0, 14, 2)]) ** 2,
        ),
        (operators.solve(op.add_jitter(1.0), rhs), torch.linalg.solve(noisy, rhs)),
        (operators.logdet(op.add_jitter(1.0)), torch.logdet(noisy)),
    ]
    for answer, expected in pairs:
        torch.testing.assert_close(answer, expected, rtol=1e-9, atol=1e-9)
        for gradient, reference in zip(gradients(answer), gradients(expected), strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-8, atol=1e-8)


def test_a_kernel_with_a_batch_broadcasts(x):
    kernel = RBFKernel(batch_shape=torch.Size([3])).double().requires_grad_(False)
    kernel.lengthscale = torch.tensor([[[0.5]], [[1.0]], [[2.0]]])
    op = operators.KernelOperator(x, x[:4], kernel=kernel)
    expected = kernel(x, x[:4]).to_dense()
    assert op.shape == expected.shape == (3, 7, 4)
    torch.testing.assert_close(op @ torch.ones(4, 2).double(), expected @ torch.ones(4, 2).double())
    torch.testing.assert_close(op[1].to_dense(), expected[1])
    square = operators.KernelOperator(x, x, kernel=kernel)
    torch.testing.assert_close(square.diagonal(dim1=-1, dim2=-2), torch.ones(3, 7).double())


def test_float32_inputs_are_evaluated_in_float64(x):
    kernel = RBFKernel().requires_grad_(False)
    op = operators.KernelOperator(x.float(), x.float(), kernel=kernel)
    assert op.dtype == torch.float64
    torch.testing.assert_close(op.to_dense(), kernel(x.float().double()).to_dense(), rtol=1e-14, atol=1e-14)


def test_chunks_of_rows_change_nothing_and_bound_the_memory(x, monkeypatch):
    rows = []

    class Counting(RBFKernel):
        def forward(self, x1, x2, diag=False, **options):
            rows.append(x1.shape[-2])
            return super().forward(x1, x2, diag=diag, **options)

    op = operators.KernelOperator(x, x, kernel=Counting().double().requires_grad_(False))
    expected = op.to_dense()
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 2 * 7)
    rows.clear()
    torch.testing.assert_close(op @ torch.eye(7).double(), expected)
    assert rows == [2, 2, 2, 1]


def test_pieces_evaluate_only_their_own_inputs(x):
    op = operators.KernelOperator(x, x, kernel=RBFKernel().double().requires_grad_(False))
    matrix = op.to_dense()
    assert isinstance(op[1:3, 2:], operators.KernelOperator)
    torch.testing.assert_close(op[1:3, 2:].to_dense(), matrix[1:3, 2:])
    index = torch.tensor([5, 0, 2])
    torch.testing.assert_close(op[index][:, index].to_dense(), matrix[index][:, index])
    torch.testing.assert_close(op[index, index.flip(0)], matrix[index, index.flip(0)])
    torch.testing.assert_close(op.mT.to_dense(), matrix.mT)


def test_the_diagonal_of_many_inputs_needs_no_matrix(generator):
    x = torch.randn(100_000, 2, generator=generator)  # the matrix would take 80 GB
    op = operators.KernelOperator(x, x, kernel=RBFKernel().requires_grad_(False))
    assert op.diagonal().shape == (100_000,)
