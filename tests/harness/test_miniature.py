"""The shipped tower, teacher and base: what they are, what was measured of them, and that the script that made them works."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from harness import base, miniature, pretraining
from harness.pretraining import Making
from students.models.llava import LlavaAdapter
from tasks.miniature import VERSION
from tasks.miniature.scene import KINDS

FOLDERS = {role: miniature.FOLDER / role for role in miniature.ROLES}
RECORD = base.read_json(miniature.FOLDER / "record.json")


def test_the_weights_are_those_on_record_and_small():
    assert {role: base.digest_folder(folder, "*.safetensors") for role, folder in FOLDERS.items()} == RECORD["digests"]
    assert sum(p.stat().st_size for folder in FOLDERS.values() for p in folder.rglob("*")) < 10e6
    assert RECORD["data_version"] == VERSION
    assert RECORD["making"] == {role: making.model_dump(mode="json") for role, making in miniature.options().items()}


def test_one_tower_and_one_tokenizer_serve_teacher_and_base():
    towers = [load_file(FOLDERS["tower"] / "model.safetensors")]
    towers += [
        {
            k.split("vision_tower.", 1)[1]: v
            for k, v in load_file(FOLDERS[role] / "model.safetensors").items()
            if "vision_tower" in k
        }
        for role in ("teacher", "base")
    ]
    shared = set.intersection(*({k.removeprefix("vision_model.") for k in tower} for tower in towers))
    assert len(shared) > 40
    for name in shared:
        first, *others = ({k.removeprefix("vision_model."): v for k, v in tower.items()}[name] for tower in towers)
        assert all(torch.equal(first, other) for other in others), name
    tokenizers = {(folder / "tokenizer.json").read_bytes() for folder in FOLDERS.values()}
    assert len(tokenizers) == 1


def test_the_teacher_clears_chance_and_the_constant_answer_on_each_of_the_six():
    scores = RECORD["scores"]["teacher"]["test"]
    assert len(scores) == 6
    for protocol, found in scores.items():
        assert found["low"] > max(found["constant"], found["chance"] or 0), protocol


def test_plain_transformers_loads_a_shipped_model_in_a_process_without_our_rooms():
    code = (
        "from harness.base import offline, shim; offline(); shim()\n"
        "import sys\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f"model = AutoModelForImageTextToText.from_pretrained({str(FOLDERS['base'])!r})\n"
        f"processor = AutoProcessor.from_pretrained({str(FOLDERS['base'])!r})\n"
        "assert type(model).__module__.startswith('transformers.'), type(model)\n"
        "assert processor.chat_template and 'students' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_word_of_the_suite_is_known_to_the_tokenizer():
    import tasks
    from tasks.lmms import prompts

    tokenizer = LlavaAdapter.load(FOLDERS["base"]).processor.tokenizer
    for protocol in miniature.protocols():
        questions = tasks.load(protocol)
        texts = [*prompts(protocol, questions), *(q.answer for q in questions.questions)]
        for text, ids in zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True):
            assert tokenizer.unk_token_id not in ids, text
        for question in questions.questions[:50]:
            ids = tokenizer(question.answer, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids, skip_special_tokens=True) == question.answer


SHAPE = {"hidden": 16, "layers": 1, "heads": 2, "intermediate": 16, "vision_hidden": 16, "vision_layers": 1, "vision_heads": 2}


@pytest.fixture(scope="module")
def corpus():
    return miniature.corpus(12, 0)


def test_the_corpus_asks_all_six_flavours_and_labels_every_patch(corpus):
    assert {s.benchmark for s in corpus.training} == {"scienceqa", "gqa", "textvqa", "pope", "mmbench", "mme", "extra"}
    assert set(corpus.dense) == set(corpus.words) == set(corpus.training.images)
    for key, patches in corpus.words.items():
        kinds = [word for words in patches for word in words if word in KINDS]
        assert 1 <= len(kinds) <= 3
        assert [label[0] > 0 for label in corpus.dense[key]] == [any(w in KINDS for w in words) for words in patches]


def test_the_script_makes_the_same_models_twice(corpus, tmp_path):
    tower = Making(corpus="miniature", shape=SHAPE, tower="dense", dense={"steps": 2, "batch": 4}, half=True)
    teacher = Making(corpus="miniature", shape=SHAPE, labels={"steps": 2, "rows": 2, "warmup": 1}, align=2, half=True)
    for copy in ("a", "b"):
        pretraining.make("tower", tower, corpus, None, tmp_path / copy / "tower", lambda done, total: None)
        made = pretraining.make(
            "teacher", teacher, corpus, tmp_path / copy / "tower", tmp_path / copy / "teacher", lambda *_: None
        )
        assert made["parameters"] > 0
    digests = [[base.digest_folder(tmp_path / c / r, "*.safetensors") for r in ("tower", "teacher")] for c in ("a", "b")]
    assert digests[0] == digests[1]
    assert json.loads((tmp_path / "a" / "teacher" / "made.json").read_text())["role"] == "teacher"


@pytest.mark.parametrize(
    ("role", "tower", "message"),
    [("teacher", None, "needs a tower"), ("tower", "x", "builds its own"), ("tower", None, "dense")],
)
def test_options_that_do_not_fit_are_one_clear_error(corpus, tmp_path, role, tower, message):
    with pytest.raises(base.UserError, match=message):
        pretraining.make(
            role, Making(corpus="miniature", shape=SHAPE, tower="dense"), corpus, tower, tmp_path / "m", lambda *_: None
        )
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_the_ce_student_means_something_on_at_least_five_of_the_six(tmp_path):
    """Difficulty, as the default trains it: above chance and above the constant answer, by the whole interval."""
    import pandas as pd

    import tasks
    from reports.statistics import interval

    command = [sys.executable, "-m", "harness.run", "--students", "ce", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = pd.read_parquet(tmp_path / "run" / "scores.parquet")
    clears = {}
    for protocol in miniature.protocols():
        found = interval(rows[(rows["student"] == "ce") & (rows["protocol"] == protocol.name)], protocol)
        floor = max(protocol.chance or 0.0, tasks.constant_level(protocol, tasks.load(protocol))[1])
        clears[protocol.name] = found.low is not None and found.low > floor
    assert sum(clears.values()) >= 5, clears
