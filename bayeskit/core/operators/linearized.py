"""The covariance of a linearized function, `J S J'`, without the Jacobian J."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from linear_operator import LinearOperator, to_linear_operator
from torch import Tensor
from torch.func import jacrev, jvp, vjp, vmap

from bayeskit.core.inputs import Batch, NamedInputs, parts
from bayeskit.core.operators.algebra import block_rule, draw_rule, half_rule, product, rooted
from bayeskit.core.operators.chunking import chunks, fits

Function = Callable[[Tensor, Any], Tensor]
"""Maps weights (p,) and inputs (n, *input_shape) to values (n, k), each row a function of its own input alone."""

COLUMNS = 16
"""Columns carried through the function together; for more than so many an output, rows of the Jacobian are formed."""


class Linearized(LinearOperator):
    """The covariance `J(x) S J(x2)'` of `f(w, x)` linearized about `mean`, for weights with covariance S.

    J is the derivative of `function` with respect to the weights at `mean`. A product with few columns is a
    vector-Jacobian product, a product with S, and a Jacobian-vector product. For the diagonal, and for many columns,
    rows of J are formed for so many inputs at a time as `budget` allows, so J itself (n x k x p) never is, unless it
    fits `CHUNK_ELEMENTS` and the whole matrix is asked for.

    Args:
        mean: Weights about which the function is linearized, (p,).
        covariance: S, (p, p), an operator or a tensor.
        inputs: Row inputs, (n, *input_shape), and column inputs, (m, *input_shape), if those are others.
        function: Maps weights (p,) and inputs to values (n, k), row by row. A module-level function or an instance of
            a small class, since closures do not pickle. Cut the weights with `torch.split`: its derivative is
            one concatenation.
        num_outputs: k, found by one evaluation if left out.
        repeats: Batch axes *b along which the same matrix is repeated, as `expand` does.
        names: Names of the leaves where `inputs` are given leaf by leaf; read from the inputs otherwise.

    References:
        Immer, Korzepa & Bauer, Improving Predictions of Bayesian Neural Nets via Local Linearization, 2021, section 3.

    Examples:
        >>> def line(w, x):
        ...     return w[0] + w[1] * x
        >>> covariance = Linearized(torch.zeros(2), torch.eye(2), torch.tensor([[0.0], [2.0]]), function=line)
        >>> covariance.to_dense().tolist()
        [[1.0, 1.0], [1.0, 5.0]]
    """

    semidefinite = True

    def __init__(
        self,
        mean: Tensor,
        covariance: LinearOperator | Tensor,
        *inputs: Batch,
        function: Function,
        num_outputs: int | None = None,
        repeats: tuple[int, ...] = (),
        names: tuple[str, ...] | None = None,
    ):
        # The arguments of an operator are tensors, and from those it is built again: named inputs go leaf by leaf.
        x, *others = inputs if names is None else _gathered(inputs, names)
        if num_outputs is None:
            with torch.no_grad():
                num_outputs = function(mean, x[:1]).shape[-1]
        covariance = to_linear_operator(covariance)
        options: dict[str, Any] = {"function": function, "num_outputs": num_outputs, "repeats": tuple(repeats)}
        if isinstance(x, NamedInputs):
            options["names"] = tuple(x.leaves)
        leaves = [leaf for values in (x, *others) for leaf in parts(values)]
        super().__init__(mean, covariance, *leaves, **options)
        self.mean, self.weight_covariance, self.x = mean, covariance, x
        self.x2 = others[0] if others else x
        self.function, self.num_outputs, self.repeats = function, num_outputs, tuple(repeats)

    def _size(self) -> torch.Size:
        return torch.Size((*self.repeats, len(self.x) * self.num_outputs, len(self.x2) * self.num_outputs))

    def _transpose_nonbatch(self) -> "Linearized":
        return self if self.x2 is self.x else self._between(self.x2, self.x)

    def cross(self, x2: Batch) -> "Linearized":
        """The covariance of the values at `x` with those at other inputs, (n*k, m*k)."""
        return self._between(self.x, x2)

    def _between(self, x: Batch, x2: Batch) -> "Linearized":
        parts = (self.mean, self.weight_covariance, x, x2)
        return Linearized(*parts, function=self.function, num_outputs=self.num_outputs, repeats=self.repeats)

    def _repeated(self, *repeats: int) -> "Linearized":
        inputs = (self.x,) if self.x2 is self.x else (self.x, self.x2)
        parts = (self.mean, self.weight_covariance, *inputs)
        return Linearized(*parts, function=self.function, num_outputs=self.num_outputs, repeats=repeats)

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() == 1:
            return self._matmul(rhs.unsqueeze(-1)).squeeze(-1)
        values = _by_columns(self._between_columns, rhs)
        return values.expand(*torch.broadcast_shapes(self.repeats, rhs.shape[:-2]), -1, -1)

    def _between_columns(self, columns: Tensor) -> Tensor:
        """`J(x) S J(x2)' columns` for columns (m*k, c), (n*k, c)."""
        products = [
            self.push(product(self.weight_covariance, self.pull(columns[:, part], self.x2)), self.x)
            for part in chunks(columns.shape[-1], len(self.mean))
        ]
        return torch.cat(products or [columns.new_zeros(len(self.x) * self.num_outputs, 0)], -1)

    def pull(self, rhs: Tensor, x: Batch) -> Tensor:
        """`J(x)' rhs` for rhs (n*k, c), (p, c)."""
        rhs = rhs.unflatten(0, (len(x), self.num_outputs))  # (n, k, c)
        total = self.mean.new_zeros(len(self.mean), rhs.shape[-1])
        for points in self._chunks(x, rhs.shape[-1]):
            total = total + self._pull(rhs[points], x[points])
        return total

    def _pull(self, rhs: Tensor, x: Batch) -> Tensor:
        if self._many(rhs.shape[-1]):
            return self.jacobian(x).flatten(0, 1).mT @ rhs.flatten(0, 1)
        transposed = vjp(lambda w: self.function(w, x), self.mean)[1]
        if rhs.shape[-1] == 1:
            return transposed(rhs.squeeze(-1))[0].unsqueeze(-1)
        return vmap(transposed, in_dims=-1, out_dims=-1, chunk_size=COLUMNS)(rhs)[0]

    def push(self, weights: Tensor, x: Batch) -> Tensor:
        """`J(x) weights` for weights (p, c), (n*k, c)."""
        pieces = [self._push(weights, x[points]) for points in self._chunks(x, weights.shape[-1])]
        return torch.cat(pieces or [weights.new_zeros(0, weights.shape[-1])])

    def _push(self, weights: Tensor, x: Batch) -> Tensor:
        if self._many(weights.shape[-1]):
            return self.jacobian(x).flatten(0, 1) @ weights

        def derivative(direction: Tensor) -> Tensor:
            return jvp(lambda w: self.function(w, x), (self.mean,), (direction,))[1]

        if weights.shape[-1] == 1:
            return derivative(weights.squeeze(-1)).reshape(-1, 1)
        return vmap(derivative, in_dims=-1, out_dims=-1, chunk_size=COLUMNS)(weights).flatten(0, 1)

    def jacobian(self, x: Batch) -> Tensor:
        """J for a few inputs, (n, k, p)."""

        def values(w: Tensor, point: Batch) -> Tensor:
            return self.function(w, point.unsqueeze(0)).squeeze(0)

        return vmap(jacrev(values), in_dims=(None, 0))(self.mean, x)

    def _many(self, columns: int) -> bool:
        """Whether forming rows of J, at one backward pass an output, is cheaper than passes for every column."""
        return columns > COLUMNS * self.num_outputs

    def _chunks(self, x: Batch, columns: int) -> Iterator[slice]:
        """Inputs whose rows of J, or whose activations in the passes for some columns, fit the budget.

        Activations are taken as `8 sqrt(p)` numbers for the layers of a dense network and 32 for every number of an
        input, for those of a convolutional one.
        """
        activations = 8 * math.isqrt(len(self.mean)) + 32 * math.prod(x.shape[1:])
        rows = self.num_outputs * len(self.mean) if self._many(columns) else 0
        return chunks(len(x), rows + min(columns, COLUMNS) * activations)

    def halves(self, x: Batch) -> Iterator[Tensor]:
        """`J(x) R` for a root `R R' = S`, chunk by chunk: (m, k, r), whose inner products are covariances."""
        covariance = rooted(self.weight_covariance)
        for points in chunks(len(x), self.num_outputs * len(self.mean), cached=True):
            rows = self.jacobian(x[points])
            yield half_rule(covariance, rows.flatten(0, 1).mT).mT.unflatten(0, rows.shape[:2])

    def _diagonal(self) -> Tensor:
        if self.x2 is self.x:
            pieces = [halves.square().sum(-1).flatten() for halves in self.halves(self.x)]
        else:
            pairs = zip(self.halves(self.x), self.halves(self.x2), strict=True)
            pieces = [(left * right).sum(-1).flatten() for left, right in pairs]
        return torch.cat(pieces or [self.mean.new_zeros(0)]).expand(*self.repeats, -1)

    def to_dense(self) -> Tensor:
        """The matrix, (*b, n*k, m*k)."""
        if self.x2 is self.x and len(self.x) and fits(self.shape[-1] * len(self.mean)):
            halves = torch.cat(list(self.halves(self.x))).flatten(0, 1)
            return (halves @ halves.mT).expand(self.shape)
        return self._matmul(torch.eye(self.shape[-1], dtype=self.dtype, device=self.device))

    def _get_indices(self, row_index: Any, col_index: Any, *batch_indices: Any) -> Tensor:
        rows, cols = torch.broadcast_tensors(row_index, col_index)
        columns, place = cols.unique(return_inverse=True)
        selection = torch.nn.functional.one_hot(columns, self.shape[-1]).to(self.dtype).mT
        return self._matmul(selection)[..., rows, place]

    def _getitem(self, row_index: Any, col_index: Any, *batch_indices: Any) -> LinearOperator:
        repeats = torch.empty(self.repeats, device="meta")[batch_indices].shape if batch_indices else ()
        rows, cols = self._inputs_of(row_index, len(self.x)), self._inputs_of(col_index, len(self.x2))
        if rows is None or cols is None:  # not whole inputs
            return LinearOperator._getitem(self._repeated(), row_index, col_index).expand(*repeats, -1, -1)
        same = self.x2 is self.x and isinstance(rows, slice) and rows == cols
        inputs = (self.x[rows],) if same else (self.x[rows], self.x2[cols])
        parts = (self.mean, self.weight_covariance, *inputs)
        return Linearized(*parts, function=self.function, num_outputs=self.num_outputs, repeats=repeats)

    def _inputs_of(self, index: slice | Tensor, size: int) -> slice | Tensor | None:
        """The inputs that rows or columns of the matrix belong to, if they are all the outputs of each."""
        k = self.num_outputs
        if k == 1:
            return index
        if not isinstance(index, slice):
            return None
        start, stop, step = index.indices(size * k)
        return slice(start // k, stop // k) if step == 1 and start % k == 0 and stop % k == 0 else None

    # the same matrix along every batch axis

    def _expand_batch(self, batch_shape: torch.Size | list[int]) -> "Linearized":
        return self._repeated(*batch_shape)

    def _unsqueeze_batch(self, dim: int) -> "Linearized":
        return self._repeated(*self.repeats[:dim], 1, *self.repeats[dim:])

    def _permute_batch(self, *dims: int) -> "Linearized":
        return self._repeated(*(self.repeats[dim] for dim in dims))


@block_rule.register
def _(op: Linearized, k: int) -> Tensor:
    if k != op.num_outputs or op.x2 is not op.x or not len(op.x):
        return block_rule.dispatch(LinearOperator)(op, k)
    blocks = torch.cat([halves @ halves.mT for halves in op.halves(op.x)])
    return blocks.expand(*op.repeats, -1, -1, -1)


@draw_rule.register
def _(op: Linearized, num_samples: int, generator: torch.Generator) -> Tensor:
    covariance, pieces = rooted(op.weight_covariance), []
    for part in chunks(num_samples * math.prod(op.repeats), len(op.mean)):
        weights = draw_rule(covariance, part.stop - part.start, generator)  # (s, p)
        pieces.append(op.push(weights.mT, op.x).mT)
    return torch.cat(pieces).unflatten(0, (num_samples, *op.repeats))


@half_rule.register
def _(op: Linearized, rhs: Tensor) -> Tensor:
    return _by_columns(lambda columns: half_rule(op.weight_covariance, op.pull(columns, op.x)), rhs)


def _gathered(leaves: Sequence[Any], names: tuple[str, ...]) -> list[Batch]:
    """Inputs from their leaves, one after the other."""
    return [
        NamedInputs(dict(zip(names, leaves[i : i + len(names)], strict=True)))
        for i in range(0, len(leaves), len(names))
    ]


def _by_columns(apply: Callable[[Tensor], Tensor], rhs: Tensor) -> Tensor:
    """Carry all the columns of rhs (*b, N, c) through a map of matrices (N, columns) at once."""
    columns = rhs.movedim(-2, 0).flatten(1)
    return apply(columns).unflatten(-1, (*rhs.shape[:-2], rhs.shape[-1])).movedim(0, -2)
