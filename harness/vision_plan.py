"""Which frozen towers a run computes once per image, and why the others are not: decided before anything is written.

Features change no result, so they are in no other stage's digest (:attr:`harness.plan.Stage.uses`), and whether there are any
may be decided anew each time: by what the models are, by how often an image is looked at, and by the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tasks
from harness import caching
from harness.base import read_json
from harness.config import Preset, Train
from harness.plan import Stage
from harness.real import Assemble
from harness.resources import of_kind
from harness.sources import Sources
from harness.stages import corpus, data, encode, vision
from harness.worth import Decision, room
from students.options import DistilOptions
from students.vision import FAMILIES

#: Kinds of stages that run a tower: students, the teacher's passes over their data, and evaluations.
USERS = ("student", "signal", "kept", "evaluate")
#: Estimated seconds of a stage where the preset names none.
SECONDS = 15.0
#: (n, C) of a tower that is not on this machine: CLIP's large one at 336 pixels.
USUAL = (577, 1024)
#: What a decision says: yes, and no.
WORDS = ("once per image", "whenever one is shown")


class VisionPlan:
    """Adds these stages to a plan.

    Args:
        preset: the experiment.
        sources: its models.
        limit: whole clusters per protocol, or None.

    Attributes:
        decisions: after :meth:`settled`.
    """

    def __init__(self, preset: Preset, sources: Sources, limit: int | None) -> None:
        self.preset, self.sources, self.limit = preset, sources, limit
        self.decisions: list[Decision] = []
        self._never: list[Decision] = []

    # ---- the stages --------------------------------------------------------------------------------------------------------

    def added(self, stages: Sequence[Stage]) -> list[Stage]:
        """Return the plan with a stage for each set of images, before the first that uses it."""
        self._never = []
        made: set[str] = set()
        found: list[Stage] = []
        family = None if self.sources.of("base") is None else self.family()
        questions = self._questions(stages)
        for stage in stages:
            mine = self._for(stage, family, questions)
            if mine is None:
                found.append(stage)
                continue
            if mine.id not in made:
                made.add(mine.id)
                found.append(mine)
            target = mine.targets[0]
            found.append(replace(stage, uses=(*stage.uses, target), places={**stage.places, "vision": target}))
        return found

    def _for(self, stage: Stage, family: str | None, questions: Stage | None) -> Stage | None:
        """Return the stage whose features ``stage`` uses, or None where it runs its own tower.

        Args:
            stage: of the plan.
            family: the base's, as far as it is known.
            questions: the stage of the questions' features, where there is one.
        """
        if stage.kind not in USERS or self.sources.of("base") is None:
            return None
        what = "images of the questions" if stage.kind == "evaluate" else f"images of {self._rows(stage)}"
        if family is not None and family not in FAMILIES:
            return self._left(what, f"a {family} cuts images into variable numbers of tokens, or its tower is not run apart")
        if stage.kind == "evaluate":
            if stage.config["name"] in self.sources.models.external:
                return None
            return questions or self._left(what, "one model alone is asked")
        learns = self._learns(stage)
        if learns is not None:
            return self._left(what, f"the tower learns in {learns}")
        return self._training(stage)

    def _left(self, what: str, why: str) -> Stage | None:
        """Record why there is no stage for a set of images."""
        decision = Decision(what, False, why, WORDS)
        if decision not in self._never:
            self._never.append(decision)
        return None

    def family(self) -> str | None:
        """Return the base's family; None where its files are not here yet, or damaged, which whoever loads them says."""
        source = self.sources.of("base")
        if isinstance(source, Train):
            return "llava"
        if isinstance(source, Assemble):
            return source.assemble.family
        found = vision.configuration(Path(self.sources.place("base")) / "config.json")
        return None if found is None else str(found.get("model_type"))

    @staticmethod
    def _rows(stage: Stage) -> str:
        return f"corpus {stage.config['corpus']}" if "corpus" in stage.config else "the training data"

    def _learns(self, stage: Stage) -> str | None:
        """Return which training a tower learns in, up to the one that ``stage`` is or serves."""
        for each in self.preset.stages:
            if "tower" in each.training.learn:
                return f"stage {each.name}"
            mine = each.name if stage.kind == "student" else each.corpus
            if stage.config.get("stage" if stage.kind == "student" else "corpus") == mine:
                return None
        training = self.preset.training
        return "the training" if training is not None and "tower" in training.learn else None

    def _options(self, stage: Stage) -> DistilOptions:
        """Return the options of a training, or of the first one that the teacher's pass serves."""
        if stage.kind == "student":
            return DistilOptions.model_validate(stage.config["training"])
        if self.preset.training is not None:
            return self.preset.training
        return next(each.training for each in self.preset.stages if each.corpus == stage.config["corpus"])

    def _training(self, stage: Stage) -> Stage:
        options = self._options(stage)
        arithmetic = {"precision": options.precision, "frozen_dtype": options.frozen_dtype}
        reads, given = self.sources.inputs("base")
        config: dict[str, Any] = {"arithmetic": arithmetic, "threads": self.preset.threads}
        places = {"base": self.sources.place("base")}
        if "corpus" not in stage.config:
            made = self._stage("data", "packed", vision.DATA, config, ("data", *reads), given, places)
            return replace(made, uses=(encode.TARGET,))
        name = stage.config["corpus"]
        usual = next(each.training for each in self.preset.stages if each.corpus == name)
        label = name if usual.precision == options.precision and usual.frozen_dtype == options.frozen_dtype else (
            f"{name}-{options.precision}-{options.frozen_dtype}"
        )  # fmt: skip
        index = corpus.target(name)
        places |= {"corpus": index} | {k: v for k, v in stage.places.items() if k == "images"}
        target = vision.target(label)
        return self._stage(f"corpus/{label}", "streamed", target, {**config, "corpus": name}, (index, *reads), given, places)

    def _questions(self, stages: Sequence[Stage]) -> Stage | None:
        """Return the questions' stage where two of the run's own models are asked; others have other towers."""
        external = self.sources.models.external
        own = {s.job for s in stages if s.kind == "evaluate" and s.config["name"] not in external}
        if len(own) < 2 or self.sources.of("base") is None:
            return None
        asked = next(s for s in stages if s.kind == "questions")
        reads, given = self.sources.inputs("base")
        config = {
            "protocols": [facts["name"] for facts in asked.config["protocols"]],
            "limit": self.limit,
            "dtype": self.preset.evaluation.dtype,
            "incomplete": self.preset.evaluation.incomplete,
            "threads": self.preset.threads,
        }
        places = {**asked.places, "base": self.sources.place("base")}
        given = {**given, **asked.given}
        return self._stage("questions", "questions", vision.QUESTIONS, config, ("questions", *reads), given, places)

    def _stage(
        self,
        name: str,
        function: str,
        target: str,
        config: dict[str, Any],
        reads: tuple[str, ...],
        given: dict[str, str],
        places: dict[str, str],
    ) -> Stage:
        return Stage(
            id=f"vision/{name}", kind=vision.KIND, run=f"harness.stages.vision:{function}", version=vision.STAGE_VERSION,
            config=config, targets=(target,), reads=reads, given=given, places=places, cache=True, plans=vision.PLANS,
            job=f"vision/{name}", cost=self.preset.seconds.get(vision.KIND, SECONDS),
            resources=of_kind(vision.KIND, self.preset.threads, self.preset.resources),
        )  # fmt: skip

    # ---- whether they are worth it -----------------------------------------------------------------------------------------

    def settled(self, root: Path, stages: Sequence[Stage], bound: int | None) -> list[Stage]:
        """Return the plan without the sets of images that are not worth it, or do not fit.

        Args:
            root: the run folder, whose contents say how many images there are.
            stages: from :meth:`added`.
            bound: bytes that caches may hold; None for no bound.
        """
        self.decisions = list(self._never)
        left_out: set[str] = set()
        for stage in (each for each in stages if each.kind == vision.KIND):
            decision = self._decide(root, stage, stages, bound)
            self.decisions.append(decision)
            if not decision.once:
                left_out |= {stage.id, *stage.targets}
        return [_without(each, left_out) for each in stages if each.id not in left_out]

    def _decide(self, root: Path, stage: Stage, stages: Sequence[Stage], bound: int | None) -> Decision:
        what = "images of the questions" if stage.targets == (vision.QUESTIONS,) else f"images of {self._rows(stage)}"
        users = [each for each in stages if stage.targets[0] in each.uses]
        there = caching.lying(root, stage.id)  # it costs nothing any more
        count = vision.images(root, stage)
        looks = _looks(root, users, count)
        often = "each time they are shown" if looks is None else f"{looks:,} times in all"
        known = "images" if count is None else f"{count:,} images"
        why = f"{len(users)} stage(s) look at {known} {often}"
        if count is not None and looks is not None and looks <= count and there is None:
            return Decision(what, False, why, WORDS)
        declared = self._declared(stage) if count is None else count
        size = there
        if there is None and declared is not None:
            size = vision.size(stage, declared, self._shape(root, stage))
        limit, named = room(root, stage, users, stages, bound)
        if size is None and bound is not None:
            said = f"what they would take is not known before they are there, and {named} is a bound"
            return Decision(what, False, said, WORDS)
        # the disk has room for what lies on it; a bound may have become smaller
        if size is not None and size > limit and (bound is not None or there is None):
            said = f"features would take {size / caching.GB:,.3g} GB, and {named} leaves {limit / caching.GB:,.3g} GB"
            return Decision(what, False, said, WORDS)
        return Decision(what, True, why, WORDS)

    def _shape(self, root: Path, stage: Stage) -> tuple[int, int]:
        """Return (n, C) of the base; of what it will be made from, before it is there."""
        found, source = vision.features(root, stage), self.sources.of("base")
        if found is None and isinstance(source, Train):
            shape = source.train.shape
            found = ((shape.image // shape.patch) ** 2 + 1, shape.vision_hidden)
        elif found is None and isinstance(source, Assemble):
            found = vision.shape_of(Path(self.sources.place("base/tower")) / "config.json")
        return found or USUAL

    def _declared(self, stage: Stage) -> int | None:
        """Return how many images there are at most, as far as the preset says it before they are there."""
        if "corpus" in stage.config:
            return self.preset.corpora[stage.config["corpus"]].rows  # an image a row
        if "protocols" in stage.config:
            rows = [tasks.protocol(name).data.rows for name in stage.config["protocols"]]
            return None if None in rows else sum(each or 0 for each in rows)
        each = self.preset.data.images
        return None if each is None else each * len(self.preset.protocols)


def _without(stage: Stage, left_out: set[str]) -> Stage:
    if not left_out & set(stage.uses):
        return stage
    places = {name: place for name, place in stage.places.items() if name != "vision"}
    return replace(stage, uses=tuple(path for path in stage.uses if path not in left_out), places=places)


def _looks(root: Path, users: Sequence[Stage], images: int | None) -> int | None:
    """Return how often stages look at images, at most: rows of steps, the teacher's pass, questions and their answers."""
    found = 0
    for user in users:
        if user.kind == "student":
            options = DistilOptions.model_validate(user.config["training"])
            if options.steps is None:
                if images is None:
                    return None
                found += int((options.epochs or 0) * images)
            else:
                found += options.steps * options.rows
        elif user.kind != "evaluate":
            found += images or 0
        else:
            asked = root / data.facts(user.config["protocol"]["name"])
            if not asked.is_file():
                return None
            found += int(read_json(asked)["rows"]) * (2 if user.config.get("diagnostics", True) else 1)
    return found
