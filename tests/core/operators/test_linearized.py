"""J S J' beyond the contract: chunks, cross covariances, convolutions, tokens, and that J is never formed."""

import pytest
import torch
from linear_operator.operators import DiagLinearOperator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bayeskit.core import operators
from bayeskit.core.operators import algebra, chunking


class OfModule:
    """A module as a function of its flat parameters."""

    def __init__(self, module):
        self.module = module.requires_grad_(False)
        self.shapes = {name: p.shape for name, p in module.named_parameters()}

    def __call__(self, weights, x):
        parts = weights.split([shape.numel() for shape in self.shapes.values()])
        named = {name: part.view(s) for (name, s), part in zip(self.shapes.items(), parts, strict=True)}
        return torch.func.functional_call(self.module, named, (x,))


def linearized(module, x, generator, **options):
    mean = nn.utils.parameters_to_vector(module.parameters()).detach()
    mean = torch.randn(mean.shape, generator=generator, dtype=mean.dtype) / 2
    variance = torch.rand(mean.shape, generator=generator, dtype=mean.dtype)
    return operators.Linearized(mean, DiagLinearOperator(variance), x, function=OfModule(module), **options)


def twin(op, x2=None):
    def jacobian(x):
        return torch.func.jacrev(lambda w: op.function(w, x).flatten())(op.mean)

    return jacobian(op.x) @ op.weight_covariance.to_dense() @ jacobian(op.x if x2 is None else x2).mT


@pytest.fixture
def mlp():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


@pytest.mark.parametrize("columns", [1, 3, 16, 40])
def test_chunks_change_nothing(columns, mlp, generator, monkeypatch):
    op = linearized(mlp, torch.randn(7, 3, generator=generator).double(), generator)
    matrix, rhs = twin(op), torch.randn(14, columns, generator=generator).double()
    for elements in (1, 50, 2**24):
        monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", elements)
        monkeypatch.setattr(chunking, "CACHE_ELEMENTS", elements)
        torch.testing.assert_close(op @ rhs, matrix @ rhs, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(op.to_dense(), matrix, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(op.diagonal(), matrix.diagonal(), rtol=1e-10, atol=1e-10)
        assert operators.block_diagonal(op, 2).shape == (7, 2, 2)
        assert operators.draw(op, 3, generator=generator).shape == (3, 14)


def test_cross_covariance_is_a_block_of_the_joint_one(mlp, generator):
    x, x2 = (torch.randn(n, 3, generator=generator).double() for n in (4, 3))
    op = linearized(mlp, x, generator)
    cross = op.cross(x2)
    assert cross.shape == (8, 6)
    torch.testing.assert_close(cross.to_dense(), twin(op, x2), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(cross.mT.to_dense(), twin(op, x2).mT, rtol=1e-10, atol=1e-10)
    same = op.cross(x.flip(0))
    torch.testing.assert_close(same.diagonal(), twin(op, x.flip(0)).diagonal(), rtol=1e-10, atol=1e-10)


def test_slices_of_whole_inputs_stay_matrix_free(mlp, generator):
    op = linearized(mlp, torch.randn(5, 3, generator=generator).double(), generator)
    part = op[2:6, 4:]
    assert isinstance(part, operators.Linearized)
    torch.testing.assert_close(part.to_dense(), twin(op)[2:6, 4:], rtol=1e-10, atol=1e-10)


def test_convolutions_and_tokens(generator):
    images = torch.randn(4, 1, 6, 6, generator=generator)
    convolution = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    tokens = torch.randint(7, (4, 5), generator=generator)
    embedding = nn.Sequential(nn.Embedding(7, 2), nn.Flatten(), nn.Linear(10, 3))
    for module, x in ((convolution, images), (embedding, tokens)):
        op = linearized(module, x, generator)
        torch.testing.assert_close(op.diagonal(), twin(op).diagonal(), rtol=1e-4, atol=1e-5)
        rhs = torch.randn(12, 2, generator=generator)
        torch.testing.assert_close(op @ rhs, twin(op) @ rhs, rtol=1e-4, atol=1e-4)


def test_no_inputs_give_an_empty_matrix(mlp, generator):
    op = linearized(mlp, torch.zeros(0, 3).double(), generator)
    assert op.to_dense().shape == (0, 0) and op.diagonal().shape == (0,)
    assert operators.block_diagonal(op, 2).shape == (0, 2, 2)
    assert operators.draw(op, 3, generator=generator).shape == (3, 0)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any result had."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor) and value.untyped_storage().size():
                self.elements = max(self.elements, value.untyped_storage().size() // value.element_size())
        return result


def test_the_jacobian_is_never_formed(mlp, generator, monkeypatch):
    n, k, p = 200, 2, 32
    op = linearized(mlp, torch.randn(n, 3, generator=generator).double(), generator)
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 4000)
    monkeypatch.setattr(chunking, "CACHE_ELEMENTS", 4000)
    questions = {
        "product": lambda: op @ torch.ones(n * k, 2).double(),
        "diagonal": op.diagonal,
        "blocks": lambda: operators.block_diagonal(op, k),
        "draw": lambda: operators.draw(op, 2, generator=generator),
    }
    for name, question in questions.items():
        with torch.no_grad(), LargestTensor() as largest:
            question()
        assert 0 < largest.elements <= 4000 < n * k * p, name


def test_repeats_along_batch_axes(mlp, generator):
    op = linearized(mlp, torch.randn(3, 3, generator=generator).double(), generator)
    matrix, many = twin(op).expand(2, 4, 6, 6), op.expand(2, 4, 6, 6)
    rhs = torch.randn(2, 4, 6, 3, generator=generator).double()
    torch.testing.assert_close(many @ rhs, matrix @ rhs, rtol=1e-10, atol=1e-10)
    assert operators.block_diagonal(many, 2).shape == (2, 4, 3, 2, 2)
    half = operators.half_product(many, rhs)
    torch.testing.assert_close(half.mT @ half, rhs.mT @ matrix @ rhs, rtol=1e-10, atol=1e-10)
    draws = operators.draw(many, 5, generator=generator)
    assert draws.shape == (5, 2, 4, 6) and len(draws.flatten(0, 2).unique(dim=0)) == 40  # all independent


def test_a_dense_covariance_is_factorized_once_for_all_chunks(generator, monkeypatch):
    root = torch.randn(3, 3, generator=generator).double()
    calls = []
    monkeypatch.setattr(algebra, "semidefinite_root", lambda matrix, name: calls.append(name) or root)
    monkeypatch.setattr(chunking, "CACHE_ELEMENTS", 1)
    features = torch.randn(6, 3, generator=generator).double()
    op = operators.Linearized(torch.zeros(3).double(), root @ root.mT, features, function=line)
    torch.testing.assert_close(op.diagonal(), (features @ root).square().sum(-1), rtol=1e-10, atol=1e-10)
    assert len(calls) == 1


def test_variance_is_never_negative_in_float32(generator):
    # the rows of J nearly lie in the directions that a strong precision has pinned down
    features = torch.randn(50, 4, generator=generator) @ torch.randn(4, 30, generator=generator)
    precision = 1e-3 * torch.eye(30) + 1e5 * features.mT @ features
    op = operators.Linearized(torch.zeros(30), operators.Inverse(precision), features, function=line)
    assert (op.diagonal() >= 0).all()


def line(weights, x):
    return (x @ weights).unsqueeze(-1)
