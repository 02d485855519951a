"""Coordinates of the weights in which the prior precision is the identity and the curvature is diagonal."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.core import operators


class Basis(ABC):
    """A linear change of coordinates `w - w0 = B u` with `B' P B = I` and `B' H B = diag(values)`.

    Invariants: `coordinates(back(u)) == u`, `dual(g)' u == g' back(u)`.
    """

    values: Tensor  # (p,)
    groups: Tensor  # (p,) the layer of each coordinate

    @abstractmethod
    def back(self, coordinates: Tensor) -> Tensor:
        """Weights `B u`, (p,)."""

    @abstractmethod
    def coordinates(self, weights: Tensor) -> Tensor:
        """`B^-1 w`, (p,)."""

    @abstractmethod
    def dual(self, gradient: Tensor) -> Tensor:
        """`B' g`, (p,)."""


@dataclass(frozen=True, eq=False)
class DenseBasis(Basis):
    """`B = L^-T Q`, with `P = L L'` and Q the eigenvectors of `L^-1 H L^-T`.

    Args:
        values: Eigenvalues, (p,).
        vectors: Q, (p, p).
        tril: L, (p, p).
    """

    values: Tensor
    vectors: Tensor
    tril: Tensor

    @property
    def groups(self) -> Tensor:  # type: ignore[override]
        """Zeros, (p,): all weights share one scale."""
        return torch.zeros(len(self.values), dtype=torch.long, device=self.values.device)

    def back(self, coordinates: Tensor) -> Tensor:
        """`L^-T Q u`."""
        rotated = (self.vectors @ coordinates).unsqueeze(-1)
        return torch.linalg.solve_triangular(self.tril.mT, rotated, upper=True).squeeze(-1)

    def coordinates(self, weights: Tensor) -> Tensor:
        """`Q' L' w`."""
        return self.vectors.mT @ (self.tril.mT @ weights)

    def dual(self, gradient: Tensor) -> Tensor:
        """`Q' L^-1 g`."""
        half = torch.linalg.solve_triangular(self.tril, gradient.unsqueeze(-1), upper=False)
        return self.vectors.mT @ half.squeeze(-1)


@dataclass(frozen=True, eq=False)
class BlockBasis(Basis):
    """Block by block `B = diag(scale) (Q_1 (x) Q_2)`, or the scales alone.

    Args:
        values: (p,), block after block.
        groups: The layer of each coordinate, (p,).
        blocks: Positions (q,) of a block in the flat vector, scales (q,), and the rotations (Q_1, Q_2) or none.
    """

    values: Tensor
    groups: Tensor
    blocks: tuple[tuple[Tensor, Tensor, tuple[Tensor, ...]], ...]

    def back(self, coordinates: Tensor) -> Tensor:
        """Rotated and scaled, block by block."""
        weights, start = torch.zeros_like(coordinates), 0
        for index, scale, rotations in self.blocks:
            weights[index] = scale * _rotate(coordinates[start : start + len(index)], rotations)
            start += len(index)
        return weights

    def coordinates(self, weights: Tensor) -> Tensor:
        """Unscaled and rotated back."""
        return torch.cat([_rotate(weights[i] / s, tuple(q.mT for q in r)) for i, s, r in self.blocks])

    def dual(self, gradient: Tensor) -> Tensor:
        """Scaled and rotated back."""
        return torch.cat([_rotate(gradient[i] * s, tuple(q.mT for q in r)) for i, s, r in self.blocks])


def whitened_eigh(matrix: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The eigenvalues and eigenvectors of `L^-1 H L^-T`, and L, for `P = L L'`.

    Args:
        matrix: H, (*b, q, q), symmetric and positive semi-definite.
        precision: P, (*b, q, q).
    """
    tril = operators.factorize(precision, name="the prior precision").tril
    half = torch.linalg.solve_triangular(tril, matrix, upper=False)
    white = torch.linalg.solve_triangular(tril, half.mT, upper=False)
    values, vectors = torch.linalg.eigh((white + white.mT) / 2)
    return values.clamp_min(0), vectors, tril


def _rotate(vector: Tensor, rotations: tuple[Tensor, ...]) -> Tensor:
    """`(Q_1 (x) Q_2) v = vec(Q_1 V Q_2')`."""
    if not rotations:
        return vector
    first, second = rotations
    return (first @ vector.reshape(len(first), len(second)) @ second.mT).flatten()
