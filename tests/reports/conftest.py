"""One simulated run per session; tests that damage it copy it first."""

import shutil
from pathlib import Path

import pytest
import simulate

from harness import base
from reports.figures import style


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default's students, small. Read only."""
    return simulate.write_run(tmp_path_factory.mktemp("runs") / "simulated", clusters=40, steps=60)


@pytest.fixture
def run_copy(whole_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(whole_run, tmp_path / "copy"))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One energy and few questions, for tests that build a report often. Read only."""
    students = ["ce", "ce+fkl@fixed", "ce+fkl@task", "ce+fkl@instance"]
    return simulate.write_run(tmp_path_factory.mktemp("runs") / "small", clusters=28, steps=40, students=students)


@pytest.fixture
def small_copy(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the small run that a test may change."""
    return Path(shutil.copytree(small_run, tmp_path / "small"))


@pytest.fixture(scope="session")
def planted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with blind teachers and wrong labels whose truth is known. Read only."""
    return simulate.write_planted(tmp_path_factory.mktemp("runs") / "planted", seeds=(0, 1), clusters=30)


@pytest.fixture
def planted_copy(planted_run: Path, tmp_path: Path) -> Path:
    """A copy of the planted run that a test may change."""
    return Path(shutil.copytree(planted_run, tmp_path / "planted"))


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw figures but do not spend seconds on encoding them."""
    monkeypatch.setattr(style, "save", lambda figure, target: base.write_text(target, "drawn"))
