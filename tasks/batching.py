"""Which prompts share a forward pass."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

#: What a forward pass costs beside its tokens, in tokens: below this many, reading the weights takes longer than computing.
PASS_TOKENS = 256
#: Padding is used where it makes the work at least this many times cheaper, so that well-filled batches stay as they are.
WORTH = 2.0
#: And where it saves at least this many passes: its trial takes about ten.
LEAST = 16


@dataclass(frozen=True)
class Item:
    """A prompt to batch: its number, what may not differ within a batch, and its length in tokens."""

    number: int
    kind: Hashable
    length: int


def equal(items: Sequence[Item], size: int) -> list[list[int]]:
    """Batch prompts of exactly equal length and kind, in the order of the prompts."""
    groups: dict[Hashable, list[int]] = {}
    for item in items:
        groups.setdefault((item.kind, item.length), []).append(item.number)
    return _cut(groups.values(), size)


def mixed(items: Sequence[Item], size: int) -> list[list[int]]:
    """Batch prompts of equal kind and like lengths, the longest first, so that too little memory shows at once."""
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(item.kind, []).append(item)
    ordered = ([i.number for i in sorted(group, key=lambda i: (-i.length, i.number))] for group in groups.values())
    return _cut(ordered, size)


def worth_padding(items: Sequence[Item], size: int) -> bool:
    """Whether batches of like lengths are so much cheaper than those of equal lengths that padding is worth its check."""
    return worth(items, items, size)


def worth(exact: Sequence[Item], items: Sequence[Item], size: int) -> bool:
    """:func:`worth_padding` where what must be equal without padding is more than what must be equal with it."""
    lengths = {item.number: item.length for item in items}
    apart, together = _cost(equal(exact, size), lengths), _cost(mixed(items, size), lengths)
    return apart >= WORTH * together and apart - together >= LEAST * PASS_TOKENS


def _cost(batches: Sequence[Sequence[int]], lengths: dict[int, int]) -> int:
    return sum(PASS_TOKENS + len(batch) * max(lengths[n] for n in batch) for batch in batches)


def _cut(groups: Iterable[list[int]], size: int) -> list[list[int]]:
    return [members[start : start + size] for members in groups for start in range(0, len(members), size)]
