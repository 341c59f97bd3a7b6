"""What a run needs and this machine lacks: weights and data, where each is expected, and how to get it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tasks
from harness import hub, weights
from harness.base import UserError, read_json, unknown
from harness.config import Models, Preset, is_hub_id
from harness.sources import Absent, Sources, locate
from harness.training_plan import corpus_places
from students.models import families


@dataclass(frozen=True)
class Missing:
    """One thing that is not here, or not whole.

    Attributes:
        kind: what it is.
        name: its role, name or benchmark.
        key: what the plan knows it by: a model's source, or the name.
        reason: what was looked for, where.
        remedy: how to get it.
        fetched: a run that may reach the hub gets it by itself.
    """

    kind: Literal["model", "corpus", "benchmark"]
    name: str
    key: str
    reason: str
    remedy: str
    fetched: bool = False

    @property
    def text(self) -> str:
        """One line."""
        return f"{self.kind} {self.name}: {self.reason.rstrip('.')}. {self.remedy}"


def find(preset: Preset, given: Models, protocols: Sequence[str], data_root: Path | None) -> list[Missing]:
    """Return everything of a plan that is not on this machine; reaches no network."""
    found = missing_models(given, trained=preset.trains)
    for name in dict.fromkeys(stage.corpus for stage in preset.stages):
        found += _corpus(preset, name, data_root)
    for benchmark in dict.fromkeys(tasks.protocol(name).benchmark for name in protocols):
        mine = [name for name in protocols if tasks.protocol(name).benchmark == benchmark]
        found += _benchmark(benchmark, mine[0], data_root)
    return found


def absent(found: Collection[Missing]) -> Absent:
    """Return what the plan is told about it."""
    by_kind = {kind: frozenset(m.key for m in found if m.kind == kind) for kind in ("model", "corpus", "benchmark")}
    return Absent(by_kind["model"], by_kind["corpus"], by_kind["benchmark"])


def refuse(found: Sequence[Missing], online: bool) -> None:
    """Stop a run that lacks something it cannot fetch.

    Raises:
        UserError: naming the first thing, and how many more there are.
    """
    lost = [each for each in found if not (online and each.fetched)]
    if lost:
        more = f" ({len(lost) - 1} more missing: --dry-run lists them all)" if len(lost) > 1 else ""
        raise UserError(f"{lost[0].text}{more}")


def fetch(models: Models) -> None:
    """Download the models that are the hub's and not whole on this machine.

    Raises:
        UserError: when one cannot be had, or is not whole afterwards.
    """
    for each in missing_models(models, trained=False):
        if each.fetched:
            hub.fetch(each.key)
    refuse(missing_models(models, trained=False), online=False)


# ---- models ----------------------------------------------------------------------------------------------------------------


def missing_models(given: Models, trained: bool) -> list[Missing]:
    """Return the models, and parts of models, that are not here or not whole.

    Args:
        given: the models.
        trained: students are trained, so teacher and base must be of a family that is known here.
    """
    found = []
    seen: set[str] = set()
    for role, source in Sources(given).sources().items():
        if source in seen:
            continue
        seen.add(source)
        known = trained and role in ("teacher", "base")
        reason = _lack(role, source, known)
        if reason is not None:
            found.append(Missing("model", role, source, reason, _model_remedy(source), is_hub_id(source)))
    return found


def _lack(role: str, source: str, known: bool) -> str | None:
    """Say what a model lacks, in one line; None for a whole one."""
    if is_hub_id(source) and not _hub_place(source, os.environ).is_dir():
        return f"{source} is not in the hub's cache ({_hub_place(source, os.environ)})"
    try:
        folder = locate(role, source)
        if role.endswith("/projector"):
            return None
        weights.read(folder)
        if known:
            kind = str(read_json(folder / "config.json").get("model_type"))
            if kind not in families():
                return f"{folder / 'config.json'}: {unknown('model type', kind, families())}"
    except UserError as error:
        return str(error)
    return None


def _hub_place(model: str, environment: Mapping[str, str]) -> Path:
    """Return the folder that the hub's library keeps a model in, there or not."""
    home = Path(environment.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return Path(environment.get("HF_HUB_CACHE", home / "hub")) / f"models--{model.replace('/', '--')}"


def _model_remedy(source: str) -> str:
    if is_hub_id(source):
        return f"Run without --offline, which fetches it, or: hf download {source}"
    return "Put a Hugging Face folder there (config.json, weights, tokenizer), or name another with --model or in the preset"


# ---- data ------------------------------------------------------------------------------------------------------------------


def _corpus(preset: Preset, name: str, data_root: Path | None) -> list[Missing]:
    source = preset.corpora[name]
    remedy = f"Get it from: {source.source or 'no source is named in the preset'} (docs/real_runs.md)"
    if source.format == "embedded":
        return []
    if source.format == "scienceqa":
        lost = _benchmark("scienceqa", "scienceqa@all", data_root)
        return [replace(each, kind="corpus", name=name, key=name, remedy=remedy) for each in lost]
    if data_root is None:
        reason = f"{source.file} and {source.images} are looked for below --data-root DIR, and no --data-root is given"
        return [Missing("corpus", name, name, reason, remedy)]
    places = corpus_places(source, data_root)
    there = {"file": Path(places["file"]).is_file(), "images": Path(places["images"]).is_dir()}
    gone = [places[kind] for kind, here in there.items() if not here]
    return [Missing("corpus", name, name, f"{' and '.join(gone)} not found", remedy)] if gone else []


def _benchmark(benchmark: str, protocol: str, data_root: Path | None) -> list[Missing]:
    dataset = tasks.protocol(protocol).dataset
    if dataset is None:
        return []
    if data_root is not None:
        folder = data_root / benchmark
        if folder.is_dir() and any(folder.iterdir()):
            return []
        what = "holds no file" if folder.is_dir() else "does not exist"
        reason = f"{folder} {what}: --data-root holds a folder per benchmark"
        return [
            Missing(
                "benchmark",
                benchmark,
                benchmark,
                reason,
                f"What belongs there: docs/data_root.md; or hub data set {dataset.id}",
            )
        ]
    if _cached(dataset.id, os.environ):
        return []
    remedy = f"Run without --offline, which fetches hub data set {dataset.id}, or name a folder with --data-root"
    return [Missing("benchmark", benchmark, benchmark, "not in the hub's cache on this machine", remedy, fetched=True)]


def _cached(dataset: str, environment: Mapping[str, str]) -> bool:
    """Say whether the ``datasets`` library keeps something of a data set: a folder named after it, give or take spelling."""
    home = Path(environment.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    folder = Path(environment.get("HF_DATASETS_CACHE", home / "datasets"))
    wanted = dataset.replace("/", "").replace("_", "").replace("-", "").lower()
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return any(name.replace("_", "").replace("-", "").lower() == wanted for name in names)
