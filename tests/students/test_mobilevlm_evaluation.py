"""Published MobileVLM folders through the evaluation: the same replies as the reference, the command, the export, the hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import mobilevlm_reference as plain
import numpy as np
import pandas as pd
import pytest
import torch
import twins
from PIL import Image

import harness
from harness import export, hub, plan, store, workers
from harness.base import UserError, read_json, read_jsonl, write_json
from harness.stages import evaluate
from students import models
from students.data.conversations import IMAGE
from tasks import batching
from tasks.lmms import CheckpointModel, verify

HOME = Path(harness.__file__).parents[1]
SIZES = ((20, 50), (50, 20), (20, 50))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    where = tmp_path_factory.mktemp("evaluated")
    return {
        "student": twins.mobilevlm_twin(where / "student", "student", "bin"),
        "teacher": twins.mobilevlm_twin(where / "teacher", "teacher", "sharded"),
    }


@pytest.fixture(scope="module")
def model(folders):
    models.register()
    return CheckpointModel(folders["student"], batch_size=4)


def pictures():
    return [np.random.default_rng(k).integers(0, 256, (*size, 3), dtype=np.uint8) for k, size in enumerate(SIZES)]


def asked(text, image):
    words = plain.Words(twins.sentencepiece_model())
    mark = f"{IMAGE}\n" if image else ""
    return words.with_images(f"{plain.SYSTEM} USER: {mark}{text} ASSISTANT:")


PROMPTS = ("Is there a red star?", "Is it a red dog?", "How many shapes?", "Which one?")


def test_replies_are_the_references_greedy_ones(model, folders):
    """In batches, with and without an image, past the first pass, which alone sees the image."""
    reference = plain.Reference(folders["student"])
    side, mean, std = plain.read_tower(folders["student"] / twins.TOWER_FOLDER)
    shown = [*pictures(), None]
    made = model.desk.prompts(PROMPTS, lambda n: [] if shown[n] is None else [shown[n]])
    batches = batching.equal([batching.Item(n, row.layout, row.length) for n, row in enumerate(made.rows)], 4)
    assert len(batches) < 4
    found = {n: row.tolist() for b in batches for n, row in zip(b, _continued(model, model.inputs(made, b)), strict=True)}
    assert sorted(found) == [0, 1, 2, 3]
    for number, image in enumerate(shown):
        ids = asked(PROMPTS[number], image is not None)
        pixels = [] if image is None else [plain.pixels(image, side, mean, std)]
        embeds = reference.embeds(ids, pixels)
        expected = []
        for _ in range(4):
            expected.append(int(reference.llama(embeds)[0][-1].argmax()))
            embeds = torch.cat([embeds, reference.weights["model.embed_tokens.weight"][expected[-1]][None]])
        assert found[number] == expected
    assert len({tuple(row) for row in found.values()}) > 1, "a model that always says the same cannot show a mix-up"


def _continued(model, inputs):
    from transformers import GenerationConfig

    greedy = GenerationConfig(max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
    with torch.inference_mode():
        return model.model.generate(**inputs, generation_config=greedy)[:, inputs["input_ids"].shape[1] :]


def test_padding_on_the_left_changes_no_reply(model):
    shown = pictures()
    texts = [model.desk.render(text, 1) for text in (PROMPTS[0], PROMPTS[0] + " Answer with one word or a short phrase.")]
    together = model.processor(text=texts, images=shown[:2], add_special_tokens=False)
    assert together["attention_mask"][0, 0] == 0
    replies = _continued(model, together)
    for k, text in enumerate(texts):
        alone = model.processor(text=[text], images=[shown[k]], add_special_tokens=False)
        assert torch.equal(_continued(model, alone)[0], replies[k])


def test_probabilities_of_gold_answers_are_the_references(model, folders):
    reference = plain.Reference(folders["student"])
    side, mean, std = plain.read_tower(folders["student"] / twins.TOWER_FOLDER)
    image = pictures()[0]
    logs = model.gold_logprobs([PROMPTS[0]], [image], ["a red circle"])[0]
    words = plain.Words(twins.sentencepiece_model())
    answer = words("a red circle")[1:]
    assert model.answer_ids("a red circle") == [*answer, 2]
    ids = asked(PROMPTS[0], True) + answer
    logits = reference.logits(ids, [plain.pixels(image, side, mean, std)])[-len(answer) - 1 :]
    np.testing.assert_allclose(logs, logits.log_softmax(-1).numpy(), atol=1e-5, rtol=1e-5)


def test_images_of_any_shape_are_taken_as_they_are(model):
    assert evaluate.squeeze(model) is None


def test_both_layouts_pass_the_check_and_half_of_one_does_not(folders, tmp_path):
    for folder in folders.values():
        assert verify(folder) == folder
    shards = twins.mobilevlm_twin(tmp_path / "half", layout="sharded")
    (shards / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(
        UserError, match=r"pytorch_model-00001-of-00002\.bin is missing, but pytorch_model\.bin\.index\.json lists"
    ):
        verify(shards)
    (shards / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(UserError, match=r"pytorch_model\.bin\.index\.json is missing"):
        verify(shards)
    cut = folders["student"] / "pytorch_model.bin"
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").write_text("{}")
    (tmp_path / "cut" / "pytorch_model.bin").write_bytes(cut.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"pytorch_model\.bin is truncated or damaged"):
        verify(tmp_path / "cut")


def test_safetensors_are_taken_before_pickles(folders, tmp_path):
    folder = twins.mobilevlm_twin(tmp_path / "both", layout="safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"half")
    verify(folder)
    expected = models.load(folders["student"]).model.state_dict()
    found = models.load(folder).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# ---- the command -----------------------------------------------------------------------------------------------------------


def test_the_stage_evaluates_student_and_teacher(folders, tmp_path):
    """What a worker does for a row: replies, scores and what the student's predictions have of the teacher's."""
    torch.set_num_threads(1)
    name = "pope@miniature"
    gold = evaluate.gold(name)
    for role in ("teacher", "student"):
        targets = [f"replies/{role}/{name}{suffix}" for suffix in evaluate.SUFFIXES] + [gold] * (role == "teacher")
        config = {"name": role, "protocol": {"name": name}, "limit": 1, "batch_size": 4, "taught": True}
        places = {"checkpoint": str(folders[role])}
        stage = plan.Stage(role, "evaluate", "harness.stages.evaluate:run", 1, config, tuple(targets), places=places)
        for target in targets:
            store.partial(tmp_path, target).parent.mkdir(parents=True, exist_ok=True)
        evaluate.run(workers.Context(stage, workers.Settings(tmp_path, "cpu", 1), {}, lambda done, total: None))
        for target in targets:
            store.partial(tmp_path, target).rename(tmp_path / target)
    found = {role: pd.read_parquet(tmp_path / f"replies/{role}/{name}.diagnostics.parquet") for role in ("teacher", "student")}
    assert found["teacher"]["teacher_kl"].isna().all()
    assert (found["student"]["teacher_kl"] > 0.1).all(), "other weights predict otherwise"
    assert len(read_jsonl(tmp_path / f"replies/student/{name}.jsonl")) == len(found["student"]) > 0
    how = read_json(tmp_path / f"replies/student/{name}.words.json")["how"]
    assert {"batch_size": 4, "attention": "sdpa", "device": "cpu", "dtype": "float32"}.items() <= how.items()
    assert how["replies"]["padding"] in ("none", "left") and how["gold"]["padding"] in ("none", "right")


@pytest.mark.slow
def test_a_published_folder_is_a_row_of_a_run(folders, tmp_path):
    coco = tmp_path / "root" / "pope" / "coco"
    coco.mkdir(parents=True)
    for n, size in ((1, (90, 70)), (2, (60, 80))):
        Image.new("RGB", size, (120 * n, 20, 30)).save(tmp_path / "root" / "pope" / f"COCO_val2014_{n}.jpg")
    for split in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": n, "image": f"COCO_val2014_{n}.jpg", "text": f"Is there a {split} dog in the image?", "label": word}
            for n, word in ((1, "yes"), (2, "no"))
        ]
        (coco / f"coco_pope_{split}.json").write_text("".join(json.dumps(row) + "\n" for row in lines))
    preset = {"extends": "official", "name": "p", "title": "t", "evaluation": {"batch_size": 4, "incomplete": True}}
    (tmp_path / "p.yaml").write_text(json.dumps(preset))
    options = ["--preset", "p.yaml", "--tasks", "pope", "--data-root", "root", "--out", "here"]
    rows = {f"mobilevlm-{name}": folder for name, folder in folders.items()}
    command = [sys.executable, "-m", "harness.run", *options, *(f"--model={name}={folder}" for name, folder in rows.items())]
    env = {**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    scores = pd.read_parquet(tmp_path / "here" / "scores.parquet")
    assert set(zip(scores["student"], scores["kind"], strict=True)) == {(name, "external") for name in rows}
    replies = [read_jsonl(tmp_path / "here" / "replies" / name / "seed0" / "pope@mean-f1.jsonl") for name in rows]
    assert [len(each) for each in replies] == [6, 6]


# ---- exported --------------------------------------------------------------------------------------------------------------


def test_an_exported_student_has_the_published_layout_and_a_card(folders, tmp_path):
    root, recipe = tmp_path / "run", "ce+fkl@fixed"
    target = f"students/{recipe}/seed0"
    stage = f"student/{recipe}/seed0"
    store.begin(root, stage, "d", [target], resumes=False)
    working = store.partial(root, target) / "student"
    working.mkdir(parents=True)
    models.load(folders["student"]).save(working)
    store.commit(root, stage, "d", 1, [target], 1.0)
    training = {"steps": None, "epochs": 1.0, "template": "v1"}
    preset = {
        "name": "p", "title": "t", "description": "d", "training": None, "data": {},
        "stages": [{"name": "captions", "corpus": "c", "training": {**training, "template": "plain"}},
                   {"name": "instructions", "corpus": "i", "training": training}],
    }  # fmt: skip
    weights = {"teacher": "aaa", "base/language": "bbb", "base/tower": "ccc"}
    versions = {"torch": "1", "transformers": "2"}
    manifest = {"preset": preset, "weights": weights, "versions": versions, "protocols": {}, "git_commit": None}
    write_json(root / store.MANIFEST, manifest)
    out = export.export_student(root, recipe, [0], tmp_path / "exported")
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json", "README.md",
        "special_tokens_map.json", "tokenizer.model", "tokenizer_config.json",
    }  # fmt: skip
    assert plain.Words((out / "tokenizer.model").read_bytes())("a red circle")[0] == 1
    mine, other = models.load(out).model.state_dict(), models.load(folders["student"]).model.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in other)
    again = CheckpointModel(out)  # its processor is found beside the preprocessing that a saved student has
    assert again.desk.render("x", 1) == f"<s>{plain.SYSTEM} USER: {IMAGE}\nx ASSISTANT:"
    card = (out / "README.md").read_text()
    assert "| stage captions | 1 epoch(s) of the corpus c, format plain |" in card
    assert "| student base weights (tower) | `ccc` |" in card
    assert "Transformers does not know the family `mobilevlm`" in card and "models.register()" in card


# ---- the hub ---------------------------------------------------------------------------------------------------------------

TEXT = ["config.json", "tokenizer.model", "README.md"]


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (["pytorch_model.bin", "training_args.bin"], {"pytorch_model.bin", "pytorch_model-*.bin"}),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], {"pytorch_model.bin", "pytorch_model-*.bin"}),
        (["model.safetensors", "pytorch_model.bin"], {"*.safetensors"}),
    ],
)
def test_pickles_are_fetched_only_where_there_is_nothing_else(monkeypatch, tmp_path, files, weights):
    seen = {}
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda model: TEXT + files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda model, **given: seen.update(given) or str(tmp_path))
    assert hub.fetch("owner/name") == tmp_path
    assert {pattern for pattern in seen["allow_patterns"] if "safetensors" in pattern or ".bin" in pattern} == weights
    assert seen["local_files_only"] is False


def test_a_repository_without_weights_is_named(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda model: [*TEXT, "ggml-model-q4_k.gguf"])
    with pytest.raises(UserError, match=r"'owner/name'.* no weights that are read here .*\.gguf"):
        hub.fetch("owner/name")
