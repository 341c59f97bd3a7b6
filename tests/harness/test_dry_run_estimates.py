"""Memory, disk, steps and hours of a plan, against hand arithmetic and against what they estimate."""

import io

import pytest
from rich.console import Console
from small_models import model

from harness import blueprint, config, estimates, outlook, probe
from harness.real import ModelSize
from students import energies, stored
from students.losses import Losses
from students.options import DistilOptions
from students.recipe import Variant, parse
from students.teacher_signal import declared

SMALL = ModelSize(
    parameters=1000, tower=100, hidden=10, layers=3, intermediate=20, vocabulary=50, vision_tokens=4, gib=1.0
)  # fmt: skip
WIDTHS = {"vision": (10, 20), "attention": (2, 4), "vision_logits": (50, 50)}
LARGE = SMALL.model_copy(update={"parameters": 5000, "hidden": 20, "intermediate": 40})


def test_memory_of_a_training_by_hand():
    options = DistilOptions(
        steps=1, rows=8, micro_rows=2, max_length=16, precision="bf16", optimiser="adamw", frozen_dtype="bfloat16",
        teacher_dtype="bfloat16", gradient_checkpointing=True,
    )  # fmt: skip
    parts = estimates.memory(options, SMALL, LARGE, words=5, energies=1)
    # 900 parameters learn, 100 do not; 2 rows of 16 tokens are 32; a block is 32 (16 * 10 + 2 (6 * 10 + 4 * 20)) = 14080
    assert parts["weights"] == 4 * 900 + 2 * 100
    assert parts["casts"] == 2 * 900
    assert parts["gradients"] == 4 * 900
    assert parts["optimiser"] == 8 * 900
    assert parts["activations"] == 3 * 4 * 10 * 32 + 14080
    assert parts["teacher"] == 2 * 5000 + 32 * (16 * 20 + 2 * (6 * 20 + 4 * 40))
    assert parts["logits"] == 4 * 2 * (16 - 4) * 50 * 7
    before = sum(parts.values()) - parts["context"]
    assert parts["context"] == pytest.approx(1e9 + 0.1 * before)


def test_memory_without_checkpointing_teacher_or_half_precision_by_hand():
    options = DistilOptions(steps=1, rows=2, max_length=16, optimiser="adamw")
    parts = estimates.memory(options, SMALL, None, words=5, energies=0)
    assert parts["activations"] == 3 * 32 * (16 * 10 + 4 * (6 * 10 + 4 * 20))
    again = estimates.memory(
        options.model_copy(update={"gradient_checkpointing": "selective"}), SMALL, None, words=5, energies=0
    )
    assert again["activations"] == 3 * 32 * (4 * 10 + 4 * (6 * 10 + 2 * 20)) + parts["activations"] / 3
    assert parts["weights"] == 4 * 1000
    assert (parts["casts"], parts["teacher"]) == (0, 0)
    assert parts["logits"] == 4 * 2 * (16 - 4) * 50 * 3


def test_logits_at_vision_tokens_by_hand():
    options = DistilOptions(steps=1, rows=2, max_length=16, optimiser="adamw")
    assert estimates.memory(options, SMALL, LARGE, 5, 1, spans=True)["spans"] == 4 * 2 * 4 * 50 * 4
    assert "spans" not in estimates.memory(options, SMALL, LARGE, 5, 1)
    read = {name for name in energies.names() if "vision_logits" in declared.declared(name).taps}
    assert read == {"llava_kd"}


def test_logits_exist_in_chunks_unless_an_energy_needs_all_of_them():
    options = DistilOptions(steps=1, rows=2, max_length=16, optimiser="adamw")
    wide = SMALL.model_copy(update={"vocabulary": 10**6})
    assert estimates.AT_ONCE == stored.LIMIT
    assert estimates.memory(options, wide, None, 5, 0)["logits"] == 4 * stored.LIMIT * 3
    assert estimates.memory(options, wide, LARGE, 5, 1)["logits"] == 4 * stored.LIMIT * 7
    assert estimates.memory(options, wide, LARGE, 5, 1, whole=True)["logits"] == 4 * 2 * (16 - 4) * 10**6 * 7
    for name in energies.names():
        assert declared.declared(name).by_tokens == Losses(parse(name), Variant(), WIDTHS, 50).by_tokens, name


def test_what_learns():
    def learned(**more):
        return estimates.learned(DistilOptions(steps=1, optimiser="adamw", **more), SMALL)

    assert learned() == 900
    assert learned(learn=("language", "projector", "tower")) == 1000
    assert learned(learn=("projector",)) == 4 * 10**2
    # rank 2: four square maps (2 * 2 * 10 each, 8 widths in all, 11 with the two MLP maps' narrow ends) and three MLP maps
    assert learned(lora={"rank": 2}) == 3 * 2 * (11 * 10 + 3 * 20)


def test_lora_counts_as_peft_makes_it():
    """Against peft itself on a small Llama: its seven linear maps a block."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, vocab_size=32)
    )
    made = get_peft_model(llama, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    own = sum(p.numel() for name, p in made.named_parameters() if "lora_" in name)
    size = SMALL.model_copy(update={"hidden": 16, "intermediate": 40, "layers": 3})
    options = DistilOptions(steps=1, optimiser="adamw", lora={"rank": 2})
    assert estimates.learned(options, size) == own


def test_steps_leave_out_what_fills_no_step():
    def steps(rows, **more):
        return estimates.steps(DistilOptions(rows=10, **more), rows)

    assert steps(99, epochs=1) == 9
    assert steps(99, epochs=2) == 18
    assert steps(100, epochs=0.25) == 2
    assert steps(5, steps=7) == 7


def test_steps_are_those_of_the_order():
    import numpy as np

    from students.data.order import Order

    for rows, epochs in ((37, 1), (64, 2), (100, 1.5)):
        order = Order(np.ones(rows, np.int32), np.ones(rows, np.int16), 8, 0, epochs=epochs)
        assert order.steps == estimates.steps(DistilOptions(rows=8, epochs=epochs), rows)


def test_a_checkpoint_and_its_resume_points():
    options = DistilOptions(steps=1, optimiser="adamw", precision="bf16", frozen_dtype="bfloat16", save_every=5)
    assert estimates.checkpoint_bytes(SMALL) == 4 * 1000
    assert estimates.resume_bytes(options, SMALL) == 2 * 12 * 900
    assert estimates.resume_bytes(options.model_copy(update={"save_every": None}), SMALL) == 0


# ---- hours -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_stages(tmp_path):
    """A blueprint of two recipes and two seeds, whose models are folders that no one opens."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: paper-table4\nname: mine\nprotocols: [pope@miniature]\nseeds: [0, 1]\n"
        f"models: {{ teacher: {model(tmp_path / 't')}, base: {model(tmp_path / 'b')}, external: {{}} }}\n"
    )
    preset = config.load_preset(str(path))
    chosen = [config.load_recipe(word) for word in ("ce", "ce+cosine_probs@task")]
    given = preset.models.model_copy(update={"external": {}})
    return blueprint.Blueprint(preset, given, None, blueprint.cells(chosen, [0, 1], ["pope@miniature"]), tmp_path)


def with_teacher(two_stages, tmp_path, live, *recipes, seeds=(0,)):
    """The same plan for other recipes, with the teacher beside the students or its signal stored."""
    stages = tuple(
        stage.model_copy(update={"training": stage.training.model_copy(update={"live_teacher": live})})
        for stage in two_stages.preset.stages
    )
    cells = blueprint.cells([config.load_recipe(word) for word in recipes], list(seeds), ["pope@miniature"])
    return blueprint.Blueprint(
        two_stages.preset.model_copy(update={"stages": stages}), two_stages.models, None, cells, tmp_path
    )


def test_a_teacher_takes_memory_only_where_it_runs_beside_a_student(two_stages, tmp_path):
    def teachers(live, energy):
        made = with_teacher(two_stages, tmp_path, live, "ce", energy)
        return [each.memory["teacher"] for each in outlook.trainings(made, tmp_path, outlook.sizes(made))]

    assert min(teachers(True, "ce+fkl@task")) > 0
    assert teachers(False, "ce+fkl@task") == [0, 0]
    assert min(teachers(False, "ce+align_kd@task")) > 0, "it reads attention maps, which are not kept"


def say_hours(two_stages, tmp_path, lost=False, device="cuda"):
    console = Console(width=200, record=True, file=io.StringIO())
    planned = outlook.trainings(two_stages, tmp_path, outlook.sizes(two_stages))
    outlook._hours(console, two_stages, tmp_path, planned, lost, device)
    return console.export_text()


def test_hours_are_those_of_the_probe_times_steps_passes_and_seeds(two_stages, tmp_path, monkeypatch):
    asked = []

    def stub(recipe, variant, options, base, teacher, words, device, scratch, said):
        assert said is None, "the preset's teacher is live"
        asked.append((recipe.name, options.max_length, base.name, teacher if teacher is None else teacher.name, words))
        return probe.Timing(0.5, 3 * 10**9)

    monkeypatch.setattr(probe, "probe", stub)
    said = say_hours(two_stages, tmp_path)
    assert asked == [
        ("ce", 512, "b", None, 180), ("ce+cosine_probs@task", 512, "b", "t", 180),
        ("ce", 2048, "b", None, 90), ("ce+cosine_probs@task", 2048, "b", "t", 90),
    ]  # fmt: skip
    captions, instructions = 9734 * 16 * 0.5 / 3600, 18968 * 32 * 0.5 / 3600
    assert f"ce captions {captions:.1f} h a seed, timed on made-up rows, peak 3.0 GB" in said
    assert f"hours: {2 * 2 * (captions + instructions):.1f} for all training" in said


def test_hours_of_students_that_hear_a_signal_count_the_teacher_once(two_stages, tmp_path, monkeypatch):
    made = with_teacher(two_stages, tmp_path, False, "ce", "ce+cosine_probs@task", seeds=(0, 1))
    heard = []

    def stub(recipe, variant, options, base, teacher, words, device, scratch, said):
        heard.append((recipe.name, said is not None))
        return probe.Timing(0.5, None)

    monkeypatch.setattr(probe, "probe", stub)
    monkeypatch.setattr(probe, "signal", lambda options, teacher, words, device, out: 0.01)
    said = say_hours(made, tmp_path)
    assert heard == 2 * [("ce", False), ("ce+cosine_probs@task", True)]
    captions, instructions = 9734 * 16 * 0.5 / 3600, 18968 * 32 * 0.5 / 3600
    once = 1_246_000 * 0.01 / 3600, 2_428_000 * 0.01 / 3600
    assert f"teacher signal captions {once[0]:.1f} h, once for all students" in said
    assert f"hours: {2 * 2 * (captions + instructions) + sum(once):.1f} for all training" in said


def test_no_hours_without_a_gpu_or_without_the_models(two_stages, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "probe", lambda *_: pytest.fail("nothing can be timed here"))
    assert "because there is no GPU here" in say_hours(two_stages, tmp_path, device="cpu")
    assert "before the models that a few steps could be timed with are here" in say_hours(two_stages, tmp_path, lost=True)
