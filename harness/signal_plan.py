"""The stages that ask the teacher once for all students: its signal, its vision tokens, and whose energies need it live."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import caching, estimates, signal_form, store
from harness.base import UserError, read_json
from harness.config import Preset, load_recipe, load_variant
from harness.plan import Stage
from harness.real import TrainingStage
from harness.signal_form import Signal
from harness.sources import Sources
from harness.stages import corpus, encode, signal
from students.options import DistilOptions
from students.teacher_signal import declared
from students.teacher_signal.forms import LARGEST_K, Form, Size, loss


class SignalPlan:
    """Builds these stages for one preset.

    Args:
        preset: the experiment.
        sources: its models.
    """

    def __init__(self, preset: Preset, sources: Sources) -> None:
        self.preset, self.sources = preset, sources
        self._records: dict[str, str] = {}

    def lines(self, root: Path, names: Iterable[str]) -> list[str]:
        """Return a sentence for each signal of the plan that is there, and for each student that needs the teacher beside it.

        Its form, why that was taken, and what was measured of how far it is from the exact one; of one that was deleted to make
        room, what the manifest says.
        """
        said = []
        manifest = root / store.MANIFEST
        earlier = read_json(manifest).get("signal") or [] if manifest.is_file() else []
        for label, record in self._records.items():
            path = root / record
            if path.is_file():
                found = read_json(path)
                error = f"; measured against exact: {loss(found['errors'])}" if found["errors"] else ""
                size = f"{found['bytes'] / caching.GB:.2g} GB at most"
                said.append(f"{label}: {found['form']}, {size}, because {found['why']}{error}")
            else:
                said += [line for line in earlier if line.startswith(f"{label}: ")]
        names = list(names)
        return said + self.live(names) + self.beside(names)

    def check(self, root: Path, stages: Sequence[Stage], done: Collection[str]) -> None:
        """Refuse, before anything runs, students whose energies cannot be taken from the form of the signal they would hear.

        Raises:
            UserError: naming the first such student, its energies, and the ways out.
        """
        made = {stage.targets[0]: stage for stage in stages if stage.kind == "signal"}
        for student in (stage for stage in stages if stage.kind == "student" and stage.id not in done):
            heard = next((made[path] for path in student.reads if path in made), None)
            whole = _whole(student.config["recipe"])
            if heard is not None and whole and self._binned(root, heard, done):
                raise UserError(
                    f"{student.label}: {' and '.join(whole)} (as set there) needs the teacher's whole distributions, and"
                    f" {heard.label} keeps its likeliest tokens alone (form topk); leave the student out, run the teacher"
                    " beside it (--live-teacher), or give the signal the form exact or half (preset: signal)"
                )

    @staticmethod
    def _binned(root: Path, stage: Stage, done: Collection[str]) -> bool:
        """Say whether a signal is in the form topk, or will be as far as the preset says it."""
        record = root / stage.targets[1]
        if stage.id in done and record.is_file():
            return str(read_json(record)["form"]).startswith("topk")
        return bool(stage.config.get("signal", {}).get("form") == "topk")

    # ---- what a student reads ----------------------------------------------------------------------------------------------

    def hears(self, name: str, options: DistilOptions) -> bool:
        """Say whether a student of a corpus is told by a signal: nothing it reads is not kept, and its teacher not live."""
        energies = load_recipe(name).energies
        return bool(energies) and not options.live_teacher and declared.taps(energies) <= declared.KEPT

    def reads_tokens(self, name: str, options: DistilOptions) -> bool:
        """Say whether a student's energies read vision tokens, and nothing else beside a signal."""
        wanted = declared.taps(load_recipe(name).energies)
        return bool(wanted) and wanted <= declared.KEPT and not options.live_teacher

    def live(self, names: Iterable[str]) -> list[str]:
        """Return a line for each student that the teacher runs beside though the others hear its signal, and why."""
        said = []
        options = [self.preset.training] if self.preset.training is not None else [s.training for s in self.preset.stages]
        for name in names:
            wanted = declared.taps(load_recipe(name).energies) - declared.KEPT
            if wanted and not all(each is None or each.live_teacher for each in options):
                said.append(f"{name}: the teacher runs beside it, because it reads {' and '.join(sorted(wanted))} of it")
        return said

    def beside(self, names: Iterable[str]) -> list[str]:
        """Return a line for each training on a corpus whose teacher is live as set, with what its signal would take at most.

        By the preset's counts; nothing where it declares none, or no student hears logits alone.
        """
        limit = signal_form.AUTO_GB if self.preset.cache_gb is None else signal_form.SHARE * self.preset.cache_gb
        teacher, said = self.preset.declared.get("teacher"), []
        hear = any(self.hears(name, DistilOptions(steps=1)) for name in names)
        for stage in self.preset.stages:
            source = self.preset.corpora[stage.corpus]
            if not stage.training.live_teacher or not hear or teacher is None or not source.rows or not source.words:
                continue
            words = int(estimates.TOKENS_PER_WORD * source.words)
            size = Size(words * source.rows, source.rows, teacher.vocabulary, teacher.hidden, stage.training.teacher_dtype)
            forms = (size.exact(), Form("topk", "float16", LARGEST_K))
            taken = ", ".join(f"{form} {size.total(form) / caching.GB:,.0f} GB" for form in forms)
            said.append(
                f"stage {stage.name}: the teacher runs beside each student, as the preset or --live-teacher says; its signal"
                f" would take up to: {taken} ({source.rows:,} rows of about {words} tokens of text; allowed: {limit:g} GB)"
            )
        return said

    # ---- packed data -------------------------------------------------------------------------------------------------------

    def packed(self, training: DistilOptions, blind: dict[str, Any], names: Iterable[str]) -> list[Stage]:
        """Return the stages of the training data's signal, and of vision tokens where one of the students reads them."""
        names = list(names)
        reads, given = self.sources.inputs("teacher")
        packing = training.model_dump(mode="json", include={"rows", "turns"})  # shapes the arithmetic of the pass
        config = {"training": packing, "threads": self.preset.threads, "blind": blind, **self._teacher(training)}
        said = Stage(
            id="teacher/signal",
            kind="signal",
            run="harness.stages.signal:packed",
            version=signal.STAGE_VERSION,
            config={**config, **self._form()},
            targets=(signal.SIGNAL, signal.record(signal.SIGNAL)),
            reads=("data", *reads),
            given=given,
            places={"teacher": self.sources.place("teacher")},
            cache=True,
            plans=signal.PLANS,
            uses=(encode.TARGET,),
            choice=self._choice(names),
        )
        self._records[said.label] = said.targets[1]
        if not any(self.reads_tokens(name, training) for name in names):
            return [said]
        tokens = {name: value for name, value in config.items() if name != "training"}
        return [said, replace(self._kept(said, signal.KEPT, tokens), uses=(encode.TARGET,))]

    def _teacher(self, training: DistilOptions) -> dict[str, Any]:
        return {} if training.teacher_dtype == "float32" else {"dtype": training.teacher_dtype}

    def _form(self) -> dict[str, Any]:
        """Return the preset's wishes where they are not the usual ones, which change no digest."""
        wanted = self.preset.signal
        return {} if wanted == Signal() else {"signal": wanted.model_dump(mode="json")}

    def _choice(self, names: Iterable[str]) -> dict[str, Any]:
        """Return what the form is chosen by: the bound of caches, and whether students need whole distributions.

        Those of the preset and those asked for, so that one student after the other finds the form that all of them can hear.
        """
        whole = any(_whole(name) for name in {*self.preset.recipes, *names})
        return {"cache_gb": self.preset.cache_gb, "whole": whole}

    def _kept(self, said: Stage, target: str, config: dict[str, Any]) -> Stage:
        """Return the stage that keeps vision tokens of the images that a signal's stage reads."""
        return replace(
            said,
            id=target,
            kind="kept",
            run="harness.stages.signal:kept",
            version=signal.KEPT_VERSION,
            config=config,
            targets=(target,),
            reads=tuple(path for path in said.reads if not path.startswith(signal.COUNT)),
            plans=signal.PLANS_KEPT,
            uses=(),
            resumes=False,
        )

    # ---- corpora -----------------------------------------------------------------------------------------------------------

    def label(self, stage: TrainingStage) -> str:
        """Name the signal of a stage of the training: its corpus's, unless an earlier stage reads that one otherwise."""
        first = next(each for each in self.preset.stages if each.corpus == stage.corpus)
        same = next(s for s in self.preset.stages if s.corpus == stage.corpus and self._reading(s) == self._reading(stage))
        return stage.corpus if same is first else f"{stage.corpus}-{same.name}"

    def _reading(self, stage: TrainingStage) -> dict[str, Any]:
        """Return how the teacher reads a corpus for a stage, as far as it is not as usual."""
        options = stage.training
        found: dict[str, Any] = {} if options.template is None else {"template": options.template}
        if options.max_length is not None:
            found["limit"] = options.teacher_limit
        return {**found, **self._teacher(options)}

    def streamed(self, stage: TrainingStage, names: Sequence[str], images: str | None) -> list[Stage]:
        """Return the stages of a corpus's signal, where one of the students hears it; ``images``: where those lie."""
        if self.sources.of("teacher") is None or not any(self.hears(name, stage.training) for name in names):
            return []
        reads, given = self.sources.inputs("teacher")
        label, index, options = self.label(stage), corpus.target(stage.corpus), stage.training
        places = {"teacher": self.sources.place("teacher"), "corpus": index} | ({} if images is None else {"images": images})
        config = {"corpus": stage.corpus, "threads": self.preset.threads, **self._reading(stage)}
        count = Stage(
            id=f"{signal.COUNT}/{label}",
            kind="count",
            run="harness.stages.signal:count",
            version=signal.COUNT_VERSION,
            config=config,
            targets=(f"{signal.COUNT}/{label}.json",),
            reads=(index, *reads),
            given=given,
            places=places,
        )
        target = f"{signal.SIGNAL}/{label}"
        said = Stage(
            id=target,
            kind="signal",
            run="harness.stages.signal:streamed",
            version=signal.STAGE_VERSION,
            config={**config, "training": {"rows": options.micro_rows or options.rows}, **self._form()},
            targets=(target, signal.record(target)),
            reads=(index, *count.targets, *reads),
            given=given,
            places={**places, "count": count.targets[0]},
            resumes=True,
            cache=True,
            plans=signal.PLANS,
            choice=self._choice(names),
        )
        self._records[said.label] = said.targets[1]
        found = [count, said]
        if any(self.reads_tokens(name, options) for name in names):
            found.append(self._kept(said, f"{signal.KEPT}/{label}", config))
        return found

    def told(self, stage: TrainingStage, name: str) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, str]]:
        """Return what a student that hears a signal reads and uses, and the places of it."""
        label = self.label(stage)
        places = {"signal": f"{signal.SIGNAL}/{label}", "teacher": self.sources.place("teacher")}
        if not self.reads_tokens(name, stage.training):
            return (places["signal"],), (), places
        kept = f"{signal.KEPT}/{label}"
        return (places["signal"],), (kept,), {**places, "kept": kept}


def _whole(name: str) -> list[str]:
    """Return those of a student's energies that need whole distributions."""
    recipe = load_recipe(name)
    return declared.whole(recipe.energies, load_variant(recipe.variant) if recipe.variant else None)
