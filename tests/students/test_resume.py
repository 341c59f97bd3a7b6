"""A training that is killed goes on to the same bits; what is half-written, damaged or another's is never gone on from."""

import random

import numpy as np
import pytest
import torch
from killing import identical, killed, lines
from tiny_corpus import indexed
from twin_families import twin
from twins import mobilevlm_twin

from harness.base import UserError
from students import resume
from students.distil import Inputs, StreamInputs, distil
from students.options import DistilOptions, Lora
from students.recipe import Variant, parse

PACKED = DistilOptions(steps=8, rows=4, turns=3, warmup=2, betas_every=2, flush_every=2, micro_rows=2, save_every=3)
STREAM = DistilOptions(
    steps=4, rows=4, micro_rows=2, optimiser="adamw", lr=1e-3, warmup_ratio=0.2, betas_every=2, flush_every=1, save_every=2,
    max_length=400, overlong="replace",
)  # fmt: skip
LORA = Lora(rank=2, alpha=4, dropout=0.2, targets=("q_proj", "v_proj"))


@pytest.fixture(scope="module")
def given(folders, data, encoded, signal):
    return Inputs(folders / "base", data, encoded, signal, folders / "teacher")


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    where = tmp_path_factory.mktemp("stream")
    corpus, sizes = indexed(where / "corpus", rows=14, seed=3, text_only=0.3), list(enumerate(("student", "teacher")))
    pairs = {
        "mobilevlm": [mobilevlm_twin(where / size, size, seed=k) for k, size in sizes],
        "llava_qwen": [twin("llava_qwen", where / f"llava-{size}", size, k) for k, size in sizes],
    }
    return {family: StreamInputs(student, corpus, teacher) for family, (student, teacher) in pairs.items()}


def whole(recipe, options, inputs, out, variant=None):
    distil(parse(recipe), options, inputs, 0, out, lambda *_: None, variant=variant)
    return out


@pytest.mark.parametrize("recipe", ["ce+taid@famo", "ce+ctkd+fd@instance", "ce+fkl@gradnorm"])
def test_a_killed_training_ends_with_the_same_bits(given, tmp_path, recipe):
    killed(recipe, PACKED, given, tmp_path / "killed", at=7)
    assert [path.name for path in resume.points(tmp_path / "killed")] == ["step-000000006.pt"]
    assert not (tmp_path / "killed" / "student").exists()
    after = []
    distil(parse(recipe), PACKED, given, 0, tmp_path / "killed", lambda done, total: after.append(done))
    assert after == [8]  # the first six steps are not repeated
    identical(tmp_path / "killed", whole(recipe, PACKED, given, tmp_path / "whole"))
    assert not (tmp_path / "killed" / "resume").exists()


@pytest.mark.parametrize(
    ("family", "recipe", "options", "variant"),
    [
        ("mobilevlm", "ce+fd+fkl@instance", STREAM, None),
        ("llava_qwen", "ce+taid@famo", STREAM, Variant(energies={"taid": {"alpha": 0.1}})),
        ("llava_qwen", "ce+llava_kd@task", STREAM.model_copy(update={"lora": LORA, "gradient_checkpointing": True}), None),
    ],
)
def test_a_killed_stream_ends_with_the_same_bits(streams, tmp_path, family, recipe, options, variant):
    """Dropout draws from torch's generator, whose state must be in the point too."""
    stream = streams[family]
    killed(recipe, options, stream, tmp_path / "killed", at=3, variant=variant)
    whole(recipe, options, stream, tmp_path / "killed", variant)
    identical(tmp_path / "killed", whole(recipe, options, stream, tmp_path / "whole", variant))


def test_it_may_be_killed_again_and_again(given, tmp_path):
    for at in (2, 4, 7):  # the first before any resume point
        killed("ce+fkl@rlw", PACKED, given, tmp_path / "killed", at=at)
    whole("ce+fkl@rlw", PACKED, given, tmp_path / "killed")
    identical(tmp_path / "killed", whole("ce+fkl@rlw", PACKED, given, tmp_path / "whole"))


def test_records_after_the_point_are_cut_off(given, tmp_path):
    killed("ce+fkl", PACKED, given, tmp_path / "out", at=8)
    recorded = lines(tmp_path / "out")
    assert [line["step"] for line in recorded] == list(range(1, 9))  # of which 7 and 8 are done again
    whole("ce+fkl", PACKED, given, tmp_path / "out")
    assert lines(tmp_path / "out") == recorded


def test_a_half_written_point_is_never_read(given, tmp_path):
    killed("ce+fkl", PACKED, given, tmp_path / "out", at=4)
    (point,) = resume.points(tmp_path / "out")
    torn = point.parent / ".step-000000006.pt.abc.tmp"
    torn.write_bytes(point.read_bytes()[:100])
    whole("ce+fkl", PACKED, given, tmp_path / "out")
    identical(tmp_path / "out", whole("ce+fkl", PACKED, given, tmp_path / "whole"))


def test_points_are_written_beside_and_renamed(given, tmp_path, monkeypatch):
    """An attempt that dies inside the write leaves the point before it, and goes on from there."""
    save = torch.save
    written = []

    def dies(state, path):
        written.append(state["step"])
        save(state, path)
        if state["step"] == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        whole("ce+fkl", PACKED, given, tmp_path / "out")
    monkeypatch.undo()
    assert written == [3, 6]
    assert [path.name for path in resume.points(tmp_path / "out")] == ["step-000000003.pt"]
    whole("ce+fkl", PACKED, given, tmp_path / "out")
    identical(tmp_path / "out", whole("ce+fkl", PACKED, given, tmp_path / "whole"))


def test_another_trainings_point_is_refused(given, tmp_path):
    killed("ce+fkl", PACKED, given, tmp_path / "out", at=4)
    other = PACKED.model_copy(update={"lr": 1e-4})
    for recipe, options in (("ce+rkl", PACKED), ("ce+fkl", other)):
        with pytest.raises(UserError, match=r"step-000000003\.pt was written by another training .* remove .*resume"):
            whole(recipe, options, given, tmp_path / "out")
    often = PACKED.model_copy(update={"save_every": 1})  # changes nothing of the result
    whole("ce+fkl", often, given, tmp_path / "out")


def test_a_damaged_point_is_named_and_code_in_it_never_runs(given, tmp_path):
    killed("ce+fkl", PACKED, given, tmp_path / "out", at=4)
    (point,) = resume.points(tmp_path / "out")
    whole_file = point.read_bytes()
    point.write_bytes(whole_file[:-200])
    with pytest.raises(UserError, match=r"step-000000003\.pt is damaged .* remove"):
        whole("ce+fkl", PACKED, given, tmp_path / "out")

    class Evil:
        def __reduce__(self):
            return (print, ("boo",))

    torch.save({"version": 1, "evil": Evil()}, point)
    with pytest.raises(UserError, match=r"step-000000003\.pt is damaged"):
        whole("ce+fkl", PACKED, given, tmp_path / "out")
    point.write_bytes(whole_file)
    (tmp_path / "out" / "dynamics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"dynamics\.jsonl has 0 bytes"):
        whole("ce+fkl", PACKED, given, tmp_path / "out")


def test_what_an_attempt_without_a_point_left_is_cleared(given, tmp_path):
    out = tmp_path / "out"
    (out / "failure").mkdir(parents=True)
    (out / "adapter").mkdir()
    (out / "mine.txt").write_text("kept")
    whole("ce+fkl", PACKED, given, out)
    assert {path.name for path in out.iterdir()} - {"mine.txt"} == {
        path.name for path in whole("ce+fkl", PACKED, given, tmp_path / "clean").iterdir()
    }


def test_every_generator_goes_on(tmp_path):
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)  # noqa: NPY002
    torch.randn(3), random.random(), np.random.normal()  # noqa: NPY002
    torch.save(resume._random(), tmp_path / "state")
    first = (torch.randn(3).tolist(), random.random(), np.random.normal())  # noqa: NPY002
    resume._set_random(torch.load(tmp_path / "state", weights_only=True))
    assert first == (torch.randn(3).tolist(), random.random(), np.random.normal())  # noqa: NPY002
