"""Which rows a training step reads: a pure function of the step, so that resuming needs no state and S rows no memory.

Every epoch is its own pseudo-random permutation of the rows, computed one element at a time: a Feistel network over the next
power of four, walked until it falls below the number of rows (Black and Rogaway, "Ciphers with arbitrary finite domains",
CT-RSA 2002). Grouping by modality and length follows LLaVA's and MobileVLM's samplers (haotian-liu/LLaVA
``llava/train/llava_trainer.py``, Meituan-AutoML/MobileVLM ``mobilevlm/train/trainer.py``: ``group_by_modality_length``): a
megabatch, the rows of one forward pass on all devices, shows images in every row or in none, and is sorted by length. The
differences, all of them:

* the pseudo-random numbers;
* within a megabatch rows are sorted, longest first, and not dealt out to devices of even load: there is one device;
* what is left of both modalities makes one mixed megabatch if it fills one, the epoch's last (MobileVLM: its first; LLaVA:
  the last, of whatever size), images first;
* rows that fill no step are left out: at most ``per_step - 1`` of an epoch, other ones in each epoch. Transformers' trainer
  counts steps the same way.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError, unknown

Grouping = Literal["none", "modality_length"]
GROUPINGS = ("none", "modality_length")
_ROUNDS = 6
#: Rows per entry of the counts by which the n-th row of a modality is found: 8 bytes per so many rows stay in memory.
_BLOCK = 2048

Ranks = NDArray[np.int64]


def permuted(places: Ranks, size: int, key: str) -> Ranks:
    """Return where a pseudo-random permutation of 0 .. size-1 takes these places.

    Args:
        places: int64, each in 0 .. size-1.
        size: how many elements are permuted.
        key: another key is another permutation.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    digest = hashlib.shake_128(key.encode()).digest(8 * _ROUNDS)
    keys = np.frombuffer(digest, dtype="<u8")
    result = places.astype(np.uint64)
    todo = np.ones(result.shape, dtype=bool)
    while todo.any():
        left, right = result[todo] >> half, result[todo] & mask
        for each in keys:
            left, right = right, left ^ (_mixed(right ^ each) & mask)
        result[todo] = (left << half) | right
        todo = result >= size  # beyond the elements: walk on, the cycle leads back
    return result.astype(np.int64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64 bits (the finaliser of SplitMix64; Steele, Lea and Flood, OOPSLA 2014); products wrap on purpose."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class _Kind:
    """Rows that show images, or those that show none: finds the n-th, in row order, with a count per block of rows."""

    def __init__(self, shows: NDArray[np.int16], images: bool) -> None:
        self._shows, self._images = shows, images
        blocks = [int(self._flags(start).sum()) for start in range(0, len(shows), _BLOCK)]
        self._before = np.concatenate([[0], np.cumsum(blocks, dtype=np.int64)])
        self.size = int(self._before[-1])

    def _flags(self, start: int) -> NDArray[np.bool_]:
        flags: NDArray[np.bool_] = (np.asarray(self._shows[start : start + _BLOCK]) > 0) == self._images
        return flags

    def rows(self, ranks: Ranks) -> Ranks:
        """Return the row numbers of these ranks."""
        found = np.empty(len(ranks), np.int64)
        blocks = np.searchsorted(self._before, ranks, side="right") - 1
        for block in np.unique(blocks):
            here = blocks == block
            start = int(block) * _BLOCK
            found[here] = start + np.flatnonzero(self._flags(start))[ranks[here] - self._before[block]]
        return found


class Order:
    """The rows of each optimiser step.

    Args:
        lengths: int32 [S], the corpus's; read for the rows of a step only.
        shows: int16 [S], the corpus's.
        per_step: rows of one optimiser step.
        seed: of the permutations.
        grouping: ``none``: every epoch a plain permutation; ``modality_length``: see the module.
        epochs: how often every row is read; a fraction is rounded down to whole steps.
        steps: instead of ``epochs``: how many steps, over as many epochs as that takes.
        megabatch: rows of one modality that are sorted together, a divisor of ``per_step``; None: ``per_step``. LLaVA's is the
            micro-batch times the devices (32 of the 128 rows of the paper's step).

    Attributes:
        steps: how many there are.
        per_epoch: how many make an epoch; up to ``per_step - 1`` rows of each epoch are left out.

    Raises:
        UserError: for numbers that make no sense, or a corpus with fewer rows than a step.
    """

    def __init__(
        self,
        lengths: NDArray[np.int32],
        shows: NDArray[np.int16],
        per_step: int,
        seed: int,
        grouping: str = "none",
        *,
        epochs: float | None = None,
        steps: int | None = None,
        megabatch: int | None = None,
    ) -> None:
        if grouping not in GROUPINGS:
            raise unknown("grouping", grouping, GROUPINGS)
        if per_step < 1 or len(shows) < per_step:
            raise UserError(
                f"a step takes {per_step} row(s) and the corpus has {len(shows)}; allowed: 1 to {len(shows)} rows per step"
            )
        self._group = per_step if megabatch is None else megabatch
        if self._group < 1 or per_step % self._group:
            raise UserError(f"a megabatch of {megabatch} rows does not divide the {per_step} rows of a step")
        self.per_step, self.seed, self.grouping = per_step, seed, grouping
        self.per_epoch = len(shows) // per_step
        self.steps = _steps(self.per_epoch, epochs, steps)
        self._lengths, self._size = lengths, len(shows)
        self._kinds = (_Kind(shows, images=True), _Kind(shows, images=False)) if grouping == "modality_length" else ()
        self._whole = [kind.size // self._group for kind in self._kinds]

    def members(self, step: int) -> list[int]:
        """Return the rows of a step, in the order in which micro-batches are cut from them.

        Raises:
            IndexError: for a step that is not in 0 .. steps-1.
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is not in 0 .. {self.steps - 1}")
        epoch, place = divmod(step, self.per_epoch)
        if not self._kinds:
            places = np.arange(place * self.per_step, (place + 1) * self.per_step)
            return [int(row) for row in permuted(places, self._size, self._key(epoch, "rows"))]
        count = self.per_step // self._group
        return [row for number in range(count) for row in self._megabatch(epoch, place * count + number)]

    def _key(self, epoch: int, what: str) -> str:
        return f"order {self.seed} {epoch} {what}"

    def _megabatch(self, epoch: int, number: int) -> list[int]:
        """Return the rows of an epoch's megabatch: those of one kind, or what is left of both."""
        whole, group = self._whole, self._group
        if number >= sum(whole):
            left = [self._drawn(epoch, kind, whole[kind] * group, self._kinds[kind].size) for kind in (0, 1)]
            return [*left[0], *left[1]][:group]
        drawn = int(permuted(np.array([number]), sum(whole), self._key(epoch, "megabatches"))[0])
        kind, index = (0, drawn) if drawn < whole[0] else (1, drawn - whole[0])
        return self._drawn(epoch, kind, index * group, (index + 1) * group)

    def _drawn(self, epoch: int, kind: int, start: int, end: int) -> list[int]:
        """Return the rows at these places of a kind's permutation, longest first."""
        if start == end:
            return []
        ranks = permuted(np.arange(start, end), self._kinds[kind].size, self._key(epoch, ("images", "texts")[kind]))
        rows = self._kinds[kind].rows(ranks)
        sizes = np.array([self._lengths[row] for row in rows], dtype=np.int64)
        return [int(row) for row in rows[np.lexsort((rows, -sizes))]]


def _steps(per_epoch: int, epochs: float | None, steps: int | None) -> int:
    """Return how many steps there are."""
    if (epochs is None) == (steps is None):
        raise UserError(f"epochs is {epochs} and steps is {steps}; give one of the two")
    count = steps if steps is not None else int((epochs or 0.0) * per_epoch + 1e-9)
    if count < 1:
        given = f"steps is {steps}" if steps is not None else f"epochs is {epochs}, of {per_epoch} step(s) each"
        raise UserError(f"{given}: that is no step at all; allowed: 1 step or more")
    return count
