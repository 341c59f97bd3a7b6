"""Which students, tasks and seeds a command means: globs, lists and names, each with did-you-mean errors."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import tasks
from harness.base import UserError, nearest, unknown
from harness.config import Preset, load_recipe
from students.recipe import Recipe

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
    listed = {tasks.protocol(name).benchmark: name for name in preset.protocols}
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
