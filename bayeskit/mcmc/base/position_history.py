"""A bounded reservoir of the past positions of chains."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

RECENCY = 2.0
"""A draw from moment s of a run of length t is kept with weight (s / t)^(RECENCY - 1): the weight of the burn-in
vanishes, but the window grows with the run."""


@dataclass(frozen=True, eq=False)
class History:
    """A reservoir of past positions of c chains, of bounded size however long the run.

    Offered for the n-th time, a position takes a random slot with probability `min(1, 2 capacity / n)`, so the
    reservoir covers the whole run with linearly increasing weights; the weight of the burn-in is (its length / n)^2.

    A history is immutable. Later ones share its storage, and write only to rows that no earlier one reads.

    Args:
        rows: Storage (r, c, p).
        slots: The rows that are in the reservoir, (b,).
        written: How many rows any history has written, (1,); shared with the storage.
        end: Rows written when this one was made.
        offered: Positions seen.

    References:
        Vitter (1985), Random sampling with a reservoir, algorithm R, with probability `capacity / n`.

    Examples:
        >>> g, history = torch.Generator().manual_seed(0), History.begin(torch.zeros(1, 1))
        >>> for t in range(1, 2_001):
        ...     history = history.offer(torch.full((1, 1), float(t)), capacity=100, generator=g)
        >>> kept = history.rows[history.slots].flatten()
        >>> len(kept), bool(abs(kept.mean() - 2_000 * 2 / 3) < 200)
        (100, True)
    """

    rows: Tensor
    slots: Tensor
    written: Tensor
    end: int
    offered: int

    @classmethod
    def begin(cls, position: Tensor) -> "History":
        """One past position, (c, p)."""
        slots = torch.zeros(1, dtype=torch.long, device=position.device)
        return cls(position.detach().clone()[None], slots, torch.ones(1), 1, 1)

    def offer(self, position: Tensor, *, capacity: int, generator: torch.Generator) -> "History":
        """The history with the position (c, p) included, at random."""
        offered, slots = self.offered + 1, self.slots
        if len(slots) >= capacity:
            chance, place = torch.rand(2, generator=generator, device=generator.device).tolist()
            if chance * offered >= RECENCY * capacity:
                return replace(self, offered=offered)
            keep = torch.arange(len(slots)) != min(int(place * len(slots)), len(slots) - 1)
            slots = slots[keep.to(slots.device)]
        rows, slots, written, end = self._room(slots, capacity)
        rows[end] = position.detach()
        written += 1
        return History(rows, torch.cat([slots, slots.new_tensor([end])]), written, end + 1, offered)

    def draw(self, labels: Tensor, num_groups: int, num_draws: int, *, generator: torch.Generator) -> Tensor:
        """Past positions recombined by group, each group of each chain from its own random time, (s, c, p).

        Args:
            labels: The group of each parameter, (p,).
            num_groups: Number of groups M.
            num_draws: Positions s.
            generator: Source of randomness.
        """
        _, chains, numbers = self.rows.shape
        shape = (num_draws, chains, num_groups)
        moments = torch.randint(len(self.slots), shape, generator=generator, device=generator.device)
        chosen = self.slots[moments.to(labels.device)][..., labels]  # (s, c, p)
        chain = torch.arange(chains, device=labels.device)[:, None]
        return self.rows[chosen, chain, torch.arange(numbers, device=labels.device)]

    def _room(self, slots: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """Storage whose row `end` is unused: this one's, or a copy if it is full or another branch wrote there."""
        if self.end < len(self.rows) and self.end == int(self.written):
            return self.rows, slots, self.written, self.end
        room = min(2 * len(slots), capacity) + max(4, capacity // 4)
        rows = self.rows.new_empty(max(room, len(slots) + 1), *self.rows.shape[1:])
        rows[: len(slots)] = self.rows[slots]
        kept = torch.arange(len(slots), device=slots.device)
        return rows, kept, torch.full_like(self.written, len(slots)), len(slots)
