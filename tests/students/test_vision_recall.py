"""An evaluation looks its images' features up by their content."""

import torch
from stored_features import stored
from twin_families import twin

from students import models
from students.models.llava import LlavaAdapter
from students.vision.recall import Memory, recall


def test_recall_looks_up_by_content_and_computes_what_is_new(folders, data, tmp_path):
    adapter = LlavaAdapter.load(folders / "base")
    shown = dict(data.images)
    missing = next(iter(shown))
    given = stored(adapter, {k: v for k, v in shown.items() if k != missing}, tmp_path / "v", content=True)
    memory = Memory()
    made, why = recall(adapter.model, adapter.processor, given, memory)
    assert why == "features of 2 images, computed once"
    pixels = adapter.pixels([*shown.values(), shown[missing], *shown.values()])
    inputs = {"input_ids": torch.zeros(7, 2), "pixel_values": pixels}
    found = made(inputs)
    assert set(found) == set(inputs)
    torch.testing.assert_close(found["pixel_values"], adapter.features(pixels), atol=1e-5, rtol=0)
    assert made.counts == {"stored": 2, "remembered": 0, "computed": 1}
    made(inputs)
    assert made.counts == {"stored": 4, "remembered": 1, "computed": 1}
    again, _ = recall(adapter.model, adapter.processor, None, memory)  # the next student of the same worker
    again(inputs)
    assert again.counts == {"stored": 0, "remembered": 1, "computed": 2}
    assert made({"input_ids": 1}) == {"input_ids": 1}
    other = LlavaAdapter.load(folders / "teacher")
    third, why = recall(other.model, other.processor, given, memory)
    assert why == "the tower's weights are others"
    third(inputs)
    assert third.counts == {"stored": 0, "remembered": 0, "computed": 3}, "another tower's features were taken"


def test_memory_is_bounded(monkeypatch):
    memory = Memory()
    monkeypatch.setattr("students.vision.recall.MOST", 100)
    for k in range(5):
        memory.put(bytes([k]), torch.zeros(10))  # 40 bytes
        memory.get(b"\0")
    assert list(memory.by_content) == [b"\4", b"\0"]
    assert memory.size == 80


def test_a_model_that_is_not_run_apart_has_no_recall(tmp_path):
    adapter = models.load(twin("qwen2_vl", tmp_path / "qwen", "student", seed=0))
    made, why = recall(adapter.model, adapter.processor, None, Memory())
    assert made is None
    assert "variable numbers of tokens" in why
