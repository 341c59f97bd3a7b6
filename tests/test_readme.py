"""The README's examples, copied out of it into a copy of the packages, and used."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", re.DOTALL)

USE = {
    "students/energies/hellinger.py": """
import torch
from students import energies, recipe
from students.batch import TokenBatch
p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.5, 0.3, 0.2]], requires_grad=True)
energy = energies.build("hellinger")
value = energy(TokenBatch(q.log(), p.log(), torch.tensor([0]), torch.tensor([0])))
assert abs(value.item() - (1 - (0.35**0.5 + 0.06**0.5 + 0.02**0.5))) < 1e-6, value
assert torch.autograd.grad(value.sum(), q)[0].abs().max() > 0
assert energy(TokenBatch(p.log(), p.log(), torch.tensor([0]), torch.tensor([0]))).item() == 0
assert energy.bounds == (0.0, 1.0) and energy.zero_at_match and energy.symmetric
assert recipe.parse("ce+hellinger@task").energies == ("hellinger",)
""",
    "students/weightings/convex.py": """
import torch
from students import recipe, weightings
from harness.base import UserError
losses = {"ce": torch.tensor([1.0, 2.0]), "kd": torch.tensor([0.25, 0.5])}
out = weightings.build("convex", channels=("ce", "kd"), teacher=0.75)(losses)
assert out.weights["kd"].tolist() == [0.75, 0.75] and out.weights["ce"].tolist() == [0.25, 0.25], out
assert abs(float(out.total) - (0.25 * 1.5 + 0.75 * 0.375)) < 1e-6, out
recipe.parse("ce+fkl@convex")
try:
    weightings.build("convex", channels=("ce", "kd"), teacher=-1)
except UserError as error:
    assert "teacher is -1" in str(error), error
else:
    raise AssertionError("a negative share was accepted")
""",
    "tasks/protocols/gqa@dev.yaml": """
import tasks
questions = tasks.load(tasks.protocol("gqa@dev"))
replies = [{"id": q.id, "reply": q.answer} for q in questions.questions]
assert len(replies) == 300
assert tasks.score(tasks.protocol("gqa@dev"), replies).value == 100.0
""",
    "reports/layouts/teacher-only.yaml": """
from reports import tables
assert tuple(tables.layouts()["teacher-only"].students) == ("teacher", "base", "fkl")
assert list(tables.layouts())[-1] == "teacher-only"
""",
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of the four packages with every example of the README written where its first line says."""
    folder = tmp_path_factory.mktemp("copy")
    for room in ("harness", "students", "tasks", "reports"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for path, text in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        assert not (folder / path).exists(), f"{path} is there already: the example shows nothing"
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def test_every_example_is_used():
    found = [path for path, _ in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))]
    assert sorted(found) == sorted(USE)


@pytest.mark.parametrize("path", USE)
def test_an_added_file_is_all_it_takes(copied, path):
    environment = {**os.environ, "PYTHONPATH": str(copied)}
    code = "from harness import base\nbase.offline(); base.shim()\n" + USE[path]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copied, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
