"""The forms in which a teacher's distributions are kept, and what each takes on disk. No torch here, so that plans can count.

``exact`` keeps every logit in the teacher's own type: what is read back is what it said, bit for bit. ``half`` keeps each
logit less its token's largest in float16, and the largest in float32: the numbers that are compared are small where
probability is, and float16 has 11 significant bits of them where bfloat16 has 8. ``topk`` keeps log-probabilities of the k
likeliest tokens and of all others together; losses are then taken over those k + 1 bins. A divergence of the KL's kind (fkl,
rkl, js, tvd, skewed ones) is never larger there than over all tokens; energies for which bins mean something else refuse them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from harness.base import UserError

Name = Literal["exact", "half", "topk"]
Kind = Literal["float32", "bfloat16", "float16"]
NAMES: tuple[Name, ...] = ("exact", "half", "topk")
WIDTH: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
#: What ``topk`` may take for k where nobody says: fewer is little of a distribution, more is hardly more of it.
LARGEST_K, SMALLEST_K = 1024, 16


@dataclass(frozen=True)
class Form:
    """How a teacher's distributions are kept.

    Attributes:
        name: one of :data:`NAMES`.
        dtype: of the numbers: the teacher's own for "exact".
        k: tokens of "topk".
    """

    name: Name = "exact"
    dtype: Kind = "float32"
    k: int | None = None

    def __str__(self) -> str:
        return f"{self.name}, {self.dtype}" if self.k is None else f"{self.name}, k = {self.k}, {self.dtype}"

    def token_bytes(self, vocabulary: int) -> int:
        """Bytes that one token takes."""
        if self.k is not None:
            return 4 * self.k + WIDTH[self.dtype] * (self.k + 1)
        return WIDTH[self.dtype] * vocabulary + (4 if self.name == "half" else 0)

    def check(self, vocabulary: int) -> None:
        """Refuse a k that leaves no other tokens.

        Raises:
            UserError: naming k and V.
        """
        if self.k is not None and not 1 <= self.k < vocabulary:
            raise UserError(f"k is {self.k}, and the teacher knows {vocabulary} tokens; allowed: 1 to {vocabulary - 1}")


@dataclass(frozen=True)
class Size:
    """What has to be kept.

    Attributes:
        tokens: T, supervised tokens of the data.
        samples: S.
        vocabulary: V, the teacher's.
        hidden: H, its width.
        dtype: of its logits.
    """

    tokens: int
    samples: int
    vocabulary: int
    hidden: int
    dtype: Kind = "float32"

    def exact(self) -> Form:
        """The form that loses nothing."""
        return Form("exact", self.dtype)

    def total(self, form: Form) -> int:
        """Bytes of a form with what is kept beside the distributions, at most: of tokens, of samples, of the vocabulary."""
        beside = 24 * self.tokens + (8 * self.hidden + 160) * self.samples + 64 * self.vocabulary + 50_000
        return self.tokens * form.token_bytes(self.vocabulary) + beside


def loss(errors: Mapping[str, Any]) -> str:
    """Say in one line how far a form is from the exact one, from what was measured while it was written."""
    said = [
        f"|d log p| at most {errors['log_p']['max']:.2g}, {errors['log_p']['mean']:.2g} in the mean",
        f"KL {errors['kl']['mean']:.2g}",
    ]
    if "rest" in errors:
        said.append(f"{100 * errors['rest']['mean']:.2g} % of probability without a bin of its own")
    pairs = [pair for students in errors["losses"].values() for pair in students.values() if pair["exact"] > 0]
    if pairs:
        change = max(abs(pair["kept"] - pair["exact"]) / pair["exact"] for pair in pairs)
        said.append(f"losses change by at most {100 * change:.2g} %")
    return "; ".join(said)
