"""A training step asks the device for nothing: no value of a tensor decides what the host does next, until a flush."""

import traceback

import pytest
import torch
from memory_corpus import MIXED, MemoryCorpus
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from twins import mobilevlm_twin

from students import distil, stored
from students.feed import PackedFeed
from students.feed_stream import StreamFeed
from students.options import DistilOptions
from students.recipe import Variant, parse
from students.teacher_signal import streams
from students.teacher_signal.forms import Form
from students.teacher_signal.keys import signal_key, stream_key
from students.teacher_signal.packed import cache
from students.teacher_signal.reading import TeacherSignal
from students.teacher_signal.stream_reading import StreamSignal
from students.training import Training

#: What gives the host a number, or a tensor whose shape depends on values: either way it waits for the device.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount", "is_nonzero")
PACKED = DistilOptions(steps=5, rows=2, turns=3, warmup=1, betas_every=2, flush_every=3)
STREAMED = DistilOptions(steps=4, rows=4, micro_rows=2, optimiser="adamw", warmup=0, flush_every=4, max_length=700)
RECIPES = (
    "ce",
    "ce+fkl@task",
    "ce+cosine_probs@instance",
    "ce+fd+fkl@instance",
    "ce+taid@famo",
    "ce+fkl@gradnorm",
    "ce+fkl@dwa",
)


class Reads(TorchDispatchMode):
    """Notes every read, with the place in the code that asked."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").partition(".")[0]
        masks = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        masked = any(m is not None and m.dtype in (torch.bool, torch.uint8) for m in masks)
        counted = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in READS or masked or counted:
            frames = [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_stack()[:-1]]
            self.found.append((name, [f for f in frames if "/torch/" not in f][-6:]))
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def host(monkeypatch):
    """Look away from what is the host's: rows are made there, and AdamW counts its steps in tensors of the host too."""

    def unobserved(owner, name):
        inner = getattr(owner, name)

        def call(*arguments, **options):
            with _disable_current_modes():
                return inner(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    for feed in (PackedFeed, StreamFeed):
        unobserved(feed, "part")
    for kind in (torch.optim.AdamW, torch.optim.Muon):
        unobserved(kind, "step")


def reads_of(training):
    """Return what steps 2 and 3 ask the device for."""
    training.step(1, training.feed.members(1))
    with Reads() as reads:
        for step in (2, 3):
            training.step(step, training.feed.members(step))
    training.close()
    return "\n".join(f"{name}: {' | '.join(where)}" for name, where in reads.found)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_on_packed_rows_waits_for_nothing(recipe, folders, data, encoded, signal, tmp_path):
    given = distil.Inputs(folders / "base", data, encoded, signal, folders / "teacher")
    assert reads_of(Training(parse(recipe), PACKED, given, 0, tmp_path, "cpu", Variant())) == ""


@pytest.mark.parametrize("recipe", ["ce", "ce+fkl@task", "ce+fd+fkl@instance"])
def test_a_step_on_a_stream_waits_for_nothing(recipe, tmp_path):
    student, teacher = (mobilevlm_twin(tmp_path / size, size, seed=k) for k, size in enumerate(("student", "teacher")))
    given = distil.StreamInputs(student, MemoryCorpus(MIXED), teacher)
    assert reads_of(Training(parse(recipe), STREAMED, given, 0, tmp_path / "out", "cpu", Variant())) == ""


@pytest.mark.parametrize("recipe", ["ce", "ce+fkl@instance"])
def test_a_step_in_chunks_waits_for_nothing(recipe, folders, data, encoded, signal, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "LIMIT", 400)
    given = distil.Inputs(folders / "base", data, encoded, signal, folders / "teacher")
    assert reads_of(Training(parse(recipe), PACKED, given, 0, tmp_path, "cpu", Variant())) == ""


def test_a_step_on_bins_waits_for_nothing(folders, data, encoded, tmp_path):
    cache(folders / "teacher", data, tmp_path / "signal", lambda *_: None, form=Form("topk", "float16", 8))
    said = TeacherSignal.load(tmp_path / "signal", signal_key(folders / "teacher", data))
    given = distil.Inputs(folders / "base", data, encoded, said, folders / "teacher")
    assert reads_of(Training(parse("ce+fkl@instance"), PACKED, given, 0, tmp_path / "out", "cpu", Variant())) == ""


def test_a_step_on_a_streams_signal_waits_for_nothing(tmp_path):
    student, teacher = (mobilevlm_twin(tmp_path / size, size, seed=k) for k, size in enumerate(("student", "teacher")))
    rows = MemoryCorpus(MIXED)
    streams.cache(teacher, rows, tmp_path / "signal", lambda *_: None)
    said = StreamSignal.load(tmp_path / "signal", stream_key(teacher, rows))
    given = distil.StreamInputs(student, rows, teacher, signal=said)
    assert reads_of(Training(parse("ce+fkl@instance"), STREAMED, given, 0, tmp_path / "out", "cpu", Variant())) == ""


def test_what_would_wait_is_seen():
    values = torch.arange(4.0)
    asks = {
        "item": lambda: values.sum().item(),
        "if": lambda: bool((values > 2).any()),
        "mask": lambda: values[values > 2],
        "assigned": lambda: values.clone().index_put_((values > 2,), values[:1]),
        "where": lambda: torch.nonzero(values),
        "repeat": lambda: values.repeat_interleave(torch.ones(4, dtype=torch.int64)),
    }
    for name, ask in asks.items():
        with Reads() as reads:
            ask()
        assert len(reads.found) >= 1, name
    with Reads() as reads:
        torch.where(values > 2, values, 0.0).masked_fill(values > 1, 0.0).index_add(0, torch.tensor([1]), values[:1])
    assert reads.found == []
