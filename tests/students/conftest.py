"""A random LLaVA of a few thousand parameters, twelve questions about three pictures, and the teacher's signal for them."""

import numpy as np
import pytest

from students.data.pack import encode
from students.data.samples import Sample, TrainingSet
from students.models.llava import LlavaAdapter
from students.options import DistilOptions
from students.shape import LlavaShape
from students.teacher_signal.keys import signal_key
from students.teacher_signal.packed import cache
from students.teacher_signal.reading import TeacherSignal
from students.tokens import build_tokenizer

WORDS = ("red", "blue", "green", "dark red")
#: Five steps on two rows each.
TINY = DistilOptions(steps=5, rows=2, turns=3, warmup=1, betas_every=2, flush_every=3)
SHAPE = {"heads": 2, "vision_hidden": 16, "vision_layers": 1, "vision_heads": 2, "image": 8, "patch": 4}


def _data(blind=()):
    rng = np.random.default_rng(0)
    images = {f"{k:016x}": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for k in range(3)}
    samples = []
    for k in range(12):
        image = None if k >= 9 else f"{k % 3:016x}"
        clean, noisy = WORDS[k % 4], k in (1, 6)
        answer = WORDS[(k + 1) % 4] if noisy else clean
        samples.append(Sample(f"q{k}", "gqa", image, f"what colour is {WORDS[k % 4]} {k}", answer, clean, noisy, k in blind))
    return TrainingSet(tuple(samples), images)


@pytest.fixture(scope="session")
def make_data():
    return _data


@pytest.fixture(scope="session")
def data():
    return _data()


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Checkpoints: a base, and a larger teacher."""
    where = tmp_path_factory.mktemp("models")
    tokenizer = build_tokenizer([*WORDS, "what colour is 0123456789"])
    for name, hidden, seed in (("base", 16, 0), ("teacher", 32, 1)):
        shape = LlavaShape(hidden=hidden, layers=1, intermediate=2 * hidden, **SHAPE)
        LlavaAdapter.build(shape, tokenizer, seed).save(where / name)
    return where


@pytest.fixture(scope="session")
def encoded(folders, data):
    return encode(data.samples, LlavaAdapter.load(folders / "base").processor)


@pytest.fixture(scope="session")
def signal_folder(folders, data):
    cache(folders / "teacher", data, folders / "signal", lambda done, total: None, turns=3)
    return folders / "signal"


@pytest.fixture(scope="session")
def signal(folders, data, signal_folder):
    return TeacherSignal.load(signal_folder, signal_key(folders / "teacher", data))


@pytest.fixture
def train(folders, data, encoded, signal, tmp_path):
    """Distil one tiny student: ``train(recipe, name, **changes)`` returns its folder."""
    from dataclasses import fields

    from students import distil
    from students.recipe import parse

    given = {"base": folders / "base", "data": data, "encoded": encoded, "signal": signal, "teacher": folders / "teacher"}
    given["blind"] = None

    def run(recipe, name=None, **changes):
        inputs = {f.name: changes.pop(f.name, given.get(f.name)) for f in fields(distil.Inputs)}
        out = tmp_path / (name or recipe)
        settings = {"options": TINY, "seed": 0, "progress": lambda done, total: None, **changes}
        distil.distil(parse(recipe), inputs=distil.Inputs(**inputs), out=out, **settings)
        return out

    return run
