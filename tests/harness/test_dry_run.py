"""The plan of real runs: estimates against hand arithmetic, what is missing, what a machine cannot do; no network, no GPU."""

import json
import os
import socket
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from no_network import block

import harness
from harness import config, estimates, missing, needs, outlook, weights
from harness.base import UserError
from harness.real import ModelSize
from students.options import DistilOptions

HOME = Path(harness.__file__).parents[1]


@pytest.fixture
def call(tmp_path):
    """Run the command with the network blocked, an empty hub cache, and no torch, transformers or lmms_eval to import."""
    light = block(tmp_path / "light")
    work = tmp_path / "work"
    work.mkdir()

    def do(*arguments, heavy=False):
        for name in ("torch", "transformers", "lmms_eval"):
            (light / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
            if heavy:
                (light / f"{name}.py").unlink()
        path = f"{light}{os.pathsep}{HOME}"
        env = {**os.environ, "PYTHONPATH": path, "HF_HOME": str(tmp_path / "hub"), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
            env.pop(name, None)
        command = [sys.executable, "-m", "harness.run", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=work, env=env, check=False)

    do.work = work
    return do


def test_the_block_blocks(call):
    code = "import socket; socket.create_connection(('127.0.0.1', 9))"
    env = {**os.environ, "PYTHONPATH": str(call.work.parent / "light")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (77, "the network was reached for\n")
    assert socket.socket.connect.__name__ == "connect"  # and only there


# ---- the command -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "offline"), [("paper-table1", False), ("paper-table4", True), ("paper-table5", False)])
def test_the_plan_of_a_table_is_shown_with_nothing_there(call, name, offline):
    done = call("--preset", name, "--dry-run", *(["--offline"] if offline else []))
    assert done.returncode == 0, done.stderr
    for words in (
        "MISSING: ",
        "Models",
        "Training data",
        "GPU memory",
        "disk: about",
        "no GPU that torch can use",
        "required: a GPU",
    ):
        assert words in done.stdout
    assert "hours: none are given, because there is no GPU here" in done.stdout
    assert "stages to do" in done.stdout and " h " not in done.stdout.splitlines()[-1]
    assert not list(call.work.iterdir()), "a plan writes nothing"
    count = int(done.stdout.partition("MISSING: ")[2].split()[0])
    listed = [
        line
        for line in done.stdout.splitlines()
        if line.strip().split(".")[0].isdigit() and ("model " in line or "corpus" in line or "benchmark" in line)
    ]
    assert len(listed) == count
    for hub_id in {config.load_preset(name).models.teacher, *config.load_preset(name).models.external.values()}:
        assert hub_id in done.stdout


def test_a_run_that_lacks_something_names_the_first_thing_and_how_many_more(call):
    done = call("--preset", "paper-table4", "--offline")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: model teacher: mtgv/MobileVLM_V2-7B is not in the hub's cache")
    assert "more missing: --dry-run lists them all" in line
    assert not list(call.work.iterdir())
    planned = call("--preset", "paper-table4", "--offline", "--dry-run").stdout
    count = int(planned.partition("MISSING: ")[2].split()[0])
    assert f"({count - 1} more missing" in line


def test_data_that_are_missing_stop_a_run_before_any_download(call, tmp_path):
    done = call("--preset", "paper-table4", "--data-root", tmp_path / "data")  # not offline: models could be fetched
    assert done.returncode == 2
    assert "error: corpus captions:" in done.stderr
    assert "share-captioner_coco_lcs_sam_1246k_1107.json" in done.stderr
    assert "Lin-Chen/ShareGPT4V" in done.stderr
    assert "network was reached" not in done.stderr


OPTIONS = {
    ("--preset", "official", "--live-teacher", "--model", "m=x"): "trains nothing",
    ("--skip-unreadable", "2"): "reads no corpus",
    ("--skip-unreadable", "-1"): "--skip-unreadable",
    ("--skip-unreadable", "some"): "--skip-unreadable",
}


@pytest.mark.parametrize("arguments", OPTIONS, ids=" ".join)
def test_options_that_make_no_sense(call, arguments):
    done = call(*arguments)
    assert done.returncode == 2
    assert OPTIONS[arguments] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_live_teacher_needs_no_signal(call):
    kept = call("--students", "ce+fkl", "--dry-run")
    live = call("--students", "ce+fkl", "--live-teacher", "--dry-run")
    assert kept.returncode == live.returncode == 0, live.stderr
    assert "teacher signal" in kept.stdout
    assert "teacher signal" not in live.stdout
    assert "student ce+fkl@fixed seed0" in live.stdout


# ---- estimates -------------------------------------------------------------------------------------------------------------

SMALL = ModelSize(
    parameters=1000, tower=100, hidden=10, layers=3, intermediate=20, vocabulary=50, vision_tokens=4, gib=1.0
)  # fmt: skip
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
    assert parts["weights"] == 4 * 1000
    assert (parts["casts"], parts["teacher"]) == (0, 0)
    assert parts["logits"] == 4 * 2 * (16 - 4) * 50 * 3


def test_logits_at_vision_tokens_by_hand():
    options = DistilOptions(steps=1, rows=2, max_length=16, optimiser="adamw")
    assert estimates.memory(options, SMALL, LARGE, 5, 1, spans=True)["spans"] == 4 * 2 * 4 * 50 * 4
    assert "spans" not in estimates.memory(options, SMALL, LARGE, 5, 1)
    read = {name for name in ("fkl", "fd", "align_kd", "llava_kd", "cosine_probs") if outlook._compares_spans(name)}
    assert read == {"llava_kd"}


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
    assert estimates.checkpoint_bytes(options, SMALL) == 4 * 900 + 2 * 100
    assert estimates.resume_bytes(options, SMALL) == 2 * 12 * 900
    assert estimates.resume_bytes(options.model_copy(update={"save_every": None}), SMALL) == 0


# ---- weights, from their headers -------------------------------------------------------------------------------------------


def safetensors(path, shapes, dtype="F32", width=4):
    """Write a safetensors file by hand."""
    at, header = 0, {"__metadata__": {"format": "pt"}}
    for name, shape in shapes.items():
        size = width
        for each in shape:
            size *= each
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))


SHAPES = {"language_model.a": [3, 5], "vision_tower.b": [4], "multi_modal_projector.c": [2, 2]}


def test_sizes_are_read_from_headers(tmp_path):
    safetensors(tmp_path / "model.safetensors", SHAPES)
    found = weights.read(tmp_path)
    assert (found.parameters, found.tower, found.exact) == (15 + 4 + 4, 4, True)
    assert found.size == (tmp_path / "model.safetensors").stat().st_size


def test_sizes_of_a_real_checkpoint_are_torchs(tmp_path):
    from safetensors.torch import load_file

    folder = HOME / "students" / "miniature" / "base"
    own = load_file(folder / "model.safetensors")
    found = weights.read(folder)
    assert found.parameters == sum(tensor.numel() for tensor in own.values())
    assert 0 < found.tower < found.parameters
    assert weights.shape(folder).hidden == 96


def shards(folder, names=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
    safetensors(folder / names[0], {"a": [3]})
    safetensors(folder / names[1], {"b": [4]})
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return names


def test_half_a_download_is_no_checkpoint(tmp_path):
    second = shards(tmp_path)[1]
    assert weights.read(tmp_path).parameters == 7
    whole = (tmp_path / second).read_bytes()
    (tmp_path / second).write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"{second} is cut off or damaged: it has .* bytes, its header needs"):
        weights.read(tmp_path)
    (tmp_path / second).write_bytes(whole[:20])
    with pytest.raises(UserError, match="its header is not whole"):
        weights.read(tmp_path)
    (tmp_path / second).unlink()
    with pytest.raises(UserError, match=rf"{second} is missing, but .* lists it \(1 of 2 files are missing\)"):
        weights.read(tmp_path)


def test_pickled_weights_are_told_by_their_size_and_never_opened(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("data", bytes(1000))
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    found = weights.read(tmp_path)
    assert (found.parameters, found.exact) == (path.stat().st_size // 2, False)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UserError, match="is cut off or damaged: it is no whole weight file"):
        weights.read(tmp_path)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(UserError, match="holds no weights"):
        weights.read(tmp_path)


# ---- what is missing -------------------------------------------------------------------------------------------------------


def model(folder, kind="mobilevlm"):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "hidden_size": 4}))
    safetensors(folder / "model.safetensors", {"a": [3]})
    return str(folder)


def test_a_family_that_nobody_knows_is_named(tmp_path):
    preset = config.load_preset("paper-table2")
    given = config.Models(teacher=model(tmp_path / "t", "nobodys"), base=model(tmp_path / "b"))
    (found,) = missing.missing_models(given, trained=True)
    assert (found.name, found.fetched) == ("teacher", False)
    assert "unknown model type 'nobodys'" in found.text
    assert not missing.missing_models(given, trained=False), "evaluating is transformers' business"
    with pytest.raises(UserError, match=r"model teacher: .*unknown model type 'nobodys'"):
        missing.refuse(missing.missing_models(given, trained=True), online=True)
    assert preset.trains


def test_half_a_model_in_the_hubs_cache_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--own--er" / "snapshots" / "abc"
    place.mkdir(parents=True)
    given = config.Models(external={"mine": "own/er"})
    monkeypatch.setattr("harness.hub.cached", lambda _: place)
    (found,) = missing.missing_models(given, trained=False)
    assert found.fetched and "has no config.json" in found.text
    (place / "config.json").write_text("{}")
    shards(place)
    (place / "model-00002-of-00002.safetensors").unlink()
    (found,) = missing.missing_models(given, trained=False)
    assert "half a download" in found.text
    shards(place)
    assert not missing.missing_models(given, trained=False)


def corpus_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: paper-table4\nname: mine\nprotocols: [pope@miniature]\n")
    return config.load_preset(str(path))


def test_a_corpus_is_its_file_and_its_images(tmp_path):
    preset = corpus_preset(tmp_path)

    def found(root):
        return [each for each in missing.find(preset, config.Models(), ["pope@miniature"], root) if each.kind == "corpus"]

    assert "no --data-root is given" in found(None)[0].text
    assert len(found(tmp_path)) == 2
    (tmp_path / "pretrain_data").mkdir()
    assert "_1107.json not found" in found(tmp_path)[0].text
    (tmp_path / "pretrain_data" / "share-captioner_coco_lcs_sam_1246k_1107.json").write_text("[]")
    assert [each.name for each in found(tmp_path)] == ["instructions"]


def test_what_is_cached_is_not_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    preset = config.load_preset("paper-table2")

    def names():
        return [(each.kind, each.name) for each in missing.find(preset, config.Models(), list(preset.protocols), None)]

    assert names() == [("corpus", "scienceqa"), ("benchmark", "scienceqa")]
    (tmp_path / "lmms-lab___science_qa").mkdir()
    assert names() == []


# ---- what a machine cannot do ----------------------------------------------------------------------------------------------

H100 = needs.Machine("NVIDIA H100", 85_000_000_000, 84_000_000_000, 10**13)


def test_a_preset_that_needs_a_gpu():
    preset = config.load_preset("paper-table2")
    needs.check(preset, "cuda", H100, 0)
    cases = {
        ("cpu", needs.Machine(None, 0, 0, 10**13)): r"'paper-table2' needs a GPU with 60 GB of memory; found: no GPU",
        ("cpu", H100): "--device cpu was given",
        (
            "cuda",
            needs.Machine("T4", 16 * 10**9, 15 * 10**9, 10**13),
        ): "needs a GPU with 60 GB of free memory; found: T4 with 16 GB",
    }
    for (device, machine), message in cases.items():
        with pytest.raises(UserError, match=message):
            needs.check(preset, device, machine, 0)
    with pytest.raises(UserError, match="will write about 200 GB; found: 100 GB of disk free"):
        needs.check(preset, "cuda", needs.Machine("H100", 85 * 10**9, 84 * 10**9, 100 * 10**9), 200e9)
    needs.check(config.load_preset("miniature"), "cpu", needs.Machine(None, 0, 0, 10**13), 0)


def test_a_run_of_such_a_preset_stops_before_anything_is_written(call, tmp_path):
    """All models are there, the data are embedded: only the GPU is missing."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: paper-table2\nname: mine\nprotocols: [pope@miniature]\ncorpora: { scienceqa: { format: embedded } }\n"
        f"models: {{ teacher: {model(tmp_path / 't')}, base: {model(tmp_path / 'b')} }}\n"
    )
    done = call("--preset", path)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line == (
        "error: preset 'mine' needs a GPU with 60 GB of memory; found: no GPU that torch can use (--dry-run shows the plan"
        " without one)"
    )
    assert not list(call.work.iterdir())
