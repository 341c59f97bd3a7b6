"""Tokenise samples once, and pack the questions about one image into one row.

Questions about one image share its tokens: a row is ``image prefix, question 1, question 2, ...``. Attention is
block-diagonal between the questions and positions restart after the prefix, so each question gets exactly the outputs
that it would get alone (tested); only the image's share of the work is saved.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError
from students.data.samples import Sample

if TYPE_CHECKING:
    import torch

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """Token ids of every sample, in memory or mapped (students/data/encoded.py).

    Attributes:
        prompts: per sample, int64 [tokens]: chat template, expanded image tokens, question, start of the reply.
        answers: per sample, int64 [supervised tokens]: the reply to learn and the end token.
        clean: the same for the clean reply.
        prefix: per sample, how many leading prompt tokens only depend on the image.
        images: per sample, the image's key or None.
        pad: the padding token's id.
    """

    prompts: Sequence[Ids]
    answers: Sequence[Ids]
    clean: Sequence[Ids]
    prefix: tuple[int, ...]
    images: tuple[str | None, ...]
    pad: int

    def __len__(self) -> int:
        return len(self.prompts)


def _prompt_texts(samples: Sequence[Sample], processor: Any) -> list[str]:
    """Render the chat template for each sample, with the image placeholder expanded to its number of tokens."""
    expanded = processor.image_token * processor.image_tokens_each
    texts = []
    for sample in samples:
        content: list[dict[str, str]] = [{"type": "image"}] if sample.image is not None else []
        content.append({"type": "text", "text": sample.prompt})
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
        texts.append(text.replace(processor.image_token, expanded))
    return texts


def encode(samples: Sequence[Sample], processor: Any) -> Encoded:
    """Tokenise samples with a processor that carries a chat template.

    Args:
        samples: the samples.
        processor: a Hugging Face processor with a chat template, wrapped by the adapter of its model family so that
            ``image_tokens_each`` says how many tokens an image takes.

    Raises:
        UserError: for a reply without tokens, or with tokens that the vocabulary does not know.
    """
    tokenizer = processor.tokenizer
    image_token, unknown = tokenizer.convert_tokens_to_ids(processor.image_token), tokenizer.unk_token_id
    eos = tokenizer.eos_token_id
    texts = tokenizer(_prompt_texts(samples, processor), add_special_tokens=False)
    prompts = [np.array(ids, dtype=np.int64) for ids in texts["input_ids"]]

    def replies(texts: list[str]) -> tuple[Ids, ...]:
        encoded = [np.array([*ids, eos], dtype=np.int64) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        for text, ids in zip(texts, encoded, strict=True):
            if len(ids) < 2 or (unknown is not None and (ids == unknown).any()):
                raise UserError(f"the reply {text!r} has no tokens, or tokens that the tokenizer does not know")
        return tuple(encoded)

    prefix = []
    for ids in prompts:
        found = np.nonzero(ids == image_token)[0]
        prefix.append(int(found[-1]) + 1 if len(found) else int(len(ids) > 0 and ids[0] == tokenizer.bos_token_id))
    answers, clean = replies([s.answer for s in samples]), replies([s.clean_answer for s in samples])
    return Encoded(tuple(prompts), answers, clean, tuple(prefix), tuple(s.image for s in samples), tokenizer.pad_token_id)


def groups(encoded: Encoded, turns: int, seed: int = 0) -> list[list[int]]:
    """Group samples into rows of at most ``turns`` questions that share an image (or share having none).

    The same samples and seed give the same rows, whatever the student.
    """
    if turns < 1:
        raise UserError(f"turns is {turns}; allowed: 1 or more")
    rng = random.Random(seed)
    by_prefix: dict[tuple[str | None, bytes], list[int]] = {}
    for index, (ids, length, image) in enumerate(zip(encoded.prompts, encoded.prefix, encoded.images, strict=True)):
        by_prefix.setdefault((image, ids[:length].tobytes()), []).append(index)
    rows = []
    for members in by_prefix.values():
        rng.shuffle(members)
        rows += [members[k : k + turns] for k in range(0, len(members), turns)]
    return rows


def schedule(rows: Sequence[list[int]], steps: int, per_step: int, seed: int) -> Iterator[list[list[int]]]:
    """Yield ``steps`` batches of ``per_step`` rows: shuffled passes over all rows, the same for every student of a seed."""
    if not rows:
        raise UserError("no training samples are left to train on")
    rng = random.Random(f"schedule {seed}")
    queue: list[list[int]] = []
    for _ in range(steps):
        while len(queue) < per_step:
            epoch = list(rows)
            rng.shuffle(epoch)
            queue += epoch
        yield queue[:per_step]
        del queue[:per_step]


@dataclass(frozen=True)
class Batch:
    """One step's rows as tensors. R rows, L tokens a row, N supervised tokens, B samples, I images.

    Attributes:
        input_ids: int64 [R, L], padded on the right.
        position_ids: int64 [R, L], restarting after the image prefix for each question; None for a model that counts itself.
        attention_mask: bool [R, 1, L, L], True where a query (third axis) may look at a key (fourth); or bool [R, L], True
            for tokens and False for padding, where rows are plain causal text.
        pixel_values: float32 [I, 3, H, W] in row order, or as the model's own processor makes them; or features [I, n, C] of
            a frozen tower (students/vision); None when no row has an image.
        row, column: int64 [N], the position whose output predicts a supervised token (labels are shifted by one).
        labels: int64 [N], the supervised tokens.
        clean: int64 [N], the clean reply's token at the same place, or -1 where the clean reply is shorter.
        sample: int64 [N], the sample (0 .. B-1) that a supervised token belongs to; ascending.
        prompt_row, prompt_column: int64 [B], the last prompt position of each sample.
        image: int64 [B], which of the I images the sample shows (the first of several), -1 for none.
        segment: int64 [R, L], 0 in the shared prefix, 1 .. for the row's questions, -1 for padding.
        question: int64 [B], the sample's number in its row, as ``segment`` counts them.
        text: int64 [B, Q], the columns of a sample's own tokens (its question and answer), -1 beyond the last; Q is the
            longest of the batch. Their counts are in ``text_tokens``, so that nobody needs to ask the device.
        text_tokens: B counts.
        indices: the B samples' numbers in the training set.
        pictures: how many images each of the R rows shows; empty where every row shows one or none.
        inputs: what else the model's forward pass takes, by keyword (image sizes, token types).
        padded: of a mask [R, L], that it is known on the host to hold padding, all of it on the right.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor | None
    attention_mask: torch.Tensor
    pixel_values: torch.Tensor | None
    row: torch.Tensor
    column: torch.Tensor
    labels: torch.Tensor
    clean: torch.Tensor
    sample: torch.Tensor
    prompt_row: torch.Tensor
    prompt_column: torch.Tensor
    image: torch.Tensor
    segment: torch.Tensor
    question: torch.Tensor
    text: torch.Tensor
    text_tokens: tuple[int, ...]
    indices: tuple[int, ...]
    pictures: tuple[int, ...] = ()
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    padded: bool = False

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        inputs = {k: v.to(device, non_blocking=True) for k, v in self.inputs.items()}
        tensors = {k: v.to(device, non_blocking=True) for k, v in moved.items() if hasattr(v, "to")}
        return replace(self, inputs=inputs, **tensors)


def _row_arrays(encoded: Encoded, members: list[int]) -> tuple[list[Ids], list[Ids], list[Ids], list[int]]:
    """Return one row's token, position and segment pieces, and where each question's last prompt token stands."""
    length = encoded.prefix[members[0]]
    tokens, positions, segments = [encoded.prompts[members[0]][:length]], [np.arange(length)], [np.zeros(length, np.int64)]
    ends, used = [], length
    for number, index in enumerate(members, start=1):
        body = np.concatenate([encoded.prompts[index][length:], encoded.answers[index][:-1]])
        tokens.append(body)
        positions.append(length + np.arange(len(body)))
        segments.append(np.full(len(body), number))
        ends.append(used + len(encoded.prompts[index]) - length - 1)
        used += len(body)
    return tokens, positions, segments, ends


def _owners(encoded: Encoded, rows: Sequence[list[int]], segment: Ids) -> tuple[dict[str, Ids], tuple[int, ...]]:
    """Return :class:`Batch`'s image, question and text, and the counts of text tokens."""
    image, question, columns, shown = [], [], [], 0
    for number, members in enumerate(rows):
        has = encoded.images[members[0]] is not None
        image += [shown if has else -1] * len(members)
        shown += has
        for place in range(1, len(members) + 1):
            question.append(place)
            columns.append(np.flatnonzero(segment[number] == place))
    counts = tuple(len(found) for found in columns)
    text = np.full((len(columns), max(counts)), -1, np.int64)
    for target, found in zip(text, columns, strict=True):
        target[: len(found)] = found
    return {"image": np.array(image), "question": np.array(question), "text": text}, counts


def prefixes(encoded: Encoded) -> Encoded:
    """Return the samples without question and answer: what all questions about one image share."""
    nothing = (np.zeros(0, np.int64),) * len(encoded)
    kept = tuple(ids[:length] for ids, length in zip(encoded.prompts, encoded.prefix, strict=True))
    return replace(encoded, prompts=kept, answers=nothing, clean=nothing)


def collate(encoded: Encoded, rows: Sequence[list[int]], pixels: Mapping[str, torch.Tensor]) -> Batch:
    """Pack rows (lists of sample numbers that share an image prefix) into one :class:`Batch`.

    Args:
        encoded: the token ids.
        rows: one list of sample numbers per row, as :func:`groups` makes them.
        pixels: float32 [3, H, W] per image key, or features [n, C].
    """
    import torch

    made = [_row_arrays(encoded, members) for members in rows]
    width = max(sum(len(piece) for piece in tokens) for tokens, _, _, _ in made)
    ids = np.full((len(rows), width), encoded.pad, np.int64)
    position, segment = np.zeros_like(ids), np.full_like(ids, -1)
    for number, (tokens, positions, segments, _) in enumerate(made):
        for target, pieces in ((ids, tokens), (position, positions), (segment, segments)):
            joined = np.concatenate(pieces)
            target[number, : len(joined)] = joined
    causal = np.tril(np.ones((width, width), dtype=bool))
    same = segment[:, :, None] == segment[:, None, :]
    shared = segment[:, None, :] == 0
    mask = causal & (same | shared)

    order = [
        (number, end, index) for number, members in enumerate(rows) for end, index in zip(made[number][3], members, strict=True)
    ]
    lengths = np.array([len(encoded.answers[index]) for _, _, index in order])
    offsets = np.concatenate([np.arange(length) for length in lengths])
    clean = [np.full(length, -1, np.int64) for length in lengths]
    for target, (_, _, index) in zip(clean, order, strict=True):
        known = encoded.clean[index][: len(target)]
        target[: len(known)] = known
    prompt_row, prompt_column = np.array([o[0] for o in order]), np.array([o[1] for o in order])
    owners, counts = _owners(encoded, rows, segment)
    more: dict[str, Any] = {name: torch.from_numpy(array) for name, array in owners.items()}
    shown = [image for members in rows if (image := encoded.images[members[0]]) is not None]
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(position),
        attention_mask=torch.from_numpy(mask)[:, None],
        pixel_values=torch.stack([pixels[image] for image in shown]) if shown else None,
        row=torch.from_numpy(np.repeat(prompt_row, lengths)),
        column=torch.from_numpy(np.repeat(prompt_column, lengths) + offsets),
        labels=torch.from_numpy(np.concatenate([encoded.answers[index] for _, _, index in order])),
        clean=torch.from_numpy(np.concatenate(clean)),
        sample=torch.from_numpy(np.repeat(np.arange(len(order)), lengths)),
        prompt_row=torch.from_numpy(prompt_row),
        prompt_column=torch.from_numpy(prompt_column),
        segment=torch.from_numpy(segment),
        **more,
        text_tokens=counts,
        indices=tuple(index for _, _, index in order),
    )
