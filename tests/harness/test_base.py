"""The ground floor: errors that help, files that are whole or not there, digests, and the torchvision shim."""

import subprocess
import sys

import pydantic
import pytest

from harness import base
from harness.base import Strict, UnknownName, UserError


class Schema(Strict):
    steps: int
    name: str = "a"


def test_an_unknown_name_says_what_is_near_and_what_is_allowed():
    error = base.unknown("benchmark", "sciqa", ["scienceqa", "gqa", "pope"])
    assert str(error) == "unknown benchmark 'sciqa'. Did you mean 'scienceqa' or 'gqa'? Known: gqa, pope, scienceqa"
    assert isinstance(error, UserError)
    assert isinstance(error, KeyError)
    with pytest.raises(UnknownName, match=r"^unknown energy 'zzz'. Known: none$"):
        raise base.unknown("energy", "zzz", [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\nnmae: b", r"f.yaml: unknown field 'nmae'. Did you mean 'name'\? Known: steps, name"),
        ("steps: many", r"f.yaml: field 'steps': .* got 'many'"),
        ("name: b", r"f.yaml: field 'steps': Field required"),
        ("steps: [", r"f.yaml: not valid YAML"),
    ],
)
def test_a_bad_yaml_is_one_line_that_names_file_and_field(tmp_path, text, message):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        base.read_yaml(tmp_path / "f.yaml", Schema)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    base.write_text(tmp_path / "f", "old")
    with pytest.raises(RuntimeError), base.atomic_path(tmp_path / "f") as path:
        path.write_text("half")
        raise RuntimeError
    assert (tmp_path / "f").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_json_refuses_nan_and_names_damaged_lines(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        base.write_json(tmp_path / "f.json", {"a": float("nan")})
    assert not (tmp_path / "f.json").exists()
    rows = [{"a": 1}, {"a": "é"}]
    base.write_jsonl(tmp_path / "f.jsonl", rows)
    assert base.read_jsonl(tmp_path / "f.jsonl") == rows
    (tmp_path / "f.jsonl").write_text('{"a": 1}\n{"a":')
    with pytest.raises(UserError, match=r"f\.jsonl, line 2: not valid JSON"):
        base.read_jsonl(tmp_path / "f.jsonl")
    (tmp_path / "f.json").write_text("{")
    with pytest.raises(UserError, match=r"f\.json is damaged"):
        base.read_json(tmp_path / "f.json")


def test_digests_know_content_and_names_but_not_key_order(tmp_path):
    assert base.digest({"a": 1, "b": [2]}) == base.digest({"b": [2], "a": 1}) != base.digest({"a": 1, "b": [3]})
    (tmp_path / "x").write_text("1")
    first = base.digest_folder(tmp_path)
    (tmp_path / "x").rename(tmp_path / "y")
    assert base.digest_folder(tmp_path) != first
    with pytest.raises(UserError, match="holds no file"):
        base.digest_folder(tmp_path, "*.safetensors")


def run(code):
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)


def test_the_shim_lets_torchvision_import_beside_cpu_torch():
    """Skipped where there is nothing to mend: a torchvision that matches its torch."""
    if run("import torchvision").returncode == 0:
        pytest.skip("this torchvision imports without help")
    code = (
        "from harness.base import shim; shim(); shim()\n"
        "import torchvision.transforms.v2, torch\n"
        "from transformers import CLIPImageProcessor, LlavaForConditionalGeneration\n"
        "try: torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)\n"
        "except (NotImplementedError, RuntimeError) as error: print('refused')\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "refused\n"


def test_the_shim_leaves_a_cuda_build_of_torch_alone(monkeypatch):
    import torch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(base, "_torchvision_library", None)
    base.shim()
    assert base._torchvision_library is None


def test_a_rule_between_fields_does_not_print_the_whole_section():
    class Section(base.Strict):
        steps: int | None = None
        epochs: int | None = None

        @pydantic.model_validator(mode="after")
        def _one(self):
            if self.steps and self.epochs:
                raise ValueError("give steps or epochs")
            return self

    with pytest.raises(UserError) as found:
        base.parse(Section, {"steps": 1, "epochs": 2}, "a.yaml")
    assert str(found.value) == "a.yaml: field '(top level)': give steps or epochs"
    with pytest.raises(UserError, match=r"field 'steps': .* got 'x'$"):
        base.parse(Section, {"steps": "x"}, "a.yaml")
