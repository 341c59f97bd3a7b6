"""Which students, tasks and seeds a command means: globs, lists and names, each with did-you-mean errors."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import tasks
from harness import store
from harness.base import UserError, nearest, parse, read_json, unknown
from harness.config import Models, Preset, load_recipe, model_path
from students.recipe import RESERVED, Recipe

ALL = "all"


def _parts(option: str, text: str) -> list[str]:
    parts = [p.strip() for p in text.split(",")]
    if not all(parts):
        raise UserError(f"{option} {text!r} has an empty part; separate names with single commas")
    return parts


def _is_glob(text: str) -> bool:
    return any(c in text for c in "*?[")


def students(text: str, preset: Preset) -> list[Recipe]:
    """Resolve ``--students``: ``all``, globs over the preset's recipes, or any valid recipe spelled out; a comma list.

    Raises:
        UserError: for a glob that matches nothing, an unknown word in a recipe or an unknown variant.
    """
    if not preset.trains and text != ALL:
        raise UserError(f"--students {text!r}: preset {preset.name!r} trains nothing; it evaluates the models given by --model")
    listed = {r.name: r for r in (load_recipe(word) for word in preset.recipes)}
    chosen: dict[str, Recipe] = {}
    for part in _parts("--students", text):
        if part == ALL:
            chosen |= listed
        elif _is_glob(part):
            matches = {name: recipe for name, recipe in listed.items() if fnmatch.fnmatchcase(name, part)}
            if not matches:
                raise UserError(f"--students {part!r} matches no recipe of preset {preset.name!r}: {', '.join(listed)}")
            chosen |= matches
        else:
            recipe = _recipe(part, list(listed))
            chosen[recipe.name] = recipe
    return list(chosen.values())


def _recipe(part: str, listed: Sequence[str]) -> Recipe:
    try:
        return load_recipe(part)
    except UserError as error:
        close = nearest(part, listed, n=1)
        if "Did you mean" in str(error) or not close:
            raise
        raise type(error)(f"{error}. Nearest recipe of the preset: {close[0]}") from error


def protocols(text: str, preset: Preset) -> list[str]:
    """Resolve ``--tasks``: ``all``, a benchmark (the preset's protocol for it), a protocol, or a glob; a comma list.

    Returns:
        Names of protocols, in the preset's order, others behind.

    Raises:
        UserError: for a name that is neither a benchmark of the preset nor a protocol.
    """
    listed: dict[str, str] = {}
    for name in preset.protocols:
        listed.setdefault(tasks.protocol(name).benchmark, name)
    chosen: list[str] = []
    for part in _parts("--tasks", text):
        if part == ALL:
            chosen += preset.protocols
        elif part in listed:
            chosen.append(listed[part])
        elif part in tasks.names():
            chosen.append(part)
        elif _is_glob(part):
            matches = [name for name in preset.protocols if fnmatch.fnmatchcase(name, part)]
            if not matches:
                known = ", ".join(preset.protocols)
                raise UserError(f"--tasks {part!r} matches no protocol of preset {preset.name!r}: {known}")
            chosen += matches
        else:
            raise unknown("task", part, {*listed, *tasks.names(), ALL})
    order = [*preset.protocols, *(name for name in chosen if name not in preset.protocols)]
    return [name for name in dict.fromkeys(order) if name in chosen]


def on_the_hub(preset: Preset, protocols: Sequence[str]) -> bool:
    """Say whether any of the protocols, or a corpus of the preset, has its data on the hub, and not in this package."""
    formats = {preset.corpora[stage.corpus].format for stage in preset.stages}
    return "scienceqa" in formats or any(tasks.protocol(name).dataset is not None for name in protocols)


def live(preset: Preset) -> Preset:
    """Return the preset with the teacher run beside the students, for ``--live-teacher``.

    Raises:
        UserError: when it trains nothing.
    """
    if not preset.trains:
        raise UserError(f"--live-teacher: preset {preset.name!r} trains nothing")
    on = {"live_teacher": True}
    if preset.training is None:
        stages = tuple(s.model_copy(update={"training": s.training.model_copy(update=on)}) for s in preset.stages)
        return preset.model_copy(update={"stages": stages})
    return preset.model_copy(update={"training": preset.training.model_copy(update=on)})


def bounded(preset: Preset, gb: float) -> Preset:
    """Return the preset with a bound for what caches hold, for ``--cache-gb``.

    Raises:
        UserError: when it is not a positive number.
    """
    if not (math.isfinite(gb) and gb > 0):
        raise UserError(f"--cache-gb is {gb:g}; allowed: a number of gigabytes above 0, or leave it out for no bound")
    return preset.model_copy(update={"cache_gb": gb})


def models(texts: Sequence[str], under: Models) -> Models:
    """Resolve ``--model NAME=PATH_OR_ID``, adding to the models ``under`` it; a name given again replaces that model.

    Raises:
        UserError: for a text without ``=``, a name that stands for another row, or one that is given twice.
    """
    given: dict[str, str] = {}
    for text in texts:
        name, sign, source = (part.strip() for part in text.partition("="))
        if not (name and sign and source):
            raise UserError(f"--model {text!r}: expected NAME=PATH_OR_ID, as in --model mine=checkpoints/mine")
        if name in given:
            raise UserError(f"--model names {name!r} twice")
        path = Path(source).expanduser()
        given[name] = str(path.resolve()) if path.exists() else source
    facts = under.model_dump(mode="json")
    return parse(Models, {**facts, "external": {**facts["external"], **given}}, "--model")


def with_earlier(root: Path, models: Models, console: Console) -> Models:
    """Add the external models that earlier commands evaluated in this run folder, so that the report keeps them.

    A model whose folder is gone is said so and left out: its rows cannot be told to be up to date.
    """
    if not (root / store.MANIFEST).is_file():
        return models
    earlier: dict[str, str] = read_json(root / store.MANIFEST).get("models", {})
    kept = dict(models.external)
    for name, source in earlier.items():
        if name in (*RESERVED, "tower") or "/" in name or name in kept:  # a name with a slash is a part of an assembled model
            continue
        try:
            model_path(source)
        except UserError as error:
            text = f"model {name} of an earlier command leaves the report: {error}"
            console.print(text, soft_wrap=True, highlight=False, markup=False)
        else:
            kept[name] = source
    return models.model_copy(update={"external": kept})


def seeds(text: str) -> list[int]:
    """Resolve ``--seeds``: non-negative integers separated by commas.

    Raises:
        UserError: for anything else, and for a seed given twice.
    """
    result: list[int] = []
    for part in _parts("--seeds", text):
        if not (part.isascii() and part.isdigit()) or int(part) > 2**31 - 1:
            raise UserError(f"--seeds {text!r}: {part!r} is not a seed; allowed: integers from 0 to {2**31 - 1}, as in '0,1,2'")
        if int(part) in result:
            raise UserError(f"--seeds {text!r} names seed {part} twice")
        result.append(int(part))
    return result
