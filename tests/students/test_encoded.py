"""Tokens and pictures on disk are what they were in memory, and what is cut off or of other samples is never used."""

import numpy as np
import pytest

from harness.base import UserError, read_json, write_json
from students.data import encoded, pack, samples


def ids(*values):
    return np.array(values, np.int64)


@pytest.fixture
def data():
    def sample(name, image):
        return samples.Sample(name, "b", image, f"prompt {name}", "yes", "no", noisy=True, blind=False)

    pictures = {"b": np.arange(24, dtype=np.uint8).reshape(2, 4, 3), "a": np.full((3, 1, 3), 7, np.uint8)}
    return samples.TrainingSet((sample("0", "b"), sample("1", None), sample("2", "a")), pictures)


@pytest.fixture
def tokens():
    prompts = (ids(1, 5, 5, 9), ids(), ids(1, 2**30))
    return pack.Encoded(
        prompts, (ids(3, 2), ids(4, 4, 2), ids(2)), (ids(8, 2), ids(4, 2), ids(2)), (3, 0, 1), ("b", None, "a"), 0
    )


@pytest.fixture
def folder(tmp_path, data, tokens):
    encoded.save(tmp_path / "encoded", data, tokens)
    return tmp_path / "encoded"


def test_tokens_come_back_as_they_were(folder, tokens):
    found = encoded.load(folder, ["0", "1", "2"])
    for name in ("prompts", "answers", "clean"):
        kept, mine = getattr(found, name), getattr(tokens, name)
        assert len(kept) == 3
        for way in (list(kept), [kept[k] for k in range(3)], [kept[k] for k in range(-3, 0)], kept[:]):
            assert all(a.dtype == np.int64 and np.array_equal(a, b) for a, b in zip(way, mine, strict=True))
        assert len(kept[1:2]) == 1
        with pytest.raises(IndexError):
            kept[3]
    assert (found.prefix, found.images, found.pad) == (tokens.prefix, tokens.images, tokens.pad)
    assert all(type(length) is int for length in found.prefix)


def test_pictures_come_back_without_being_read(folder, data):
    found = encoded.load_pictures(folder)
    assert set(found) == {"a", "b"} and len(found) == 2
    for key, picture in data.images.items():
        assert found[key].dtype == np.uint8 and np.array_equal(found[key], picture)
        assert isinstance(found[key].base, np.memmap) or isinstance(found[key], np.memmap)
    with pytest.raises(KeyError):
        found["c"]


def test_data_without_pictures(tmp_path, tokens):
    plain = pack.Encoded(tokens.prompts, tokens.answers, tokens.clean, tokens.prefix, (None,) * 3, 0)
    encoded.save(tmp_path / "e", samples.TrainingSet((), {}), plain)
    assert dict(encoded.load_pictures(tmp_path / "e")) == {}


@pytest.mark.parametrize("name", ["prompts.npy", "answers.offsets.npy", "prefix.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "short"])
def test_what_is_cut_off_is_refused_by_name(folder, name, damage):
    path = folder / name
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif name == "meta.json":
        write_json(path, {**read_json(path), "version": 0})
    else:
        np.save(path, np.load(path)[:-1])
    with pytest.raises(UserError, match=str(path)):
        encoded.load(folder, ["0", "1", "2"])


def test_tokens_of_other_samples_are_refused(folder):
    with pytest.raises(UserError, match="tokens of other samples"):
        encoded.load(folder, ["0", "2", "1"])
