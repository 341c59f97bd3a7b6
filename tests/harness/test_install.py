"""A non-editable install: what the commands need is in the package, and a folder's own ``students/`` is not in the way."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The packages, installed from a copy of the tree into a folder of their own, without the network."""
    work = tmp_path_factory.mktemp("install")
    kept = shutil.ignore_patterns("__pycache__", "runs", "build", "*.egg-info", ".*", "docs")
    shutil.copytree(ROOT, work / "tree", ignore=kept)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*command, "--target", work / "site", work / "tree"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return work / "site"


def run(site, *arguments, cwd):
    """Run a command against the installed packages alone, from a working folder of the caller's choice."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_tests_stay_out_and_the_data_comes_along(site):
    assert not (site / "tests").exists()
    for room in ("harness", "students", "tasks", "reports"):
        shipped = {
            p.relative_to(ROOT).as_posix() for p in (ROOT / room).rglob("*") if p.is_file() and "__pycache__" not in p.parts
        }
        missing = sorted(name for name in shipped if not (site / name).is_file())
        assert not missing, missing


def test_the_command_works_from_a_folder_with_its_own_students(site, tmp_path):
    (tmp_path / "students").mkdir()
    (tmp_path / "tasks").mkdir()
    where = run(
        site, "-c", "import harness, students.recipe, tasks.catalogue as t; print(harness.__file__, t.__file__)", cwd=tmp_path
    )
    assert where.returncode == 0, where.stderr
    assert all(Path(name).is_relative_to(site) for name in where.stdout.split())
    listed = run(site, "-m", "harness.run", "--list", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "ce+fkl@instance" in listed.stdout
    planned = run(site, "-m", "harness.run", "--dry-run", "--students", "ce", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
