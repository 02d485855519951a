"""One contract for every operator: the same values and gradients as its dense twin, whatever the route."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from gpytorch.kernels import RBFKernel
from linear_operator import LinearOperator
from linear_operator.operators import (
    BlockDiagLinearOperator,
    BlockInterleavedLinearOperator,
    ConstantMulLinearOperator,
    DenseLinearOperator,
    DiagLinearOperator,
    IdentityLinearOperator,
    KroneckerProductLinearOperator,
    RootLinearOperator,
    SumLinearOperator,
)
from torch import Tensor

from bayeskit.core import operators


@dataclass(frozen=True)
class Case:
    """An operator and its dense twin, both built from the same leaf tensors.

    `shapes` are those of the leaves behind the batch axes; leaves named in `positive` are made positive.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    build: Callable[..., LinearOperator]
    dense: Callable[..., Tensor]
    positive: tuple[int, ...] = ()
    blocks: int = 2
    singular: bool = False
    batched: bool = True

    def leaves(self, dtype: torch.dtype, batch: tuple[int, ...]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        leaves = []
        for i, shape in enumerate(self.shapes):
            values = torch.randn((*batch, *shape), generator=generator, dtype=torch.float64)
            values = 0.5 + values.abs() if i in self.positive else values
            leaves.append(values.to(dtype).requires_grad_())
        return leaves


class Network:
    """A layer of 3 tanh units and two outputs; p = 17 weights on two inputs."""

    def __call__(self, weights: Tensor, x: Tensor) -> Tensor:
        inner, bias, outer, shift = weights.split([6, 3, 6, 2])
        return torch.tanh(x @ inner.view(2, 3) + bias) @ outer.view(3, 2) + shift


def symmetric(root: Tensor) -> Tensor:
    return root @ root.mT + torch.eye(root.shape[-1], dtype=root.dtype)


def twin_of_linearized(mean: Tensor, covariance: Tensor, x: Tensor) -> Tensor:
    jacobian = torch.func.jacrev(lambda w: Network()(w, x).flatten())(mean)
    return jacobian @ covariance @ jacobian.mT


def eigenbasis(a: Tensor, g: Tensor, shift: Tensor, build: Callable[..., LinearOperator]) -> LinearOperator:
    (values_a, vectors_a), (values_g, vectors_g) = torch.linalg.eigh(symmetric(a)), torch.linalg.eigh(symmetric(g))
    return build(vectors_a, values_a, vectors_g, values_g, shift)


def kron(a: Tensor, b: Tensor) -> Tensor:
    return (a[..., :, None, :, None] * b[..., None, :, None, :]).flatten(-4, -3).flatten(-2)


def sample_covariance(draws: Tensor) -> Tensor:
    centered = (draws - draws.mean(-2, keepdim=True)).mT
    return centered @ centered.mT / draws.shape[-2]


def rbf(x: Tensor) -> Tensor:
    x = x.double()
    squared = (x.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1)
    return torch.exp(-0.5 * squared / KERNEL.lengthscale.item() ** 2)


def block_diag(blocks: Tensor) -> Tensor:
    eye = torch.eye(blocks.shape[-3], dtype=blocks.dtype)
    return (eye[:, None, :, None] * blocks[..., :, :, None, :]).flatten(-4, -3).flatten(-2)


def interleaved(blocks: Tensor) -> Tensor:
    eye = torch.eye(blocks.shape[-3], dtype=blocks.dtype)
    return torch.einsum("...knm,kl->...nkml", blocks, eye).flatten(-4, -3).flatten(-2)


KERNEL = RBFKernel().requires_grad_(False)
INDEX = torch.tensor([4, 1, 2])

LINEARIZED = {
    "diagonal": ((17,), (1,), DiagLinearOperator, torch.diag_embed),
    "dense": ((17, 17), (), lambda r: DenseLinearOperator(symmetric(r)), symmetric),
    "inverse": ((17, 17), (), lambda r: operators.Inverse(symmetric(r)), lambda r: torch.linalg.inv(symmetric(r))),
    "low rank": (
        (17, 2),
        (),
        lambda r: operators.low_rank_plus_diagonal(r, r[..., 0] ** 2 + 1),
        lambda r: r @ r.mT + torch.diag_embed(r[..., 0] ** 2 + 1),
    ),
}

CASES = [
    Case(
        f"Linearized, {name}",
        ((17,), shape, (4, 2)),
        lambda mean, s, x, build=build: operators.Linearized(mean, build(s), x, function=Network()),
        lambda mean, s, x, dense=dense: twin_of_linearized(mean, dense(s), x),
        positive=positive,
        batched=False,
    )
    for name, (shape, positive, build, dense) in LINEARIZED.items()
] + [
    Case("Inverse", ((6, 6),), lambda r: operators.Inverse(symmetric(r)), lambda r: torch.linalg.inv(symmetric(r))),
    Case(
        "Inverse, diagonal",
        ((6,),),
        lambda d: operators.Inverse(DiagLinearOperator(d)),
        lambda d: torch.diag_embed(1 / d),
        positive=(0,),
    ),
    Case(
        "KroneckerInverse",
        ((3, 3), (2, 2), ()),
        lambda a, g, shift: eigenbasis(a, g, shift, operators.KroneckerInverse),
        lambda a, g, shift: torch.linalg.inv(
            kron(symmetric(a), symmetric(g)) + shift[..., None, None] * torch.eye(6, dtype=a.dtype)
        ),
        positive=(2,),
    ),
    Case(
        "masked_diagonal",
        ((3,),),
        lambda v: operators.masked_diagonal(v, INDEX, 6),
        lambda v: torch.diag_embed(torch.zeros(*v.shape[:-1], 6, dtype=v.dtype).index_copy(-1, INDEX, v)),
        positive=(0,),
        singular=True,
    ),
    Case(
        "low_rank_plus_diagonal",
        ((6, 2), (6,)),
        operators.low_rank_plus_diagonal,
        lambda r, d: r @ r.mT + torch.diag_embed(d),
        positive=(1,),
    ),
    Case(
        "from_samples",
        ((4, 6),),
        lambda draws: operators.from_samples(draws.movedim(-2, 0)),
        sample_covariance,
        singular=True,
    ),
    Case(
        "Scaled",
        ((6,), (6, 6)),
        lambda d, r: operators.Scaled(d, symmetric(r)),
        lambda d, r: d.unsqueeze(-1) * symmetric(r) * d.unsqueeze(-2),
        positive=(0,),
    ),
    Case(
        "Mixed",
        ((2, 3), (3, 3, 3)),
        lambda w, r: operators.Mixed(w, BlockInterleavedLinearOperator(DenseLinearOperator(symmetric(r)))),
        lambda w, r: torch.einsum("...jp,...pnm,...lp->...njml", w, symmetric(r), w).flatten(-4, -3).flatten(-2),
    ),
    Case("KernelOperator", ((6, 2),), lambda x: operators.KernelOperator(x, x, kernel=KERNEL), rbf),
    Case(
        "KernelOperator (x) I",
        ((3, 2),),
        lambda x: KroneckerProductLinearOperator(
            operators.KernelOperator(x, x, kernel=KERNEL), IdentityLinearOperator(2, dtype=torch.float64)
        ),
        lambda x: kron(rbf(x), torch.eye(2, dtype=torch.float64)),
    ),
    Case("dense", ((6, 6),), lambda r: DenseLinearOperator(symmetric(r)), symmetric),
    Case("diagonal", ((6,),), DiagLinearOperator, torch.diag_embed, positive=(0,)),
    Case("root", ((6, 8),), RootLinearOperator, lambda r: r @ r.mT),
    Case(
        "sum",
        ((6, 2), (6,)),
        lambda r, d: SumLinearOperator(RootLinearOperator(r), DiagLinearOperator(d), RootLinearOperator(2 * r)),
        lambda r, d: 5 * r @ r.mT + torch.diag_embed(d),
        positive=(1,),
    ),
    Case(
        "multiple",
        ((6, 6), ()),
        lambda r, c: ConstantMulLinearOperator(DenseLinearOperator(symmetric(r)), c),
        lambda r, c: c[..., None, None] * symmetric(r),
        positive=(1,),
    ),
    Case(
        "Kronecker product of three",
        ((2,), (2, 2), (3, 3)),
        lambda a, b, c: KroneckerProductLinearOperator(
            DiagLinearOperator(a), DenseLinearOperator(symmetric(b)), operators.Inverse(symmetric(c))
        ),
        lambda a, b, c: kron(kron(torch.diag_embed(a), symmetric(b)), torch.linalg.inv(symmetric(c))),
        positive=(0,),
        blocks=3,
    ),
    Case(
        "interleaved blocks",
        ((2, 3, 3),),
        lambda r: BlockInterleavedLinearOperator(DenseLinearOperator(symmetric(r))),
        lambda r: interleaved(symmetric(r)),
    ),
    Case(
        "blocks",
        ((3, 2, 2),),
        lambda r: BlockDiagLinearOperator(DenseLinearOperator(symmetric(r))),
        lambda r: block_diag(symmetric(r)),
    ),
]

SETTINGS = [
    pytest.param(case, dtype, batch, id=f"{case.name}, {str(dtype)[6:]}, {batch}")
    for case in CASES
    for dtype in (torch.float64, torch.float32)
    for batch in ((), (2,), (2, 3))
    if case.batched or batch == ()
]


def gradient_of(answer: Tensor, weight: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    if not answer.requires_grad:  # such as the diagonal of a stationary kernel
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad((answer * weight).sum(), leaves, allow_unused=True, materialize_grads=True)


def dense_blocks(matrix: Tensor, k: int) -> Tensor:
    return torch.stack([matrix[..., i : i + k, i : i + k] for i in range(0, matrix.shape[-1], k)], -3)


def quadratic_form(matrix: Tensor, rhs: Tensor) -> Tensor:
    return rhs.mT @ matrix @ rhs


def from_half(op: LinearOperator, rhs: Tensor) -> Tensor:
    half = operators.half_product(op, rhs)
    return half.mT @ half


PRODUCTS = {  # what is asked of the operator, and of its dense twin, with k and some columns
    "to_dense": (lambda op, k, rhs: op.to_dense(), lambda m, k, rhs: m),
    "product": (lambda op, k, rhs: op @ rhs, lambda m, k, rhs: m @ rhs),
    "diagonal": (lambda op, k, rhs: op.diagonal(dim1=-1, dim2=-2), lambda m, k, rhs: m.diagonal(dim1=-1, dim2=-2)),
    "blocks": (lambda op, k, rhs: operators.block_diagonal(op, k), lambda m, k, rhs: dense_blocks(m, k)),
    "blocks of one": (lambda op, k, rhs: operators.block_diagonal(op, 1), lambda m, k, rhs: dense_blocks(m, 1)),
    "half_product": (lambda op, k, rhs: from_half(op, rhs), lambda m, k, rhs: quadratic_form(m, rhs)),
}
INVERSES = {
    "solve": (lambda op, k, rhs: operators.solve(op, rhs), lambda m, k, rhs: torch.linalg.solve(m, rhs)),
    "logdet": (lambda op, k, rhs: operators.logdet(op), lambda m, k, rhs: torch.logdet(m)),
    "quadratic": (
        lambda op, k, rhs: operators.quadratic(op, rhs[..., 0]),
        lambda m, k, rhs: (rhs[..., 0] * torch.linalg.solve(m, rhs)[..., 0]).sum(-1),
    ),
}


@pytest.mark.parametrize(("case", "dtype", "batch"), SETTINGS)
class TestContract:
    """Values and gradients of everything an operator is asked for, against its dense twin."""

    def test_equals_its_dense_twin(self, case, dtype, batch):
        for name, (ask, reference) in self.questions(case).items():
            leaves = case.leaves(dtype, batch)
            op, matrix = case.build(*leaves), case.dense(*leaves)
            rhs = torch.randn(*batch, matrix.shape[-1], 3, generator=torch.Generator().manual_seed(1)).to(op.dtype)
            tolerance = 1e-9 if dtype == torch.float64 else 2e-3
            answer, expected = ask(op, case.blocks, rhs), reference(matrix, case.blocks, rhs)
            assert answer.dtype == op.dtype, name
            assert answer.shape == expected.shape, name
            torch.testing.assert_close(
                answer, expected, rtol=tolerance, atol=tolerance, msg=lambda m, q=name: f"{q}: {m}"
            )
            weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).to(expected.dtype)
            gradients, references = gradient_of(answer, weight, leaves), gradient_of(expected, weight, leaves)
            scale = max(float(g.abs().max()) for g in references)
            for gradient, right in zip(gradients, references, strict=True):
                message = lambda m, q=name: f"gradient of {q}: {m}"  # noqa: E731
                torch.testing.assert_close(gradient, right, rtol=tolerance, atol=tolerance * max(1, scale), msg=message)

    @staticmethod
    def questions(case):
        return PRODUCTS if case.singular else PRODUCTS | INVERSES

    def test_products_with_a_vector_and_from_the_left(self, case, dtype, batch):
        op = case.build(*case.leaves(dtype, batch))
        matrix, tolerance = op.to_dense(), 1e-10 if dtype == torch.float64 else 1e-4
        lhs = torch.randn(*batch, 2, op.shape[-1], generator=torch.Generator().manual_seed(1)).to(op.dtype)
        torch.testing.assert_close(
            lhs @ op, lhs @ matrix, rtol=tolerance, atol=tolerance * float(matrix.detach().abs().max())
        )
        if not batch:
            torch.testing.assert_close(op @ lhs[0], matrix @ lhs[0], rtol=tolerance, atol=10 * tolerance)
        torch.testing.assert_close(op.mT.to_dense(), matrix.mT, rtol=tolerance, atol=tolerance)

    def test_draws_have_the_covariance_and_leave_the_global_generator(self, case, dtype, batch):
        op, s = case.build(*case.leaves(dtype, batch)), 4000
        before = torch.get_rng_state()
        draws = operators.draw(op, s, generator=torch.Generator().manual_seed(0)).detach()
        again = operators.draw(op, s, generator=torch.Generator().manual_seed(0)).detach()
        assert torch.equal(before, torch.get_rng_state())
        assert draws.shape == (s, *batch, op.shape[-1]) and draws.dtype == op.dtype and torch.equal(draws, again)
        matrix = op.to_dense().detach()
        variance = matrix.diagonal(dim1=-1, dim2=-2)
        # a sample covariance of zero-mean normals has variance (C_ii C_jj + C_ij^2) / s; a mean C_ii / s
        error = ((variance.unsqueeze(-1) * variance.unsqueeze(-2) + matrix**2) / s).sqrt()
        sample = torch.einsum("s...i,s...j->...ij", draws, draws) / s
        assert ((sample - matrix).abs() <= 5 * error + 1e-6).all()
        assert (draws.mean(0).abs() <= 5 * (variance / s).sqrt() + 1e-6).all()

    def test_survives_pickling_and_detaching(self, case, dtype, batch):
        op = case.build(*case.leaves(dtype, batch)).detach()
        for copy in (pickle.loads(pickle.dumps(op)), op.clone(), op.representation_tree()(*op.representation())):
            assert torch.equal(copy.to_dense(), op.to_dense())
            assert not copy.to_dense().requires_grad
