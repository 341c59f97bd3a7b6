"""The stage that keeps tokens and pictures: what it writes is what was there, planned before it is written."""

import numpy as np
import pytest

from harness import plan, store
from harness.blueprint import Blueprint, cells
from harness.config import load_preset, load_recipe
from harness.stages import data, encode
from harness.workers import Context, Settings


@pytest.fixture(scope="module")
def blueprint(tmp_path_factory):
    path = tmp_path_factory.mktemp("preset") / "few.yaml"
    path.write_text("extends: smoke\nname: few\ndata: { images: 8 }\nprotocols: [pope@miniature, gqa@miniature]\n")
    preset = load_preset(str(path))
    return Blueprint(preset, preset.models, None, cells([load_recipe("ce")], [0], preset.protocols))


@pytest.fixture(scope="module")
def done(blueprint, tmp_path_factory):
    """Do the stages ``data`` and ``encode``; return the run folder and the plan."""
    root, stages = tmp_path_factory.mktemp("run"), blueprint.stages()
    for name, work in (("data", data.training), ("encode", encode.run)):
        (stage,) = (each for each in stages if each.id == name)
        if name == "encode":
            assert encode.planned(root / "elsewhere", stage).bytes is None
        digest = plan.stage_digest(root, stage, plan.Producers(stages))
        store.begin(root, name, digest, stage.targets, stage.resumes)
        work(Context(stage, Settings(root, "cpu", 1), {}, lambda *_: None))
        store.commit(root, name, digest, stage.version, stage.targets, 0.0, stage.cache)
    return root, stages


def test_it_keeps_what_the_students_would_have_made_themselves(done):
    from students import models
    from students.data import pack

    root, stages = done
    (stage,) = (each for each in stages if each.id == "encode")
    samples, kept = encode.load(root)
    plain = data.load_training(root)
    assert samples.samples == plain.samples
    assert {key: picture.tobytes() for key, picture in samples.images.items()} == {
        key: picture.tobytes() for key, picture in plain.images.items()
    }
    made = pack.encode(plain.samples, models.load(stage.places["base"]).processor)
    for name in ("prompts", "answers", "clean"):
        assert all(np.array_equal(a, b) for a, b in zip(getattr(kept, name), getattr(made, name), strict=True))
    assert (kept.prefix, kept.images, kept.pad) == (made.prefix, made.images, made.pad)


def test_it_takes_no_more_than_was_planned(done):
    root, stages = done
    (stage,) = (each for each in stages if each.id == "encode")
    takes = sum(path.stat().st_size for path in (root / encode.TARGET).iterdir())
    assert takes <= encode.planned(root, stage).bytes < 4 * takes


def test_no_students_digest_knows_it(done):
    _, stages = done
    (student,) = (each for each in stages if each.kind == "student")
    assert encode.TARGET in student.uses
    assert not any(path.startswith(encode.TARGET) for path in student.reads)
    assert "encode" in {each.id for each in plan.upstream(student, stages)}
    assert "encode" not in {each.id for each in plan.upstream(student, stages, uses=False)}
