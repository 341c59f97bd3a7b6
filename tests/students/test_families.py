"""Every family learns exactly what transformers' own forward pass would teach it, padded or alone, with images or without."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from twin_families import FAMILIES, GRID, picture, talk, twin

from harness.base import UserError
from students import models, recompute
from students.data.conversations import NothingToLearn

PICTURES = [picture(40, 60), picture(70, 33, 1), picture(33, 90, 2), picture(64, 64, 3)]
TALKS = {
    "one": (talk(("<image>\nWhat is in the picture?", "A red car."), name="one", images=1), PICTURES[:1]),
    "turns": (
        talk(("What is larger?\n<image>", "The second one."), ("Why?", "Because it rains; über 你好."), name="turns", images=1),
        PICTURES[1:2],
    ),
    "several": (
        talk(("<image>\n<image>\nWhich one?", "The first."), ("And <image> now?", "yes"), ("no?", "no"), name="s", images=3),
        PICTURES[:3],
    ),
    "text": (talk(("How many dogs?", "12 dogs."), ("Why?", "It rains."), name="text"), []),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    where = tmp_path_factory.mktemp("twins")
    return {family: twin(family, where / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def adapters(folders):
    return {family: models.load(folder) for family, folder in folders.items()}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def adapter(adapters, family):
    return adapters[family]


# ---- written out by hand, per family: what is said, piece by piece ---------------------------------------------------------


def written(family, conversation):
    """Return the conversation as pieces of text, every second of which is to be learnt."""
    pieces, text = [], ""
    chatml = family.startswith("qwen") or family in ("llava_qwen", "llava_onevision")
    if chatml:
        text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    elif family == "smolvlm":
        text = "<|im_start|>"
    elif family == "idefics3":
        text = "<|begin_of_text|>"
    for turn in conversation.turns:
        if family in ("llava", "llava_next"):
            words = [piece.strip("\n") for piece in turn.user.split("<image>")]
            text += "USER: " + "<image>\n" * turn.user.count("<image>") + "".join(w + " " for w in words if w.strip())
            text += "ASSISTANT:"
            pieces += [text, f" {turn.assistant}</s>"]
            text = ""
            continue
        mark = {"llava_onevision": "<image>\n", "qwen2_vl": "", "qwen2_5_vl": ""}.get(family, "<image>")
        mark = mark or "<|vision_start|><|image_pad|><|vision_end|>"
        said = turn.user.replace("<image>\n", "<image>").replace("\n<image>", "<image>").replace("<image>", mark)
        if chatml:
            pieces += [text + f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n", f"{turn.assistant}<|im_end|>"]
        else:
            colon = "User:" if turn.user.startswith("<image>") else "User: "
            pieces += [text + f"{colon}{said}<end_of_utterance>\nAssistant:", f" {turn.assistant}<end_of_utterance>"]
        text = "\n"
    return pieces


def own_inputs(family, adapter, name):
    """What transformers itself makes of the text above, and labels by counting the tokens of its beginnings."""
    conversation, pictures = TALKS[name]
    pieces = written(family, conversation)
    bos = adapter.processor.tokenizer.bos_token
    special = bos is None or not pieces[0].startswith(bos)
    mark = adapter.processor.image_token

    def made(text):
        shown = pictures[: text.count(mark)]
        more = {"images": [shown] if family in ("smolvlm", "idefics3", "llava_onevision") else shown} if shown else {}
        return adapter.processor(text=[text], **more, add_special_tokens=special, return_tensors="pt")

    inputs = made("".join(pieces))
    labels = torch.full_like(inputs["input_ids"], -100)
    for end in range(0, len(pieces), 2):
        start, stop = (made("".join(pieces[: end + k]))["input_ids"].shape[1] for k in (1, 2))
        labels[0, start:stop] = inputs["input_ids"][0, start:stop]
    return inputs, labels


def logits_of(adapter, rows, **more):
    batch = adapter.collate(rows, tuple(range(len(rows))), **more)
    with torch.no_grad():
        hidden = adapter.hidden(batch)
        return adapter.head(adapter.supervised(hidden, batch)), batch


# ---- parity ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TALKS)
def test_supervised_tokens_and_loss_are_transformers_own(family, adapter, name):
    inputs, labels = own_inputs(family, adapter, name)
    row = adapter.row(*TALKS[name])
    assert row.ids.tolist() == inputs["input_ids"][0].tolist()
    assert np.flatnonzero(row.supervised).tolist() == torch.nonzero(labels[0] >= 0)[:, 0].tolist()
    assert (row.pictures, row.cut, row.prompt) == (len(TALKS[name][1]), 0, int(row.supervised.argmax()))
    logits, batch = logits_of(adapter, [row])
    with torch.no_grad():
        output = adapter.model(**inputs, labels=labels)
    torch.testing.assert_close(logits, output.logits[0, np.flatnonzero(row.supervised) - 1], rtol=1e-5, atol=1e-5)
    own = torch.nn.functional.cross_entropy(logits, batch.labels)
    torch.testing.assert_close(own, output.loss, rtol=1e-5, atol=1e-5)
    assert logits.std() > 0.1  # a model that says the same everywhere would agree with anything


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_mixed_batch_gives_each_row_what_it_gets_alone(adapter, side):
    rows = [adapter.row(*talked) for talked in TALKS.values()]
    rows.append(adapter.row(TALKS["one"][0], [PICTURES[3]]))
    together, batch = logits_of(adapter, rows, side=side)
    alone = torch.cat([logits_of(adapter, [row])[0] for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert batch.attention_mask.shape == batch.input_ids.shape
    assert batch.attention_mask.sum(1).tolist() == [len(row.ids) for row in rows]
    assert batch.pictures == (1, 1, 3, 0, 1)
    assert batch.image.tolist() == [0, 1, 2, -1, 5]
    ends = batch.attention_mask[:, -1 if side == "right" else 0]
    assert not ends.all()
    labels = [row.ids[row.supervised] for row in rows]
    assert batch.labels.tolist() == np.concatenate(labels).tolist()
    assert batch.sample.tolist() == np.repeat(np.arange(5), [len(part) for part in labels]).tolist()


def test_a_batch_of_text_alone_has_no_pictures(adapter):
    row = adapter.row(*TALKS["text"])
    together, batch = logits_of(adapter, [row, row])
    assert batch.pixel_values is None
    assert row.pixels == {}
    torch.testing.assert_close(together, logits_of(adapter, [row])[0].repeat(2, 1), rtol=1e-5, atol=1e-5)


def test_the_picture_matters(adapter):
    """Other pixels of the same shape, other logits; in rows after it too where several show pictures."""
    conversation, pictures = TALKS["several"]
    last = adapter.row(*TALKS["turns"])
    before, batch = logits_of(adapter, [adapter.row(conversation, pictures), last])
    changed = [pictures[0], 255 - pictures[1], pictures[2]]
    after, _ = logits_of(adapter, [adapter.row(conversation, changed), last])
    moved = (before - after).abs().amax(1)
    assert moved[batch.sample == 0].max() > 1e-3
    assert moved[batch.sample == 1].max() < 1e-5


def test_image_tokens_are_as_many_as_the_shape_asks_for(family, adapter):
    def count(height, width):
        row = adapter.row(TALKS["one"][0], [picture(height, width)])
        return int((row.ids == adapter.image_token).sum())

    if family in ("llava", "llava_qwen"):
        assert {count(40, 60), count(200, 10), count(32, 32)} == {adapter.vision_tokens} == {16}
        return
    assert adapter.vision_tokens is None
    if family in ("smolvlm", "idefics3"):
        assert count(64, 64) == 4 * (4 + 1)  # 2 x 2 tiles and a small copy
        assert count(32, 64) == 4 * (2 + 1)
    elif family.startswith("qwen"):
        assert count(32, 32) == 4 * 4  # 8-pixel cells
        assert count(16, 32) == 2 * 4
    else:
        assert count(32, 64) == 16 + 2 * 16 + 4  # small copy, two tiles, a line end on each of 4 lines
        assert [32, 64] in GRID


# ---- truncation ------------------------------------------------------------------------------------------------------------


def test_every_limit_keeps_whole_images_and_counts_what_it_cuts(family, adapter):
    conversation, pictures = TALKS["several"]
    whole = adapter.row(conversation, pictures)
    learnt = np.flatnonzero(whole.supervised)
    for limit in range(int(learnt[0]) + 1, len(whole.ids) + 2):
        cut = adapter.row(conversation, pictures, limit)
        n = len(cut.ids)
        assert n <= limit
        assert cut.ids.tolist() == whole.ids[:n].tolist()
        assert cut.supervised.tolist() == whole.supervised[:n].tolist()
        assert cut.supervised[-1]
        assert cut.cut == (learnt >= limit).sum()
        assert cut.prompt == whole.prompt
        assert cut.pictures == (2 if n < (whole.ids == adapter.image_token).nonzero()[0][-1] else 3)
    assert cut.cut == 0
    two = adapter.row(conversation, pictures, int(learnt[3]))
    assert two.pictures == 2
    together, _ = logits_of(adapter, [two, whole])
    alone = logits_of(adapter, [whole])[0][: two.supervised.sum()]  # attention is causal: what was cut changes nothing before
    torch.testing.assert_close(together[: len(alone)], alone, rtol=1e-5, atol=1e-5)


def test_a_limit_that_leaves_nothing_to_learn_is_refused(adapter):
    whole = adapter.row(*TALKS["one"])
    for limit in (1, whole.prompt - 5, whole.prompt):
        with pytest.raises(NothingToLearn, match=f"{whole.prompt} tokens before its first reply, so a limit of {limit} leaves"):
            adapter.row(*TALKS["one"], limit)
    assert adapter.row(*TALKS["one"], whole.prompt + 1).supervised.sum() == 1


# ---- parts -----------------------------------------------------------------------------------------------------------------


def test_parts_learn_or_are_frozen_as_asked(family, adapter):
    everything = {name for name, _ in adapter.model.named_parameters()}
    projector = {"llava": "multi_modal_projector", "smolvlm": "connector", "idefics3": "connector", "qwen2_5_vl": "merger"}
    word = projector.get(family, "merger" if family == "qwen2_vl" else "multi_modal_projector")
    try:
        adapter.learn(("projector",))
        learnt = {name for name, _ in adapter.trainable()}
        assert learnt == {name for name in everything if word in name}
        assert learnt
        adapter.learn(("tower",))
        assert not learnt & {name for name, _ in adapter.trainable()}
        assert any("vis" in name for name, _ in adapter.trainable())
        adapter.learn(("language", "tower", "projector"))
        assert adapter.frozen() == []
        with pytest.raises(UserError, match=r"unknown part of a model 'towr'\. Did you mean 'tower'"):
            adapter.learn(("towr",))
    finally:
        adapter.learn(("language", "projector"))
    assert {name for name, _ in adapter.trainable()} | {name for name, _ in adapter.frozen()} == everything


def test_lora_targets_are_the_language_models_linears(adapter):
    layers = adapter.text_config.num_hidden_layers
    targets = adapter.lora_targets
    assert len(targets) == 7 * layers
    for name in targets:
        assert isinstance(adapter.model.get_submodule(name), torch.nn.Linear)
        assert "vision" not in name
        assert "visual" not in name
    inside = {id(p) for p in adapter.language.parameters()}
    assert all(id(adapter.model.get_submodule(name).weight) in inside for name in targets)


def test_gradients_reach_what_learns_and_nothing_else(adapter):
    rows = [adapter.row(*TALKS[name]) for name in ("several", "text")]
    batch = adapter.collate(rows, (0, 1))
    logits = adapter.head(adapter.supervised(adapter.hidden(batch), batch))
    torch.nn.functional.cross_entropy(logits, batch.labels).backward()
    try:
        assert all(p.grad is None for _, p in adapter.frozen())
        assert any(p.grad.abs().max() > 0 for p in adapter.projector.parameters())
        assert any(p.grad.abs().max() > 0 for p in adapter.language.parameters())
    finally:
        adapter.model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("how", [True, "selective"])
def test_gradients_are_the_same_where_activations_are_recomputed(folders, family, how):
    found = []
    for again in (False, how):
        adapter = models.load(folders[family])
        recompute.enable(adapter.model, again)
        adapter.model.train()
        batch = adapter.collate([adapter.row(*TALKS[name]) for name in ("several", "text")], (0, 1))
        adapter.head(adapter.supervised(adapter.hidden(batch), batch)).logsumexp(-1).sum().backward()
        found.append({name: parameter.grad for name, parameter in adapter.trainable() if parameter.grad is not None})
    kept, recomputed = found
    assert kept.keys() == recomputed.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_other_types_load_and_run(folders, family):
    adapter = models.load(folders[family], dtype=torch.bfloat16)
    assert {p.dtype for p in adapter.model.parameters()} == {torch.bfloat16}
    logits, _ = logits_of(adapter, [adapter.row(*TALKS["several"]), adapter.row(*TALKS["text"])])
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


# ---- saved -----------------------------------------------------------------------------------------------------------------

READER = """
import sys, json
from pathlib import Path
from harness.base import shim
shim()
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert type(model).__module__.startswith("transformers."), type(model)
    AutoProcessor.from_pretrained(folder)
    asked = torch.load(folder / "asked.pt", weights_only=True)
    expected = asked.pop("expected")
    with torch.no_grad():
        found = model(**asked).logits
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5), folder
assert "students" not in sys.modules
"""


def test_saved_students_load_in_a_fresh_process_with_none_of_our_code(adapters, tmp_path):
    for family, adapter in adapters.items():
        folder = tmp_path / family
        adapter.save(folder)
        inputs, _ = own_inputs(family, adapter, "several")
        with torch.no_grad():
            expected = adapter.model(**inputs).logits
        asked = {name: torch.as_tensor(value) for name, value in inputs.items()}
        torch.save({**asked, "expected": expected}, folder / "asked.pt")
    done = subprocess.run([sys.executable, "-c", READER, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_saved_students_load_back_as_they_were(adapter, tmp_path):
    adapter.save(tmp_path)
    again = models.load(tmp_path)
    row = again.row(*TALKS["several"])
    assert row.ids.tolist() == adapter.row(*TALKS["several"]).ids.tolist()
    assert torch.equal(logits_of(again, [row])[0], logits_of(adapter, [row])[0])
    assert again.tokens() == adapter.tokens()
    assert isinstance(again.model, transformers.PreTrainedModel)
    assert again.model.config.model_type == adapter.family
