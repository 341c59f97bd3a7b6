"""Which towers are run once per image: decided by models, looks and disk, with a reason, and without touching a digest."""

import json
from dataclasses import replace

import pytest
from fake_plan import stage

from harness import blueprint, config, manifest, missing, plan, selection, store
from harness.stages import vision


def planned(preset, root, bound=None, recipes="all"):
    cells = blueprint.cells(selection.students(recipes, preset), [0], list(preset.protocols))
    made = blueprint.Blueprint(preset, preset.models, None, cells)
    return made, made.vision.settled(root, made.stages(), bound)


@pytest.fixture(scope="module")
def preset():
    return config.load_preset("miniature")


def decisions(made):
    return {each.what: (each.once, each.why) for each in made.vision.decisions}


def changed(preset, **training):
    return preset.model_copy(update={"training": preset.training.model_copy(update=training)})


def with_images(root, count):
    """Pretend that the training data is there."""
    import numpy as np

    (root / "data").mkdir()
    np.savez(root / "data" / "images.npz", **{f"{k:04x}": np.zeros(1) for k in range(count)})


def test_the_teacher_students_and_questions_share_what_is_computed_once(preset, tmp_path):
    made, stages = planned(preset, tmp_path)
    users = {s.id: s.uses for s in stages if any(path.startswith("vision/") for path in s.uses)}
    assert vision.DATA in users["teacher/signal"] and vision.DATA in users["student/ce/seed0"]
    assert users["evaluate/ce/seed0/gqa@miniature"] == users["evaluate/base/gqa@miniature"] == (vision.QUESTIONS,)
    seen = set()
    for each in stages:
        assert {s.id for s in plan.upstream(each, stages)} <= seen
        seen.add(each.id)
        if each.id in users:
            assert each.places["vision"] in each.uses
    assert all(once for once, _ in decisions(made).values())
    assert set(decisions(made)) == {"images of the training data", "images of the questions"}


def test_the_tower_runs_where_models_run(preset, tmp_path):
    """On a GPU, and with the preset's threads: what a stage does not ask for is hidden from it."""
    _, stages = planned(preset, tmp_path)
    seen, taught = ([s.resources for s in stages if s.kind == kind] for kind in (vision.KIND, "signal"))
    assert seen and all(each.gpus == 1 and each.cpus == preset.threads for each in (*seen, *taught))


def test_no_digest_knows_of_it(preset, tmp_path):
    """What a stage is made from is the same with and without: a run of before goes on, and the disk decides nothing."""
    _, whole = planned(preset, tmp_path)
    _, none = planned(preset, tmp_path, bound=1)
    assert not any(s.kind == vision.KIND for s in none)
    assert not any(path.startswith("vision/") for s in none for path in s.uses)
    kept = [s for s in whole if s.kind != vision.KIND]
    assert [s.id for s in kept] == [s.id for s in none]
    for one, other in zip(kept, none, strict=True):
        assert (one.config, one.reads, one.given, one.version) == (other.config, other.reads, other.given, other.version)


@pytest.mark.parametrize(
    ("training", "why"),
    [({"learn": ("projector", "tower")}, "the tower learns in the training"), ({"steps": 1, "rows": 1}, "look at")],
)
def test_a_tower_that_learns_or_is_hardly_looked_at_is_left_alone(preset, tmp_path, training, why):
    with_images(tmp_path, 40)
    made, stages = planned(changed(preset, **training), tmp_path, recipes="ce")
    once, reason = decisions(made)["images of the training data"]
    # a step of a single row by one student, and the teacher's pass: as many looks as there are images, and one more
    assert (once, why in reason) == ("learn" not in training, True)
    assert (vision.DATA in {t for s in stages for t in s.targets}) == once
    if once:
        alone = changed(preset, live_teacher=True, **training)
        assert decisions(planned(alone, tmp_path, recipes="ce")[0])["images of the training data"] == (
            False, "1 stage(s) look at 40 images 1 times in all",
        )  # fmt: skip


def test_a_variable_number_of_tokens_is_left_alone(preset, tmp_path):
    folder = tmp_path / "qwen"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    (folder / "model.safetensors").touch()
    models = preset.models.model_copy(update={"base": str(folder)})
    made, stages = planned(preset.model_copy(update={"models": models}), tmp_path)
    assert not any(s.kind == vision.KIND for s in stages)
    assert set(decisions(made).values()) == {
        (False, "a qwen2_vl cuts images into variable numbers of tokens, or its tower is not run apart")
    }


def test_features_fit_or_are_left_out_with_the_reason(preset, tmp_path, monkeypatch):
    with_images(tmp_path, 3000)
    each = 10 * 128 * 4  # nine patches, and at most one token more
    made, _ = planned(preset, tmp_path, bound=3 * 3000 * each)
    assert decisions(made)["images of the training data"][0]
    made, _ = planned(preset, tmp_path, bound=2 * 3000 * each)  # half of it is the signal's, whose size is not known yet
    assert decisions(made)["images of the training data"] == (
        False, "features would take 0.0158 GB, and --cache-gb 0.03072 (beside other caches) leaves 0.0154 GB",
    )  # fmt: skip
    monkeypatch.setattr("harness.worth.SHARE_OF_FREE", 1e-9)
    made, _ = planned(preset, tmp_path)
    assert "free on the disk" in decisions(made)["images of the training data"][1]


def published(preset, root, stages=None):
    """The plan of a published training, of which nothing is on this machine."""
    preset = preset.model_copy(update={"stages": preset.stages if stages is None else stages})
    cells = blueprint.cells(selection.students("ce", preset), [0], list(preset.protocols))
    lost = missing.absent(missing.find(preset, preset.models, list(preset.protocols), None))
    made = blueprint.Blueprint(preset, preset.models, None, cells, None, lost)
    return made, made.vision.settled(root, made.stages(), None)


def test_a_million_images_of_a_published_tower_do_not_fill_the_disk(tmp_path):
    """Their features would take terabytes; that is known before base and data are there."""
    made, stages = published(config.load_preset("paper-table4"), tmp_path)
    assert not any("corpora" in s.id or s.targets[0].startswith("vision/corpora") for s in stages if s.kind == vision.KIND)
    once, why = decisions(made)["images of corpus captions"]
    assert not once and "features would take 2.94e+03 GB" in why


def test_stages_of_a_training_share_a_corpus_until_the_tower_learns(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.worth.SHARE_OF_FREE", 1e9)
    preset = config.load_preset("paper-table4")
    first, second = preset.stages

    def learns(stage, *parts, **changes):
        training = stage.training.model_copy(update={"learn": parts or stage.training.learn})
        return stage.model_copy(update={"training": training, **changes})

    def uses(*stages):
        made, found = published(preset, tmp_path, stages)
        return decisions(made), {s.config["stage"]: s.uses for s in found if s.kind == "student"}

    one, other = vision.target(first.corpus), vision.target(second.corpus)
    assert uses(first, second)[1] == {first.name: (one,), second.name: (other,)}
    assert uses(first, learns(second, corpus=first.corpus))[1] == {first.name: (one,), second.name: (one,)}
    why, found = uses(first, learns(second, "language", "tower"))
    assert found == {first.name: (one,), second.name: ()}
    assert why[f"images of corpus {second.corpus}"] == (False, f"the tower learns in stage {second.name}")
    why, found = uses(learns(first, "tower"), second)
    assert found == {first.name: (), second.name: ()}
    assert why[f"images of corpus {second.corpus}"] == (False, f"the tower learns in stage {first.name}")


def test_the_manifest_and_the_dry_run_say_why(preset, tmp_path):
    made, _ = planned(changed(preset, learn=("projector", "tower")), tmp_path)
    lines = manifest.build(tmp_path, made, "cpu", {}, "")["vision"]
    assert "images of the training data: whenever one is shown, because the tower learns in the training" in lines


# ---- caches that are only used ---------------------------------------------------------------------------------------------


def used(*stages, by):
    return [*stages[:-1], replace(stages[-1], uses=(f"{by}.txt",))]


def test_what_uses_a_cache_waits_for_it_and_is_the_same_without(carry_out):
    stages = used(stage("c", cache=True), stage("a", text="a"), by="c")
    assert carry_out(stages).worked == ["c", "a"]
    alone = [stages[0], replace(stages[1], uses=())]
    root = carry_out.root
    digests = [plan.stage_digest(root, each[1], plan.Producers(each)) for each in (stages, alone)]
    assert digests[0] == digests[1]
    assert plan.survey(root, alone[1:]) == {"a"}


def test_a_cache_that_nothing_left_to_do_uses_is_not_made(carry_out):
    stages = used(stage("c", cache=True), stage("a"), by="c")
    alone = [replace(stages[1], uses=())]
    carry_out(alone)
    assert plan.look(carry_out.root, stages).done == {"c", "a"}
    assert carry_out(stages).worked == []
    assert not (carry_out.root / "c.txt").exists()
    store.forget(carry_out.root, "a")
    assert carry_out(stages).worked == ["c", "a"]


def test_a_cache_that_is_only_used_and_damaged_is_made_again_when_it_is_needed(carry_out):
    stages = used(stage("c", cache=True), stage("a"), by="c")
    carry_out(stages)
    (carry_out.root / "c.txt").write_text("cut")
    assert carry_out(stages).worked == []
    store.forget(carry_out.root, "a")
    assert carry_out(stages).worked == ["c", "a"]
    assert (carry_out.root / "c.txt").read_text() == "c"


def test_many_students_share_a_stage_of_images_and_what_all_cells_ask_for_is_read_once(preset, monkeypatch):
    asked = []
    protocol = blueprint.tasks.protocol
    monkeypatch.setattr(blueprint.tasks, "protocol", lambda name: asked.append(name) or protocol(name))
    cells = blueprint.cells(selection.students("all", preset), range(3), list(preset.protocols))
    stages = blueprint.Blueprint(preset, preset.models, None, cells).stages()
    assert len(asked) < 6 * len(preset.protocols) < len(cells)
    assert [s.id for s in stages if s.kind == vision.KIND] == ["vision/data", "vision/questions"]
