"""Who may import whom (DESIGN section 1), and that naming a room imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import harness

HOME = Path(harness.__file__).parents[1]
ROOMS = ("harness", "students", "tasks", "reports")
ALLOWED = {
    "harness": ROOMS,
    "students": ("students", "harness.base"),
    "tasks": ("tasks", "harness.base"),
    "reports": ("reports", "tasks", "harness.base"),
}
HEAVY = ("torch", "transformers", "lmms_eval", "torchvision", "datasets", "accelerate")
MODULES = sorted(path for room in ROOMS for path in (HOME / room).rglob("*.py"))


def imported(path):
    """Yield every absolute name a module imports, wherever in the file, ``from a import b`` as ``a.b``."""
    package = path.relative_to(HOME).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*start, *([node.module] if node.module else [])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def allowed(room, name):
    return any(name == a or name.startswith(f"{a}.") for a in ALLOWED[room])


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_what_it_may(room):
    broken = [
        f"{path.relative_to(HOME)}: {name}"
        for path in MODULES
        if path.relative_to(HOME).parts[0] == room
        for name in imported(path)
        if name.split(".")[0] in ROOMS and not allowed(room, name)
    ]
    assert not broken


def test_this_test_would_notice(tmp_path, monkeypatch):
    (tmp_path / "students").mkdir()
    module = tmp_path / "students" / "bad.py"
    module.write_text("def f():\n    from tasks import load\n    from . import recipe\n    from harness.base import digest\n")
    monkeypatch.setattr(sys.modules[__name__], "HOME", tmp_path)
    found = list(imported(module))
    assert found == ["tasks.load", "students.recipe", "harness.base.digest"]
    assert [allowed("students", name) for name in found] == [False, True, True]


def test_base_imports_no_room():
    names = imported(HOME / "harness" / "base.py")
    assert not [name for name in names if name.split(".")[0] in ROOMS]


@pytest.mark.parametrize(
    "names",
    [
        "harness, students, tasks, reports, harness.base",
        "harness.run, harness.report, harness.check",
        "harness.gate, harness.baseline",
        "harness.blueprint, harness.listing",
    ],
)
def test_importing_loads_nothing_heavy(names):
    code = f"import sys, {names}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HOME, check=True)
    assert done.stdout.strip() == "[]"
