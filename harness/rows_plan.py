"""Which corpora a run tokenises once, and whose images it decodes once, and why not the others: decided like features.

Neither changes a result, so they are in no other stage's digest (:attr:`harness.plan.Stage.uses`), and whether there are any
may be decided anew each time: by how often rows are read, by what else is stored, and by the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness import caching
from harness.base import read_json
from harness.config import Preset
from harness.plan import Stage
from harness.resources import of_kind
from harness.sources import Sources
from harness.stages import corpus, rows
from harness.vision_plan import VisionPlan
from harness.worth import Decision, room
from students.options import DistilOptions
from students.vision import FAMILIES

#: Kinds of stages that read rows of a corpus, and of those that look at their images.
READERS, LOOKERS = ("student", "signal", "count"), ("student", "signal", "kept", rows.KIND)
#: Estimated seconds of a stage where the preset names none.
SECONDS = 60.0
#: Rows that the count of a signal's tokens reads (students/teacher_signal/streams.py, COUNTED).
_COUNTED = 512
#: What a decision says: yes, and no.
WORDS = ("made once", "made whenever a row is read")


class RowsPlan:
    """Adds these stages to a plan.

    Args:
        preset: the experiment.
        sources: its models.
        vision: knows the base's family.

    Attributes:
        decisions: after :meth:`settled`.
    """

    def __init__(self, preset: Preset, sources: Sources, vision: VisionPlan) -> None:
        self.preset, self.sources, self.vision = preset, sources, vision
        self.decisions: list[Decision] = []

    def settled(self, root: Path, stages: Sequence[Stage], bound: int | None) -> list[Stage]:
        """Return the plan with what is worth it and fits.

        Args:
            root: the run folder, whose contents say how many rows and images there are.
            stages: of a plan whose features are settled.
            bound: bytes that caches may hold; None for no bound.
        """
        self.decisions = []
        found = list(stages)
        if self.sources.of("base") is None:
            return found
        family = self.vision.family()
        for name in dict.fromkeys(each.corpus for each in self.preset.stages):
            readers = [each for each in found if each.kind in READERS and each.config.get("corpus") == name]
            for template in dict.fromkeys(_template(each) for each in readers):
                alike = [each.id for each in readers if _template(each) == template]
                found = self._with(root, self._tokens(name, template, readers[0], bound), alike, found, bound)
            lookers = [each.id for each in found if _looks(each, name, family)]
            if lookers:
                found = self._with(root, self._pictures(name, readers[0], bound), lookers, found, bound)
        return found

    def _with(self, root: Path, stage: Stage, users: Sequence[str], stages: list[Stage], bound: int | None) -> list[Stage]:
        """Return the plan with ``stage`` before the first of ``users``, which use it; or without, where it is not worth it."""
        target = stage.targets[0]
        place = "tokens" if stage.plans == rows.TOKENS_PLANS else "pictures"
        using = [replace(s, uses=(*s.uses, target), places={**s.places, place: target}) if s.id in users else s for s in stages]
        first = next(number for number, each in enumerate(stages) if each.id in users)
        tried = [*using[:first], stage, *using[first:]]
        what = f"{place} of corpus {stage.config['corpus']}"
        decision = self._decide(root, stage, [each for each in using if each.id in users], tried, bound, what)
        self.decisions.append(decision)
        return tried if decision.once else stages

    # ---- the stages --------------------------------------------------------------------------------------------------------

    def _tokens(self, name: str, template: str | None, reader: Stage, bound: int | None) -> Stage:
        usual = next(each.training.template for each in self.preset.stages if each.corpus == name)
        label = name if template == usual else f"{name}-{template or 'own'}"
        reads, given = self.sources.inputs("base")
        # another version may read otherwise, and then nobody would take these (students/data/tokenised.py)
        versions = {package: version(package) for package in ("tokenizers", "transformers")}
        config: dict[str, Any] = {"corpus": name, "versions": versions} | ({} if template is None else {"template": template})
        places = {**_where(reader), "base": self.sources.place("base")}
        index = corpus.target(name)
        return Stage(
            id=f"encode/{label}", kind=rows.KIND, run="harness.stages.rows:tokens", version=rows.STAGE_VERSION, config=config,
            targets=(rows.tokens_target(label),), reads=(index, *reads), given=given, places=places, cache=True,
            plans=rows.TOKENS_PLANS, **self._usual(f"encode/{label}", bound),
        )  # fmt: skip

    def _pictures(self, name: str, reader: Stage, bound: int | None) -> Stage:
        return Stage(
            id=f"pictures/{name}", kind=rows.KIND, run="harness.stages.rows:pictures", version=rows.STAGE_VERSION,
            config={"corpus": name}, targets=(rows.pictures_target(name),), reads=(corpus.target(name),),
            places=_where(reader), cache=True, plans=rows.PICTURES_PLANS, **self._usual(f"pictures/{name}", bound),
        )  # fmt: skip

    def _usual(self, name: str, bound: int | None) -> dict[str, Any]:
        resources = of_kind(rows.KIND, self.preset.threads, self.preset.resources)
        cost = self.preset.seconds.get(rows.KIND, SECONDS)
        return {"job": name, "cost": cost, "resources": resources, "choice": {"bounded": bound is not None}}

    # ---- whether they are worth it -----------------------------------------------------------------------------------------

    def _decide(
        self, root: Path, stage: Stage, users: Sequence[Stage], stages: Sequence[Stage], bound: int | None, what: str
    ) -> Decision:
        decided = partial(Decision, what, words=WORDS)
        there = caching.lying(root, stage.id)  # it costs nothing any more
        refused = root / stage.targets[0] / rows.WHY
        if there is not None and refused.is_file():
            return decided(False, f"{read_json(refused)['why']} (to try again, remove {refused.parent})")
        facts = rows.facts(root, stage)
        unit = "images" if stage.plans == rows.PICTURES_PLANS else "rows"
        count = None if facts is None else int(facts[unit])
        epochs, steps = _reads(users)
        looks = None if count is None else int(epochs * count) + steps
        more = f" and {steps:,} of them" if steps else ""
        times = f"{epochs:g} time(s){more}" if looks is None else f"{looks:,} times in all"
        what_of = f"all {unit}" if count is None else f"{count:,} {unit}"
        why = f"{len(users)} stage(s) read {what_of} {times}"
        seldom = epochs <= 1 and steps == 0 if looks is None or count is None else looks <= count
        if seldom and there is None:
            return decided(False, why)
        if facts is not None and facts.get("sizes") is None and there is None:
            return decided(False, "the corpus was indexed by an earlier version, which did not record its sizes")
        plan: Callable[[Path, Stage], int | None] = rows.tokens_bytes if unit == "rows" else rows.pictures_bytes
        size = plan(root, stage) if there is None else there
        if size is None and bound is not None:
            return decided(False, "what they would take is not known before the corpus is there, and --cache-gb is a bound")
        limit, named = room(root, stage, users, stages, bound)
        # the disk has room for what lies on it; a bound may have become smaller
        if size is not None and size > limit and (bound is not None or there is None):
            said = f"they would take {size / caching.GB:,.3g} GB, and {named} leaves {limit / caching.GB:,.3g} GB"
            return decided(False, said)
        return decided(True, why)


def _template(stage: Stage) -> str | None:
    """Return the conversation format that a stage reads rows in."""
    options = stage.config["training"] if stage.kind == "student" else stage.config
    found: str | None = options.get("template")
    return found


def _where(reader: Stage) -> dict[str, str]:
    return {name: reader.places[name] for name in ("corpus", "images") if name in reader.places}


def _looks(stage: Stage, name: str, family: str | None) -> bool:
    """Say whether a stage decodes images of a corpus: it has no features of them, and its rows are not made without."""
    if stage.kind not in LOOKERS or stage.config.get("corpus") != name or "vision" in stage.places:
        return False
    return stage.kind != rows.KIND or (family is not None and family not in FAMILIES)


def _reads(users: Sequence[Stage]) -> tuple[float, int]:
    """Return how often stages read a corpus, at most: so many times all of it, and so many rows more."""
    epochs, single = 0.0, 0
    for user in users:
        if user.kind == "count":
            single += _COUNTED
        elif user.kind != "student":
            epochs += 1
        else:
            options = DistilOptions.model_validate(user.config["training"])
            if options.steps is None:
                epochs += options.epochs or 0
            else:
                single += options.steps * options.rows
    return epochs, single
