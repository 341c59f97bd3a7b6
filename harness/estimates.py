r"""How much memory and disk and how many steps a training takes: simple sums that tell 40 GB from 80 GB in advance.

Memory of the GPU, in bytes, with P the student's parameters that learn, F those that do not, P_t the teacher's; R rows in one
forward pass, L tokens a row at most (images included), so T = R L tokens; h, n, i, V the language model's width, blocks,
MLP width and vocabulary; N <= T supervised tokens:

==========  ==========================================================================================================
weights     4 P + b F, b = 4 or 2 by ``frozen_dtype``
casts       2 P under bf16 autocast, which keeps a bfloat16 copy of each weight between forward and backward; else 0
gradients   4 P
optimiser   8 P, AdamW's two moments (Muon has one for its matrices: less)
activations one block: a = T (16 h + w (6 h + 4 i)): four float32 copies of the residual stream (two norms, in and out), and the
            projections' inputs and outputs in w = 2 (bf16) or 4 bytes. Kept: n a; with checkpointing n 4 h T + a;
            selective, with the matrix products' outputs, n T (4 h + w (6 h + 2 i)) + a
teacher     b_t P_t + a of its own block, b_t by ``teacher_dtype``; nothing is kept for a backward pass; 0 without a teacher
logits      4 N V each, at most 2^24 of them at once (docs/performance.md, chunks): 3 for CE alone (logits, log-softmax,
            gradient), and 4 more for a teacher and an energy (METHOD 2.10)
spans       4 R v V each, with v tokens an image: 4 (two models, log-softmaxes) where an energy compares logits at images
context     1e9 for CUDA itself, and 10 % of the sum for fragmentation
==========  ==========================================================================================================

The attention is taken to be fused (no L x L map), and the frozen tower, run without gradient, to be smaller than a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.real import ModelSize
from students.options import DistilOptions

#: Tokens per word of English text in Llama's and Qwen's vocabularies, about; and tokens of a conversation's template.
TOKENS_PER_WORD = 1.35
TEMPLATE = 40
CONTEXT = 1e9
FRAGMENTATION = 0.1
_WIDTH = {"float32": 4, "bfloat16": 2}
#: Logits of one model that exist at once, as students/stored.py has it; energies of samples that read logits see all.
AT_ONCE = 1 << 24
_CE_LOGITS, _ENERGY_LOGITS, _SPAN_LOGITS = 3, 4, 4


@dataclass(frozen=True)
class Rows:
    """A forward pass: rows, and tokens of the longest and of a mean one, images included."""

    count: int
    longest: int
    mean: float


def rows(options: DistilOptions, student: ModelSize, words: float) -> Rows:
    """Return what one forward pass reads, from the mean words of a row's text."""
    mean = student.vision_tokens + TEMPLATE + TOKENS_PER_WORD * words
    longest = options.max_length or int(4 * mean)  # without a limit, rows of four times the mean length are assumed
    return Rows(options.micro_rows or options.rows, longest, min(mean, longest))


def _block(size: ModelSize, tokens: int, width: int) -> float:
    return tokens * (16.0 * size.hidden + width * (6.0 * size.hidden + 4.0 * size.intermediate))


def learned(options: DistilOptions, student: ModelSize) -> float:
    """Return P: how many of the student's parameters learn. Projectors count as language, LoRA's matrices are counted."""
    language = float(student.parameters - student.tower)
    tower = float(student.tower) if "tower" in options.learn else 0.0
    if "language" not in options.learn:
        return tower + min(language, 4.0 * student.hidden**2)  # a projector: two square maps, about
    if options.lora is not None:
        per_block = options.lora.rank * (7 * student.hidden + 3 * student.intermediate + 4 * student.hidden)
        return tower + float(student.layers * per_block)
    return tower + language


def memory(
    options: DistilOptions,
    student: ModelSize,
    teacher: ModelSize | None,
    words: float,
    energies: int,
    spans: bool = False,
    whole: bool = False,
) -> dict[str, float]:
    """Return the GPU memory of one training in bytes, by what it is for; see the module's docstring.

    Args:
        options: of the training.
        student, teacher: their sizes; no teacher where none runs beside the student.
        words: mean words of a row's text.
        energies: channels that compare with the teacher.
        spans: whether one of them compares logits at the vision tokens.
        whole: whether one of them needs the logits of all tokens at once.
    """
    shape = rows(options, student, words)
    tokens = shape.count * shape.longest
    half = options.precision == "bf16"
    width = 2 if half else 4
    learns = learned(options, student)
    block = _block(student, tokens, width)
    kept = student.layers * block
    if options.gradient_checkpointing:
        outputs = (
            width * (6 * student.hidden + 2 * student.intermediate) if options.gradient_checkpointing == "selective" else 0
        )
        kept = student.layers * tokens * (4.0 * student.hidden + outputs) + block
    logits = shape.count * max(1, shape.longest - student.vision_tokens) * student.vocabulary
    parts = {
        "weights": 4.0 * learns + _WIDTH[options.frozen_dtype] * (student.parameters - learns),
        "casts": 2.0 * learns if half else 0.0,
        "gradients": 4.0 * learns,
        "optimiser": 8.0 * learns,
        "activations": kept,
        "teacher": 0.0,
        "logits": 4.0 * (logits if whole else min(logits, AT_ONCE)) * (_CE_LOGITS + (_ENERGY_LOGITS if energies else 0)),
    }
    if spans:
        parts["spans"] = 4.0 * shape.count * student.vision_tokens * student.vocabulary * _SPAN_LOGITS
    if teacher is not None:
        stored = _WIDTH[options.teacher_dtype]
        parts["teacher"] = stored * float(teacher.parameters) + _block(teacher, tokens, stored)
    parts["context"] = CONTEXT + FRAGMENTATION * sum(parts.values())
    return parts


def evaluation_memory(size: ModelSize, dtype: str, batch: int) -> float:
    """Return the GPU memory of an evaluation in bytes: weights, one block for 1,024 tokens a question, logits, context."""
    width = _WIDTH[dtype]
    tokens = batch * (size.vision_tokens + 1024)
    total = width * float(size.parameters) + _block(size, tokens, width) + 4.0 * batch * size.vocabulary
    total += 2.0 * size.layers * tokens * size.hidden * width  # keys and values
    return total * (1 + FRAGMENTATION) + CONTEXT


def steps(options: DistilOptions, corpus_rows: int) -> int:
    """Return how many optimiser steps a training takes: a last step of an epoch that would not be full is left out."""
    if options.steps is not None:
        return options.steps
    assert options.epochs is not None  # the options see to it
    return int(options.epochs * (corpus_rows // options.rows) + 1e-9)


def checkpoint_bytes(student: ModelSize) -> float:
    """Return the size of a student's checkpoint: all of it in float32."""
    return 4.0 * student.parameters


def resume_bytes(options: DistilOptions, student: ModelSize) -> float:
    """Return the most that resume points take while a stage works: the old one and the new one; weights and both moments."""
    return 0.0 if options.save_every is None else 2 * 12.0 * learned(options, student)


def total(parts: Mapping[str, float]) -> float:
    """Return the sum of parts in bytes."""
    return sum(parts.values())
