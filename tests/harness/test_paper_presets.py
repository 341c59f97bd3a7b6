"""The presets that mirror the paper: what was published about them stands in them, with the controls that it needs."""

import re
from pathlib import Path

import pytest

import harness
from harness import config, estimates, outlook
from harness.base import UserError
from harness.blueprint import Blueprint, cells
from harness.real import Assemble
from harness.resources import of_kind
from harness.sources import Absent
from harness.stages import corpus

TABLES = [name for name in config.preset_names() if name.startswith("paper-")]
PUBLIC = "mtgv/MobileVLM_V2-1.7B"


def absent(preset):
    """Nothing of the models or data is there."""
    everything = {*preset.models.external.values()}
    for role in ("base", "teacher"):
        source = getattr(preset.models, role)
        everything |= set(source.assemble.sources.values()) if isinstance(source, Assemble) else {str(source)}
    benchmarks = {name.partition("@")[0] for name in preset.protocols}
    return Absent(frozenset(everything), frozenset(preset.corpora), frozenset(benchmarks))


def planned(name, recipes=("ce",), tmp="/data"):
    preset = config.load_preset(name)
    chosen = [config.load_recipe(word) for word in recipes]
    wanted = cells(chosen, [0], list(preset.protocols), preset.models.names)
    blueprint = Blueprint(preset, preset.models, None, wanted, Path(tmp), absent(preset))
    stages = blueprint.stages()
    found = {stage.id: stage for stage in stages}
    assert len(found) == len(stages), "every stage stands in the plan once"
    return preset, found


def test_there_is_a_preset_for_each_table():
    assert [f"paper-table{number}" for number in (1, 2, 3, 4, 5, 6)] == TABLES
    assert not any(name.startswith("_") for name in config.preset_names())


@pytest.mark.parametrize("name", TABLES)
def test_each_has_a_teacher_a_control_and_the_undistilled_student(name):
    preset = config.load_preset(name)
    assert "ce" in preset.recipes
    assert "teacher" in preset.models.names
    rows = {preset.models.base, *preset.models.external.values()} if isinstance(preset.models.base, str) else set()
    rows |= set(preset.models.external.values())
    assert rows, "the public checkpoint that nobody distilled is a row"
    if name != "paper-table5":
        assert PUBLIC in rows
    assert "base" not in preset.models.names or isinstance(preset.models.base, str), "an assembled model knows nothing"
    assert not preset.evaluation.diagnostics, "they keep [tokens, vocabulary] numbers per question in memory"
    assert preset.requires.gpu
    for kind in ("student", "evaluate", "signal", "kept", "vision"):
        assert of_kind(kind, preset.threads, preset.resources).gpus == 1, "each has a GPU for itself"
    in_memory = preset.declared["teacher"].gib * 1.073741824
    for kind in ("student", "evaluate", "signal", "kept", "count"):
        assert of_kind(kind, preset.threads, preset.resources).memory_gb > in_memory, "its weights pass through main memory"


@pytest.mark.parametrize("name", TABLES)
def test_each_fits_the_gpu_that_it_asks_for(name):
    preset = config.load_preset(name)
    for stage in preset.stages:
        words = preset.corpora[stage.corpus].words
        energies = max(len(config.load_recipe(word).energies) for word in preset.recipes)
        parts = estimates.memory(stage.training, preset.declared["base"], preset.declared["teacher"], words, energies)
        assert estimates.total(parts) < preset.requires.gpu_gb * 1e9 <= 80e9


@pytest.mark.parametrize("name", ["paper-table2", "paper-table3"])
def test_weights_by_hand_by_task_and_by_instance(name):
    recipes = set(config.load_preset(name).recipes) - {"ce"}
    losses = {word.partition("@")[0] for word in recipes}
    assert recipes == {f"{loss}@{way}" for loss in losses for way in ("manual", "task", "instance")}
    assert all("fd" in loss.split("+") for loss in losses) == (name == "paper-table3")


def test_table_1_is_one_energy_alone_and_three_seeds():
    preset = config.load_preset("paper-table1")
    assert all(len(config.load_recipe(word).channels) == 1 for word in preset.recipes)
    assert preset.seeds == (0, 1, 2)
    assert {"ce", "cosine_probs", "cosine_logits", "mse_logits"} <= set(preset.recipes)


def test_the_published_hyper_parameters_of_both_stages():
    """PAPER.md, from 1_pretrain.sh and 2_finetune.sh of the release."""
    first, second = config.load_preset("paper-table4").stages
    assert (first.name, second.name) == ("captions", "instructions")
    for stage in (first, second):
        options = stage.training
        assert (options.optimiser, options.weight_decay, options.warmup_ratio, options.epochs) == ("adamw", 0.0, 0.03, 1)
        assert (options.rows, options.gradient_checkpointing, options.precision) == (128, True, "bf16")
        assert options.learn == ("language", "projector")
        assert options.save_every is not None
    assert (first.training.lr, first.training.projector_lr, first.training.max_length) == (2e-5, 1e-3, 512)
    assert (second.training.lr, second.training.projector_lr, second.training.max_length) == (4e-5, None, 2048)
    assert (first.training.micro_rows, second.training.micro_rows) == (8, 4)
    assert (first.training.template, second.training.template) == ("plain", "v1")
    assert (first.training.grouping, second.training.grouping) == ("none", "modality_length")
    corpora = config.load_preset("paper-table4").corpora
    assert estimates.steps(first.training, corpora["captions"].rows) == 9734
    assert estimates.steps(second.training, corpora["instructions"].rows) == 18968  # published: 18,969, the last one not full


def test_sciencequa_trains_past_the_step_that_the_papers_figure_shows():
    preset = config.load_preset("paper-table2")
    (stage,) = preset.stages
    assert estimates.steps(stage.training, preset.corpora["scienceqa"].rows) == 198  # Figure 5 shows step 190
    assert stage.training.lr == 4e-5


@pytest.mark.parametrize("name", TABLES)
def test_contradictions_are_named(name):
    described = config.load_preset(name).description
    assert "Reported" in described
    words = {
        "paper-table2": ("53.1", "49.4"), "paper-table3": ("contradict",), "paper-table4": ("65.5", "64.2", "SEEDBench"),
        "paper-table5": ("66.3", "64.4"), "paper-table6": ("29 GB", "47.5"),
    }  # fmt: skip
    for word in words.get(name, ()):
        assert word in described


def test_a_two_stage_student_starts_from_what_the_stage_before_made():
    _, stages = planned("paper-table4", ("ce", "ce+align_kd@instance"))
    first, last = stages["student/ce/seed0/captions"], stages["student/ce/seed0"]
    assert first.targets == ("earlier/ce/seed0/captions",)
    assert last.targets == ("students/ce/seed0",)
    assert last.places["base"] == "earlier/ce/seed0/captions/student"
    assert last.places["base"] in last.reads
    assert first.places["base"] == "models/base"
    assert first.reads == (corpus.target("captions"), "models/base")
    assert first.resumes and last.resumes
    assert first.config["training"]["max_length"] == 512
    assert "teacher" not in first.places, "a student without an energy reads no teacher"
    assert not first.given
    taught = stages["student/ce+align_kd@instance/seed0/captions"]
    assert taught.places["teacher"] == "mtgv/MobileVLM_V2-7B"
    assert "teacher" in taught.given
    assert taught.places["images"] == "/data/pretrain_data"
    assert "teacher/signal" not in stages, "a corpus's teacher is always live"
    assert "data" not in stages


def test_an_assembled_base_is_made_first_and_is_no_row():
    _, stages = planned("paper-table4")
    made = stages["model/base"]
    assert set(made.places) == {"language", "tower"}
    assert set(made.given) == {"base/language", "base/tower"}
    assert not any(name.startswith("evaluate/base") for name in stages)
    assert "evaluate/mobilevlm-v2-1.7b/pope@mean-f1" in stages


def test_a_trained_projector_may_be_a_file(tmp_path):
    (tmp_path / "mm_projector.bin").write_bytes(b"weights")
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"extends: paper-table4\nname: mine\nmodels: {{base: {{assemble: {{projector: {tmp_path}/mm_projector.bin}}}}}}\n"
    )
    mine = config.load_preset(str(path))
    assert set(mine.models.base.assemble.sources) == {"language", "tower", "projector"}
    gone = absent(config.load_preset("paper-table4"))
    stages = Blueprint(mine, mine.models, None, [], tmp_path, gone).stages()
    made = next(stage for stage in stages if stage.id == "model/base")
    assert made.places["projector"] == str(tmp_path / "mm_projector.bin")
    before = made.given["base/projector"]
    (tmp_path / "mm_projector.bin").write_bytes(b"other weights")
    stages = Blueprint(mine, mine.models, None, [], tmp_path, gone).stages()
    assert next(stage for stage in stages if stage.id == "model/base").given["base/projector"] != before


def test_a_corpus_is_indexed_once_for_all():
    _, stages = planned("paper-table4", ("ce", "ce+cosine_probs@task"))
    assert [name for name in stages if name.startswith("corpus/")] == ["corpus/captions", "corpus/instructions"]
    made = stages["corpus/instructions"]
    assert made.places["file"] == "/data/finetune_data/MobileVLM_V2_FT_Mix2M.json"
    assert made.places["images"] == "/data/finetune_data"
    _, stages = planned("paper-table2")
    asked = [facts["name"] for facts in stages["corpus/scienceqa"].config["protocols"]]
    assert asked == ["scienceqa@all", "scienceqa@img"]
    assert "images" not in stages["student/ce/seed0"].places, "its images lie in the corpus"


def test_only_an_energy_needs_a_teacher(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: paper-table5\nname: mine\nmodels: { teacher: null }\nrecipes: [ce]\n")
    mine = config.load_preset(str(path))
    assert mine.models.names == ("tinyllava-qwen2-0.5b",)
    wanted = cells([config.load_recipe("fkl")], [0], list(mine.protocols), mine.models.names)
    with pytest.raises(UserError, match="has no teacher, which the student 'fkl' needs"):
        Blueprint(mine, mine.models, None, wanted, tmp_path, absent(mine)).stages()
    path.write_text("extends: paper-table5\nname: mine\nmodels: { teacher: null }\nrecipes: [ce, fkl]\n")
    with pytest.raises(UserError, match=r"needs models\.teacher and models\.base"):
        config.load_preset(str(path))


def test_one_yaml_adds_a_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: paper-table2\nname: mine\nrecipes: [ce, ce+tvd@task]\nrequires: { gpu: false, gpu_gb: null }\n")
    mine = config.load_preset(str(path))
    assert mine.recipes == ("ce", "ce+tvd@task")
    assert mine.stages == config.load_preset("paper-table2").stages
    assert not mine.requires.gpu


BAD = {
    "stages: [{name: a, corpus: nosuch, training: {steps: 1}}]": "unknown corpus of stage 'a' 'nosuch'",
    "stages: [&a {name: a, corpus: scienceqa, training: {steps: 1}}, *a]": "one name",
    "stages: [{name: A b, corpus: scienceqa, training: {steps: 1}}]": "stages.0.name",
    "training: {steps: 1}": "exclude each other",
    "stages: []": "go together",
    "corpora: {scienceqa: {format: csv}}": "corpora.scienceqa.format",
    "corpora: {other: {format: llava}}": "'file' belongs to a corpus of format llava",
    "corpora: {other: {format: embedded, images: x}}": "'images' belongs to a corpus of format llava",
    "requires: {gpu: false}": "set gpu to true",
    "declared: {teachr: {parameters: 1, tower: 0, hidden: 1, layers: 1, intermediate: 1, vocabulary: 1, vision_tokens: 1,"
    " gib: 1}}": "unknown model in 'declared' 'teachr'. Did you mean 'teacher'",
    "models: {base: {assemble: {family: mobilevml, language: a, tower: b}}}": "Did you mean 'mobilevlm'",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_what_such_a_preset_cannot_say(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: paper-table2\nname: mine\n{text}\n")
    with pytest.raises(UserError) as caught:
        config.load_preset(str(path))
    assert BAD[text] in str(caught.value)


def test_disk_counts_every_student_and_stage(tmp_path):
    preset = config.load_preset("paper-table4")
    chosen = [config.load_recipe(word) for word in ("ce", "ce+cosine_probs@task")]
    wanted = cells(chosen, [0, 1], list(preset.protocols), preset.models.names)
    blueprint = Blueprint(preset, preset.models, None, wanted, tmp_path, absent(preset))
    known = outlook.sizes(blueprint)
    assert {role: each.known for role, each in known.items()} == dict.fromkeys(
        ("teacher", "base", "mobilevlm-v2-1.7b"), "the preset"
    )
    parts = outlook.disk(blueprint, tmp_path, known)
    # 4 students x 2 stages of 1.675 B in float32; weights and two moments of the 1.3715 B that learn, old and new
    assert parts["students"] == pytest.approx(8 * 4 * 1.675e9)
    assert parts["resume points"] == pytest.approx(2 * 12 * 1.3715e9)
    (tmp_path / "students" / "ce" / "seed0").mkdir(parents=True)
    assert outlook.disk(blueprint, tmp_path, known)["students"] == pytest.approx(7 * 4 * 1.675e9)


DOCS = Path(harness.__file__).parents[1] / "docs" / "real_runs.md"


def test_the_docs_count_what_the_presets_hold():
    text = DOCS.read_text(encoding="utf-8")
    for name in TABLES:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        preset = config.load_preset(name)
        count = len(preset.recipes)
        assert (f"| {count} x {len(preset.seeds)} |" if len(preset.seeds) > 1 else f"| {count} |") in row
    for name in TABLES:
        for source in config.load_preset(name).corpora.values():
            if source.file is not None:
                folder, _, file = source.file.partition("/")
                assert f"{folder}/" in text and file in text


def test_the_docs_own_preset_loads_and_fits(tmp_path):
    block = re.search(r"```yaml\n(# mine\.yaml.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    path = tmp_path / "mine.yaml"
    path.write_text(block[1])
    mine = config.load_preset(str(path))
    (stage,) = mine.stages
    parts = estimates.memory(stage.training, mine.declared["base"], mine.declared["teacher"], 60, 1)
    assert estimates.total(parts) < mine.requires.gpu_gb * 1e9 < 48e9


def test_the_docs_estimates_are_the_plans():
    text = DOCS.read_text(encoding="utf-8")
    preset = config.load_preset("paper-table2")
    (stage,) = preset.stages
    student, teacher = preset.declared["base"], preset.declared["teacher"]
    for beside, words in ((None, "signal stored"), (teacher, "teacher beside the student")):
        memory = estimates.total(estimates.memory(stage.training, student, beside, 60, 1)) / 1e9
        assert re.search(rf"about {memory:.0f} GB with the [^|,]*{words}", text)
    asked = estimates.evaluation_memory(teacher, preset.evaluation.dtype, preset.evaluation.batch_size) / 1e9
    assert f"about {asked:.0f} GB" in text
    each = estimates.checkpoint_bytes(student) / 1e9
    resume = estimates.resume_bytes(stage.training, student) / 1e9
    assert f"{each:.1f} GB a student, {each * len(preset.recipes):.0f} GB for 13; {resume:.0f} GB for resume points" in text
