"""Planted faults: whose label is wrong, and which images the teacher does not see. Light, so that presets can check them."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from harness.base import UserError, unknown


@dataclass(frozen=True)
class Faults:
    """What is injected into training data, and where.

    Whether a question is noisy depends on the seed, its id and whether its image is blind; whether an image is blind on the
    seed and the image. Neither depends on the other rows. Raising a rate only adds to those affected, except that
    complementary noise leaves the images that a higher ``blindness`` takes.

    Attributes:
        label_noise: probability, per question, that the answer is replaced by one of the question's wrong replies (0..1).
        blindness: probability, per image, that the teacher does not see it (0..1); rows without image are never blind.
        complementary: noise falls only where the teacher is healthy: on rows that show an image that is not blind or, with
            ``blind_benchmarks``, on all rows of the other benchmarks, those without an image included.
        blind_benchmarks: the teacher sees no image of these, and all images of the others; instead of ``blindness``.
        seed: of both draws.

    Raises:
        UserError: when made, for rates outside 0..1 and combinations that make no sense.
    """

    label_noise: float = 0.0
    blindness: float = 0.0
    complementary: bool = False
    blind_benchmarks: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, rate in (("label_noise", self.label_noise), ("blindness", self.blindness)):
            if not 0.0 <= rate <= 1.0:
                raise UserError(f"{name} is {rate}; allowed: 0 to 1")
        if len(set(self.blind_benchmarks)) != len(self.blind_benchmarks):
            raise UserError(f"blind_benchmarks is {', '.join(self.blind_benchmarks)}; allowed: each benchmark once")
        if self.blind_benchmarks and self.blindness:
            raise UserError(
                f"blindness is {self.blindness} and blind_benchmarks is {', '.join(self.blind_benchmarks)};"
                " allowed: one of the two, a share of all images or all images of some benchmarks"
            )
        if not self.complementary:
            return
        if not self.label_noise:
            raise UserError("complementary is true and label_noise is 0; needed: a rate above 0 for the healthy part")
        if not self.blinds:
            raise UserError("complementary is true and nothing is blind; needed: blindness above 0, or blind_benchmarks")
        if self.blindness == 1.0:
            raise UserError("complementary is true and blindness is 1.0, which leaves no healthy image; allowed: below 1")

    @property
    def blinds(self) -> bool:
        """Whether there is anything that the teacher does not see."""
        return bool(self.blindness or self.blind_benchmarks)

    def check(self, benchmarks: Collection[str]) -> None:
        """Check the names in ``blind_benchmarks``.

        Raises:
            UserError: for one that is not in the training data, or when complementary noise finds no other benchmark.
        """
        for name in self.blind_benchmarks:
            if name not in benchmarks:
                raise unknown("benchmark in blind_benchmarks:", name, benchmarks)
        if self.complementary and self.blind_benchmarks and not set(benchmarks) - set(self.blind_benchmarks):
            raise UserError(
                f"complementary is true and blind_benchmarks is {', '.join(self.blind_benchmarks)}, which are all benchmarks;"
                " needed: one that sees its images, for the label noise"
            )

    def blind(self, benchmark: str, image: str | None) -> bool:
        """Whether the teacher does not see the image of a row; always False for a row without one."""
        if image is None:
            return False
        if self.blind_benchmarks:
            return benchmark in self.blind_benchmarks
        return random.Random(f"blind {self.seed} {image}").random() < self.blindness

    def noise_rate(self, benchmark: str, image: str | None) -> float:
        """Return the probability that the label of a row is wrong: ``label_noise`` or 0."""
        if not self.complementary:
            return self.label_noise
        healthy = benchmark not in self.blind_benchmarks if self.blind_benchmarks else image is not None
        return self.label_noise if healthy and not self.blind(benchmark, image) else 0.0
