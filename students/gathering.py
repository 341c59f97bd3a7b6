"""The records of several ranks, joined into what one process would have written."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from students.distributed import Ranks

if TYPE_CHECKING:
    from students.dynamics import Recorder, Step

T = TypeVar("T")


@dataclass(frozen=True)
class Own:
    """What a rank alone knows of one step, on the host; the attributes are :class:`students.dynamics.Step`'s."""

    sizes: tuple[int, ...]
    indices: tuple[int, ...]
    ids: tuple[str, ...]
    noisy: tuple[bool, ...]
    counts: tuple[Mapping[str, int], ...]
    replaced: tuple[tuple[str, ...], ...]
    tokens: int
    teacher: Tensor | None


def complete(ranks: Ranks, recorder: Recorder) -> None:
    """Give rank 0's pending steps the facts of all ranks' samples, in the order of the rows; the others' are dropped."""
    if ranks.world == 1:
        return
    found = ranks.gather([_own(step) for step in recorder.pending])
    if not ranks.first:
        recorder.pending = []
        return
    recorder.pending = [_joined(step, each) for step, each in zip(recorder.pending, zip(*found, strict=True), strict=True)]
    recorder.samples += sum(sum(own.sizes) for each in found[1:] for own in each)


def _own(step: Step) -> Own:
    heard = None if step.teacher is None else step.teacher.cpu()
    return Own(step.sizes, step.indices, step.ids, step.noisy, step.counts, step.replaced, step.tokens, heard)


def _joined(step: Step, owns: Sequence[Own]) -> Step:
    """Return rank 0's step with every rank's samples."""
    sizes = [own.sizes for own in owns]
    known = [own.teacher for own in owns if own.teacher is not None]
    heard = None
    if len(known) == len(owns):  # every rank asked, or none did
        pieces = [each.split(list(own), 1) for each, own in zip(known, sizes, strict=True)]
        heard = torch.cat(list(_turns(pieces)), 1)
    return replace(
        step,
        indices=_ordered([own.indices for own in owns], sizes),
        ids=_ordered([own.ids for own in owns], sizes),
        noisy=_ordered([own.noisy for own in owns], sizes),
        counts=tuple(_turns([own.counts for own in owns])),
        replaced=tuple(_turns([own.replaced for own in owns])),
        sizes=tuple(_turns(sizes)),
        tokens=sum(own.tokens for own in owns),
        teacher=heard,
    )


def _turns(parts: Sequence[Sequence[T]]) -> itertools.chain[T]:
    """Every rank's first micro-batch, every rank's second, ...: [rank][micro-batch] -> [micro-batch x rank]."""
    return itertools.chain.from_iterable(zip(*parts, strict=True))


def _ordered(values: Sequence[Sequence[T]], sizes: Sequence[Sequence[int]]) -> tuple[T, ...]:
    """Join samples of all ranks by micro-batch, then by rank: [rank][sample] -> [sample]."""
    cut = []
    for own, widths in zip(values, sizes, strict=True):
        ends = list(itertools.accumulate(widths, initial=0))
        cut.append([own[start:end] for start, end in itertools.pairwise(ends)])
    return tuple(itertools.chain.from_iterable(_turns(cut)))


def logits(ranks: Ranks, kept: Mapping[str, Tensor], tokens: Sequence[int], limit: int) -> dict[str, Tensor]:
    """Return logits by owner as a histogram of the whole step needs them.

    Args:
        ranks: all of them.
        kept: this rank's [N, V] by owner; or flat values that were thinned out already, of logits that were made in chunks.
            One rank may have the first and another the second: their tokens are not equally many.
        tokens: how many of the N each micro-batch has.
        limit: most values that are kept of all ranks together; a regular stride thins out more.

    Returns:
        With one process ``kept``; else, on rank 0, the values of all ranks, thinned out as one process would.
    """
    if ranks.world == 1:
        return dict(kept)
    found = {}
    flat = ranks.any([kept[owner].ndim == 1 for owner in sorted(kept)])
    for (owner, values), thin in zip(sorted(kept.items()), flat, strict=True):
        if thin:
            mine = values.detach().reshape(-1)[:: -(-values.numel() // limit) or 1]
            joined = torch.cat(ranks.gather(mine.float().cpu()))
            found[owner] = joined[:: -(-len(joined) // limit)]
            continue
        pieces = [piece.detach().float().reshape(-1) for piece in values.split(list(tokens))]
        sizes = ranks.gather([piece.numel() for piece in pieces])
        starts = list(itertools.accumulate(_turns(sizes), initial=0))
        stride = -(-starts[-1] // limit)
        own = [piece[-starts[k * ranks.world + ranks.rank] % stride :: stride].cpu() for k, piece in enumerate(pieces)]
        found[owner] = torch.cat(list(_turns(ranks.gather(own))))
    return found


def evidence(ranks: Ranks, recorder: Recorder, own: Sequence[Step]) -> None:
    """After a step that was not finite, leave what the other ranks saw of it beside rank 0's."""
    if ranks.world == 1:
        return
    from safetensors.torch import save_file

    number = ranks.tell(recorder.failed)
    with ranks.together():
        for step in own:
            if step.step == number and not ranks.first:
                kept = {name: value.detach().cpu().contiguous() for name, value in step.evidence.items()}
                save_file(kept, recorder.out / "failure" / f"failure-rank{ranks.rank}.safetensors")
