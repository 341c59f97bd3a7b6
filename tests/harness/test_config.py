"""Presets, variants and selections: what they mean, and that mistakes are answered in one line with the nearest name."""

import re

import pytest

import tasks
from harness import blueprint, config, plan, selection
from harness.base import UserError
from harness.resources import Resources


def write(folder, name, text):
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", config.preset_names())
def test_shipped_presets_are_whole(name):
    preset = config.load_preset(name)
    assert preset.name == name
    recipes = [config.load_recipe(word) for word in preset.recipes]
    assert [r.name for r in recipes] == list(preset.recipes)  # the canonical spelling, so that folders match
    for protocol in preset.protocols:
        tasks.protocol(protocol)
    if preset.training is not None:  # rows come from each protocol's own train split, once
        assert len({tasks.protocol(p).benchmark for p in preset.protocols}) == len(preset.protocols)


def test_miniature_has_the_recipes_and_controls_of_the_experiment():
    preset = config.load_preset("miniature")
    wanted = {"ce", "fkl", "ce+fkl@fixed@lambda0.3", "ce+fkl@fixed@lambda4"}
    wanted |= {f"ce+{energy}@{way}" for energy in ("fkl", "cosine_probs") for way in ("fixed", "task", "instance")}
    assert set(preset.recipes) == wanted
    assert len(preset.protocols) == 6


PLANTED = ("planted", "planted-prompt", "planted-calibrated")


def test_planted_presets_train_as_miniature_does_and_have_their_rows():
    miniature, presets = config.load_preset("miniature"), [config.load_preset(name) for name in PLANTED]
    for preset in presets:
        for field in ("training", "protocols", "models", "evaluation", "threads", "seeds"):
            assert getattr(preset, field) == getattr(miniature, field)
        assert preset.data.images == miniature.data.images
        assert {"ce", "ce+fkl@fixed", "ce+fkl@task", "ce+fkl@analytic", "ce+fkl@oracle"} <= set(preset.recipes)
        assert "ce+fkl@instance@teacher-gate" in preset.recipes
    first = {"fkl", "ce+fkl@instance@teacher-gate-ce", *(f"ce+fkl@fixed@lambda{x}" for x in ("0.3", "3", "10"))}
    assert first <= set(presets[0].recipes)
    assert all("ce+fkl@instance" in preset.recipes for preset in presets[1:])


def test_planted_presets_are_blind_where_the_labels_are_right():
    plain, prompt, calibrated = (config.load_preset(name).data for name in PLANTED)
    for data in (plain, prompt, calibrated):
        assert data.complementary and data.label_noise == 0.45
    assert plain.blindness == calibrated.blindness == 0.25
    assert set(prompt.blind_benchmarks) == {"textvqa", "pope", "mmbench"}
    assert [data.blind_teacher for data in (plain, prompt, calibrated)] == ["mean_image", "mean_image", "shuffled"]


def test_planted_fits_its_budget():
    """About 8 minutes with one seed on two cores, by the preset's own estimates."""
    preset = config.load_preset("planted")
    evaluations = len(preset.recipes) + 2
    cost = {**preset.seconds, "evaluate": preset.seconds["evaluate"] * len(preset.protocols) * evaluations}
    cost["student"] *= len(preset.recipes)
    assert sum(cost.values()) / 2 < 8 * 60


def test_smoke_does_everything_that_miniature_does():
    smoke, miniature = config.load_preset("smoke"), config.load_preset("miniature")
    for field in ("recipes", "protocols", "models", "threads"):
        assert getattr(smoke, field) == getattr(miniature, field)
    assert smoke.training.steps < miniature.training.steps / 10


def test_extends_merges_sections_and_replaces_the_rest(tmp_path):
    path = write(tmp_path, "child", "extends: smoke\nname: child\nrecipes: [ce]\ntraining: { steps: 3 }\n")
    child, smoke = config.load_preset(path), config.load_preset("smoke")
    assert child.recipes == ("ce",)
    assert child.training.steps == 3
    assert child.training.rows == smoke.training.rows
    assert child.data == smoke.data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: smoke\nname: x\ntrainig: {}\n", "unknown field 'trainig'. Did you mean 'training'"),
        ("extends: smoke\nname: x\ntraining: { stepz: 3 }\n", "stepz"),
        ("extends: smoke\nname: x\ntraining: { steps: 0 }\n", "training.steps"),
        ("extends: smoke\nname: x\ndata: { label_noise: 1.5 }\n", "data.label_noise"),
        ("extends: smoke\nname: x\nseeds: [-1]\n", "seeds"),
        ("extends: smoke\nname: x\ndata: { complementary: yes }\n", "nothing is blind"),
        ("extends: planted\nname: x\ndata: { blind_benchmarks: [pope] }\n", "blindness is 0.25 and blind_benchmarks is pope"),
        ("extends: planted-prompt\nname: x\ndata: { blind_benchmarks: [popo] }\n", "'popo'. Did you mean 'pope'"),
        ("extends: smoke\nname: x\ndata: { blind_teacher: shuffled }\n", "blind_teacher is 'shuffled' and nothing is blind"),
        ("extends: planted\nname: x\ndata: { blind_teacher: mean }\n", "data.blind_teacher"),
        ("extends: smok\nname: x\n", "unknown preset 'smok'. Did you mean 'smoke'"),
        ("extends: [a]\nname: x\n", "'extends' must name a preset"),
        ("extends: x.yaml\nname: x\n", "in a circle"),
        ("name: x\n", "'title'"),
        ("- a\n", "valid dictionary"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_bad_presets_are_named(tmp_path, text, message):
    path = write(tmp_path, "x", text)
    with pytest.raises(UserError) as caught:
        config.load_preset(path)
    assert message in str(caught.value)


def test_unknown_variant_and_missing_model_are_named(tmp_path):
    with pytest.raises(UserError, match=r"'lambda5'\. Did you mean 'lambda4'"):
        config.load_recipe("ce+fkl@fixed@lambda5")
    with pytest.raises(UserError, match="is not a Hugging Face folder"):
        config.model_path(str(tmp_path))
    with pytest.raises(UserError, match="no package 'nobody'"):
        config.model_path("package:nobody/x")


# ---- selections ----


@pytest.fixture
def preset(tmp_path):
    """The default preset over empty model folders: no weights are read here."""
    (tmp_path / "config.json").touch()
    models = config.Models(teacher=str(tmp_path), base=str(tmp_path))
    return config.load_preset("miniature").model_copy(update={"models": models})


def names(text, preset):
    return [recipe.name for recipe in selection.students(text, preset)]


def test_students_by_all_glob_list_and_spelling(preset):
    assert names("all", preset) == list(preset.recipes)
    assert names("ce+fkl@*", preset) == [r for r in preset.recipes if r.startswith("ce+fkl@")]
    assert names("fkl,ce", preset) == ["fkl", "ce"]
    assert names("fkl+ce", preset) == ["ce+fkl@fixed"]  # not spelled so in the preset, but the same recipe
    assert names("ce+cosine_probs+fkl@instance", preset) == ["ce+cosine_probs+fkl@instance"]  # valid, not in the preset
    assert names("ce,all", preset)[0] == "ce"
    assert len(names("ce,all", preset)) == len(preset.recipes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nosuch*", "matches no recipe"),
        ("ce+fk1", "Did you mean 'fkl'"),
        ("ce+fkl@tsk", "Did you mean 'task'"),
        ("ce,,fkl", "empty part"),
        ("", "empty part"),
        ("teacher", "names a row"),
    ],
)
def test_bad_students(preset, text, message):
    with pytest.raises(UserError) as caught:
        selection.students(text, preset)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tasks_by_benchmark_protocol_and_glob(preset):
    assert selection.protocols("all", preset) == list(preset.protocols)
    assert selection.protocols("mme,pope", preset) == ["pope@miniature", "mme@miniature"]  # the preset's order
    assert selection.protocols("pope@miniature,easyvqa@test", preset) == ["pope@miniature", "easyvqa@test"]
    assert selection.protocols("m*", preset) == ["mmbench@miniature", "mme@miniature"]
    for bad, message in (("pop", "Did you mean 'pope'"), ("x*", "matches no protocol"), ("pope,", "empty part")):
        with pytest.raises(UserError, match=message):
            selection.protocols(bad, preset)


def test_seeds():
    assert selection.seeds("0") == [0]
    assert selection.seeds("2, 0,1") == [2, 0, 1]
    for bad in ("", "a", "-1", "1.5", "0,0", "0,,1", "1-3", "²", str(2**31)):
        with pytest.raises(UserError, match="--seeds"):
            selection.seeds(bad)


# ---- the plan ----


def stages(preset, recipes="all", seeds=(0,), **options):
    cells = blueprint.cells(selection.students(recipes, preset), list(seeds), list(preset.protocols))
    return blueprint.Blueprint(preset, preset.models, options.get("limit"), cells).stages()


def test_plan_is_in_order_and_reads_only_what_is_written(preset):
    every = stages(preset, seeds=(0, 1))
    seen = set()
    for stage in every:
        assert {s.id for s in plan.upstream(stage, every)} <= seen
        seen.add(stage.id)
    targets = [t for stage in every for t in stage.targets]
    assert len(targets) == len(set(targets))


def test_the_report_reads_the_training_rows(preset):
    every = {s.id: s for s in stages(preset, "ce")}
    assert "data" in every["report"].reads


def test_students_of_one_seed_come_before_the_next_seed(preset):
    ids = [s.id for s in stages(preset, "ce,fkl", (0, 1)) if s.kind == "student"]
    assert ids == ["student/ce/seed0", "student/fkl/seed0", "student/ce/seed1", "student/fkl/seed1"]


def configs(found):
    return {s.id: (dict(s.config), dict(s.given)) for s in found}


def test_what_does_not_matter_to_a_stage_does_not_change_it(preset):
    """A cut evaluation keeps the students; another seed or recipe keeps those that are there."""
    one, more = configs(stages(preset, "ce", (0,))), configs(stages(preset, "ce,fkl", (0, 1), limit=5))
    for name in ("data", "teacher/signal", "student/ce/seed0"):
        assert one[name] == more[name]
    assert one["evaluate/ce/seed0/pope@miniature"] != more["evaluate/ce/seed0/pope@miniature"]


def test_what_matters_changes_the_stage(preset):
    base = configs(stages(preset, "ce"))
    longer = preset.model_copy(update={"training": preset.training.model_copy(update={"steps": 251})})
    noisier = preset.model_copy(update={"data": preset.data.model_copy(update={"label_noise": 0.3})})
    threads = preset.model_copy(update={"threads": 2})
    assert configs(stages(longer, "ce"))["student/ce/seed0"] != base["student/ce/seed0"]
    assert configs(stages(longer, "ce"))["data"] == base["data"]
    assert configs(stages(noisier, "ce"))["data"] != base["data"]
    assert configs(stages(threads, "ce"))["student/ce/seed0"] != base["student/ce/seed0"]
    for name, value in (("complementary", True), ("blind_benchmarks", ("pope",)), ("blindness", 0.1), ("seed", 7)):
        other = preset.model_copy(update={"data": preset.data.model_copy(update={name: value})})
        assert configs(stages(other, "ce"))["data"] != base["data"]
    shuffled = preset.model_copy(update={"data": preset.data.model_copy(update={"blind_teacher": "shuffled"})})
    assert configs(stages(shuffled, "ce"))["data"] == base["data"], "what a blind teacher says is in its signal alone"
    assert configs(stages(shuffled, "ce"))["teacher/signal"] != base["teacher/signal"]
    assert configs(stages(shuffled, "ce"))["student/ce/seed0"] != base["student/ce/seed0"]
    larger = {"student": Resources(cpus=2, gpus=2, memory_gb=9)}
    workers = preset.model_copy(update={"workers": 7, "seconds": {}, "resources": larger})
    assert configs(stages(workers, "ce")) == base


def test_retraining_makes_the_three_models_in_the_run_and_reads_them_from_there(preset):
    cells = blueprint.cells(selection.students("ce", preset), [0], ["pope@miniature"])
    every = {s.id: s for s in blueprint.Blueprint(preset, config.retrained(preset), None, cells).stages()}
    assert {"model/tower", "model/teacher", "model/base"} <= set(every)
    assert "models/tower" in every["model/teacher"].reads
    assert "teacher/checkpoint" in every["teacher/signal"].reads
    assert "models/base" in every["student/ce/seed0"].reads
    assert not every["student/ce/seed0"].given
    with pytest.raises(UserError, match="does not say how its models are made"):
        config.retrained(preset.model_copy(update={"retrain": None}))


def test_given_weights_are_part_of_what_they_shape(preset, tmp_path):
    before = configs(stages(preset, "ce"))
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    after = configs(stages(preset, "ce"))
    assert after["student/ce/seed0"] != before["student/ce/seed0"]
    assert after["teacher/signal"] != before["teacher/signal"]
    assert after["data"] == before["data"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{ studnet: { cpus: 1 } }", "unknown kind of stage 'studnet'. Did you mean 'student'"),
        ("{ student: { gpus: 1.5 } }", "a part of one GPU (below 1), or whole GPUs"),
        ("{ student: { memory_gb: 0 } }", "memory_gb"),
        ("{ student: { memory: 4 } }", "memory"),
    ],
)
def test_resources_that_mean_nothing_are_named(tmp_path, said, message):
    with pytest.raises(UserError, match=re.escape(message)):
        config.load_preset(write(tmp_path, "odd", f"extends: smoke\nname: odd\nresources: {said}\n"))
