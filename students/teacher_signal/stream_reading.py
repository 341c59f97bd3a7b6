"""A signal of a corpus on disk, opened: what each student looks its rows up in, whatever its order and length limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.base import UserError
from students.align import by_sample, leading
from students.data.mapped import REMAKE
from students.stored import Spoken
from students.teacher_signal import codec
from students.teacher_signal.forms import Form
from students.teacher_signal.keys import refuse_stale
from students.teacher_signal.reading import mapped, read_meta, read_names
from students.teacher_signal.streams import ROWS, TOKENS, VERSION

if TYPE_CHECKING:
    from students.data.pack import Batch


@dataclass(frozen=True)
class Told:
    """What the signal says about a micro-batch of B rows and N tokens, on the host.

    Attributes:
        logits: float32 [N, V], in parts where they are many, or bins.
        entropy: [B] float32, mean over the tokens that the student has.
        correct: [B] bool, whether these are the most probable ones.
    """

    logits: Spoken
    entropy: Tensor
    correct: Tensor


@dataclass(frozen=True)
class StreamSignal:
    """A cached signal of a corpus, memory-mapped; see :func:`students.teacher_signal.streams.cache` for the arrays.

    Attributes:
        form: how distributions are kept.
        said: the distributions' arrays.
        tokens, rows: the other arrays, with an entry per token and per row.
        vocabulary: the V tokens that distributions are over, in order.
        corpus: the digest of the corpus.
        pools: whether mean vision tokens are known.
        errors: what the form changes, as measured; None for the exact one.
    """

    form: Form
    said: Mapping[str, NDArray[Any]]
    tokens: Mapping[str, NDArray[Any]]
    rows: Mapping[str, NDArray[Any]]
    vocabulary: tuple[str, ...]
    corpus: str
    pools: bool = True
    errors: Mapping[str, Any] | None = None

    @classmethod
    def load(cls, folder: Path, expected_key: Mapping[str, str]) -> StreamSignal:
        """Open a cached signal.

        Raises:
            UserError: naming the file that is missing or truncated, or what the signal was made from that has changed.
        """
        meta = read_meta(folder, (VERSION,))
        refuse_stale("the teacher signal", folder, meta["key"], expected_key)
        form, vocabulary = Form(**meta["form"]), read_names(folder / "vocabulary.json", None)
        wanted = codec.columns(form, len(vocabulary))
        arrays = {name: mapped(folder, name, meta["shapes"]) for name in (*wanted, *TOKENS, *ROWS)}
        for name, (dtype, shape) in wanted.items():
            if arrays[name].dtype != np.dtype(dtype) or arrays[name].shape[1:] != shape:
                raise UserError(f"{folder / name}.npy is no array of the form {form}. {REMAKE}")
        if len({len(arrays[name]) for name in (*wanted, *TOKENS)}) > 1 or len({len(arrays[name]) for name in ROWS}) > 1:
            raise UserError(f"the arrays in {folder} do not fit each other. {REMAKE}")
        said, tokens, rows = ({name: arrays[name] for name in group} for group in (wanted, TOKENS, ROWS))
        return cls(form, said, tokens, rows, vocabulary, meta["key"]["data"], meta["pools"], meta["errors"])

    def __len__(self) -> int:
        return len(self.rows["places"])

    @property
    def width(self) -> int:
        """H, the teacher's."""
        return int(self.rows["prompt"].shape[1])

    def hear(self, batch: Batch, ids: Sequence[str], cut: Sequence[bool], distributions: bool = True) -> Told:
        """Look a micro-batch of rows up; a row that was cut hears about the tokens that are left.

        Args:
            batch: as the student reads it, on the host.
            ids: of the rows.
            cut: for each, whether the student's was cut off.
            distributions: whether logits are wanted; [0, V] otherwise.

        Raises:
            UserError: naming the first row of which the student learns other tokens than the teacher spoke about.
        """
        places = self.rows["places"][list(batch.indices)]
        theirs = [np.asarray(self.tokens["labels"][start : start + count], np.int64) for start, count in places]
        counts = leading(by_sample(batch), theirs, ids, cut, self.vocabulary)
        tokens = np.concatenate([start + np.arange(count) for (start, _), count in zip(places, counts, strict=True)])
        entropy, right = (np.split(self.tokens[name][tokens], np.cumsum(counts)[:-1]) for name in ("entropy", "right"))
        wanted = tokens if distributions else tokens[:0]
        return Told(
            codec.at(self.form, self.said, wanted, len(self.vocabulary)),
            torch.from_numpy(np.array([part.mean() for part in entropy], np.float32)),
            torch.from_numpy(np.array([part.all() for part in right])),
        )

    def states(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return prompt states [B, H], mean vision tokens [B, H] and whether there are any [B].

        Raises:
            UserError: where the teacher's images have no fixed number of tokens to take the mean of.
        """
        if not self.pools:
            raise UserError(
                "this teacher's images take a variable number of tokens, so its signal has no mean vision token; leave"
                " teacher_vision out of the weighting's features"
            )
        prompt, vision, seen = (torch.from_numpy(np.asarray(self.rows[n][list(indices)])) for n in ROWS[1:])
        return prompt, vision, seen
