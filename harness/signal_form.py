"""In what form the teacher's signal is kept: chosen from what it would take on disk, before it is spent. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from harness.base import Strict, UserError
from students.teacher_signal.forms import LARGEST_K, SMALLEST_K, Form, Size

GB = 1e9
#: Where no ``--cache-gb`` says what caches may hold, the most that a form which nobody named may take.
AUTO_GB = 64.0
#: The share of ``--cache-gb`` that a signal, and vision tokens, may take; the rest is for the other caches of a student.
SHARE, TOKENS_SHARE = 0.5, 0.25


class Signal(Strict):
    """How a preset wants the teacher's signal kept.

    Attributes:
        form: ``exact``, ``half`` or ``topk`` (students/teacher_signal/forms.py); ``auto``: the first of them that fits.
        k: tokens of ``topk``; None: as many as fit.
    """

    form: Literal["auto", "exact", "half", "topk"] = "auto"
    k: PositiveInt | None = None

    @model_validator(mode="after")
    def _k_of_topk(self) -> Self:
        if self.k is not None and self.form != "topk":
            raise ValueError(f"k is {self.k} and form is {self.form!r}; k belongs to form topk")
        return self


@dataclass(frozen=True)
class Chosen:
    """A form, the bytes that it takes at most, and in one line why it was taken."""

    form: Form
    bytes: int
    why: str


def choose(wanted: Signal, size: Size, cache_gb: float | None, whole: bool) -> Chosen:
    """Choose a form; the same arguments give the same.

    Args:
        wanted: by the preset.
        size: what has to be kept.
        cache_gb: GB that all caches may hold, or None for no bound.
        whole: whether students need whole distributions, so that ``auto`` must not take ``topk``.

    Raises:
        UserError: where nothing fits, or k is too large.
    """
    limit = AUTO_GB * GB if cache_gb is None else SHARE * cache_gb * GB
    named = f"{AUTO_GB:g} GB without --cache-gb" if cache_gb is None else f"{SHARE:.0%} of --cache-gb {cache_gb:g}"
    exact, half = size.exact(), Form("half", "float16")
    if wanted.form == "topk" and wanted.k is not None:
        form = Form("topk", "float16", wanted.k)
        form.check(size.vocabulary)
        return Chosen(form, size.total(form), "the preset names it")
    if wanted.form in ("exact", "half"):
        form = exact if wanted.form == "exact" else half
        return Chosen(form, size.total(form), "the preset names it")
    sizes = {form: size.total(form) for form in (exact, half)}
    said = f"{exact} would take {sizes[exact] / GB:.3g} GB"
    if wanted.form == "auto":
        if sizes[exact] <= limit:
            return Chosen(exact, sizes[exact], f"{sizes[exact] / GB:.2g} GB fit into {named}")
        if sizes[half] < sizes[exact]:
            said += f", {half} {sizes[half] / GB:.3g} GB"
            if sizes[half] <= limit:
                return Chosen(half, sizes[half], f"{said}, and the limit is {named}")
    if whole and wanted.form == "auto":
        raise _too_large(said + ", and some of the preset's energies need every token", named)
    k = LARGEST_K
    while k >= SMALLEST_K:
        form = Form("topk", "float16", k)
        if 4 * k <= size.vocabulary and size.total(form) <= limit:
            return Chosen(form, size.total(form), f"{said}, and the limit is {named}")
        k //= 2
    least = Form("topk", "float16", SMALLEST_K)
    raise _too_large(f"{said}, {least} {size.total(least) / GB:.3g} GB", named)


def _too_large(said: str, named: str) -> UserError:
    return UserError(
        f"the teacher's signal is too large to be kept: {said}; the limit is {named}. Allow more with --cache-gb, or run the"
        " teacher beside each student with --live-teacher"
    )
