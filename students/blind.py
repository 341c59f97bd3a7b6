"""What a teacher says about samples whose image it does not see. No torch here."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.base import UserError, unknown

if TYPE_CHECKING:
    from students.data.samples import TrainingSet

#: What a teacher can say where it is blind; see :class:`Blind`.
SAYS = ("mean_image", "shuffled")
#: How many other images a "shuffled" blind teacher is asked about.
OTHERS = 6


@dataclass(frozen=True)
class Blind:
    """What the teacher says about samples whose image it does not see.

    Attributes:
        says: "mean_image": its answer to the mean of all training images, which can be wrong and certain; "shuffled": the
            mean of its probabilities over OTHERS other images of the sample's benchmark, which are as uncertain as one who
            knows the questions and not the image.
        seed: of the draw of the other images.

    Raises:
        UserError: when made, for an unknown word.
    """

    says: str = "mean_image"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.says not in SAYS:
            raise unknown("blind_teacher", self.says, SAYS)

    def __str__(self) -> str:
        return self.says if self.says == "mean_image" else f"{self.says} over {OTHERS} images, seed {self.seed}"


def others(data: TrainingSet, seed: int) -> dict[tuple[str, str], tuple[str, ...]]:
    """Draw, for each (benchmark, image) of a blind sample, OTHERS other images that the same benchmark shows.

    The draw depends on the seed, the benchmark's images and the pair alone; questions about one image share it, and so do
    their packed rows.

    Raises:
        UserError: for a benchmark with too few images.
    """
    pools: dict[str, set[str]] = {}
    for s in data:
        if s.image is not None:
            pools.setdefault(s.benchmark, set()).add(s.image)
    drawn = {}
    for benchmark, image in sorted({(s.benchmark, s.image) for s in data if s.blind and s.image is not None}):
        pool = sorted(pools[benchmark] - {image})
        if len(pool) < OTHERS:
            raise UserError(
                f"blind_teacher 'shuffled' needs {OTHERS} other images of benchmark {benchmark!r}, which has {len(pool)}"
            )
        drawn[benchmark, image] = tuple(random.Random(f"shuffled {seed} {benchmark} {image}").sample(pool, OTHERS))
    return drawn
