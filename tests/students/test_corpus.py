"""The corpus on disk: rows come back as they were, images as RGB, damage is named."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import tiny_corpus
from PIL import Image

from harness.base import UserError
from students.data import corpus as corpora
from students.data import images, indexing, llava_json
from students.data.conversations import Conversation, Turn, UnreadableImage


def make(folder, rows, expected=None, allowed=0, root=None, name="c", threads=2):
    """Index a list of LLaVA rows."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    root = root or folder / "images"
    source = indexing.Source(name, "llava", llava_json.rows(path, name), path.stat().st_size, expected, str(path), root)
    facts = indexing.index(source, folder / "index", folder / "checks", allowed, threads)
    return facts, corpora.IndexedCorpus(folder / "index", root)


def said(*texts):
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def jpeg(path, side=40, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size=(side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG", quality=85)
    return path


def test_a_tiny_corpus_reads_back(tmp_path):
    found = tiny_corpus.indexed(tmp_path, rows=30, seed=3)
    rows = json.loads((tmp_path / "source" / "corpus.json").read_text())
    assert len(found) == 30
    for index, row in enumerate(rows):
        conversation = found[index]
        assert conversation.id == str(row["id"])
        assert conversation.source == "tiny"
        assert conversation.images == ((row["image"],) if "image" in row else ())
        assert [t.assistant for t in conversation.turns] == [c["value"] for c in row["conversations"][1::2]]
        assert found.shows[index] == len(conversation.images)
        assert found.lengths[index] == corpora.words(conversation) == sum(len(c["value"].split()) for c in row["conversations"])
        for pixels in found.pictures(conversation):
            assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
            assert conversation.turns[0].user == "<image>\nWhat colour is it ?", "the mark is in front, as LLaVA puts it"
    assert 0 < (found.shows == 0).sum() < 30
    again = pickle.loads(pickle.dumps(found))
    assert again[29] == found[29]
    assert list(found) == [found[index] for index in range(30)]
    with pytest.raises(IndexError, match=r"not in 0 \.\. 29"):
        found[30]


def test_the_digest_is_of_rows_and_images_and_of_nothing_else(tmp_path):
    rows = [{"id": 1, "image": "a.jpg", "conversations": said("<image>\nx", "y")}]
    folders = []
    for number in range(2):
        folders.append(tmp_path / str(number))
        jpeg(folders[-1] / "images" / "a.jpg")
    first, second = (make(folder, rows)[0].digest for folder in folders)
    assert first == second
    files = [{p.name: p.read_bytes() for p in (folder / "index").iterdir()} for folder in folders]
    assert files[0] == files[1]
    assert set(files[0]) == {"rows.jsonl", "offsets.npy", "lengths.npy", "shows.npy", "corpus.json"}
    jpeg(folders[1] / "images" / "a.jpg", seed=1, side=41)
    assert make(folders[1], rows)[0].digest != first
    assert make(folders[0], [{**rows[0], "id": 2}])[0].digest != first


def test_damage_is_named(tmp_path):
    tiny_corpus.indexed(tmp_path)
    folder, root = tmp_path / "tiny", tmp_path / "source" / "images"
    with pytest.raises(UserError, match=r"image folder .*nowhere does not exist"):
        corpora.IndexedCorpus(folder, tmp_path / "nowhere")
    rows = (folder / "rows.jsonl").read_bytes()
    (folder / "rows.jsonl").write_bytes(rows[:-5])
    with pytest.raises(UserError, match=r"rows.jsonl is damaged: \d+ bytes"):
        corpora.IndexedCorpus(folder, root)
    (folder / "rows.jsonl").write_bytes(rows)
    np.save(folder / "shows.npy", np.zeros(3, np.int16))
    with pytest.raises(UserError, match=r"shows.npy is damaged: int16 \(3,\), expected"):
        corpora.IndexedCorpus(folder, root)
    (folder / "corpus.json").unlink()
    with pytest.raises(UserError, match=r"is no corpus: it has no corpus\.json"):
        corpora.IndexedCorpus(folder, root)


# ---- images ----------------


def test_an_image_that_is_gone_is_named(tmp_path):
    path = jpeg(tmp_path / "images" / "a.jpg")
    _, found = make(tmp_path, [{"image": "a.jpg", "conversations": said("<image>", "y")}])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableImage, match=r"image 'a.jpg': .*a.jpg cannot be read \(image file is truncated") as caught:
        found.picture("a.jpg")
    assert caught.value.key == "a.jpg"
    assert isinstance(caught.value, UserError)
    path.unlink()
    with pytest.raises(UnreadableImage, match=r"a.jpg is not there"):
        found.picture("a.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "WEBP"])
def test_the_check_finds_files_that_are_cut_anywhere(tmp_path, kind):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, size=(160, 200, 3), dtype=np.uint8))
    whole = tmp_path / "whole"
    picture.save(whole, "JPEG" if kind == "progressive" else kind, **({"progressive": True} if kind == "progressive" else {}))
    assert images.fault(whole)[0] is None
    data = whole.read_bytes()
    cut = tmp_path / "cut"
    for share in (0.0, 0.001, 0.1, 0.5, 0.9, 0.98):
        cut.write_bytes(data[: int(share * len(data))])
        assert images.fault(cut)[0] is not None, share
        with pytest.raises(images.DAMAGED):
            images.read(cut)


def test_the_check_and_reading_agree_on_every_kind_of_picture(tmp_path):
    rng = np.random.default_rng(1)
    colour = Image.fromarray(rng.integers(0, 256, size=(20, 30, 3), dtype=np.uint8))
    wide = Image.fromarray((np.arange(600, dtype=np.uint16) * 109).reshape(20, 30))
    alpha = colour.convert("RGBA")
    alpha.putalpha(Image.fromarray(rng.integers(0, 256, size=(20, 30), dtype=np.uint8)))
    palette = alpha.quantize(16)
    kinds = {"rgb.png": colour, "grey.png": colour.convert("L"), "one.png": colour.convert("1"),
             "cmyk.jpg": colour.convert("CMYK"),
             "wide.png": wide, "alpha.png": alpha, "la.png": alpha.convert("LA"), "palette.png": palette,
             "palette.gif": colour.quantize(8)}  # fmt: skip
    for name, picture in kinds.items():
        picture.save(tmp_path / name)
        assert images.fault(tmp_path / name)[0] is None, name
        pixels = images.read(tmp_path / name)
        assert (pixels.shape, pixels.dtype) == ((20, 30, 3), np.uint8), name
    assert (images.read(tmp_path / "rgb.png") == np.asarray(colour)).all()
    assert (images.read(tmp_path / "alpha.png") == np.asarray(colour)).all(), "alpha is dropped, as LLaVA drops it"
    expected = (np.arange(600) * 109 // 256).reshape(20, 30).astype(np.uint8)
    assert (images.read(tmp_path / "wide.png") == expected[:, :, None]).all(), "the high byte, not white"
    assert (images.read(tmp_path / "cmyk.jpg") == np.asarray(Image.open(tmp_path / "cmyk.jpg").convert("RGB"))).all()
    Image.fromarray(rng.random((4, 4)).astype(np.float32)).save(tmp_path / "float.tiff")
    assert "unknown range" in images.fault(tmp_path / "float.tiff")[0]
    with pytest.raises(ValueError, match="unknown range"):
        images.read(tmp_path / "float.tiff")


def test_exif_does_not_turn_a_picture(tmp_path):
    picture = Image.fromarray(np.zeros((10, 20, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert images.read(tmp_path / "a.jpg").shape == (10, 20, 3)


def test_what_is_wrong_is_one_line_without_the_path(tmp_path):
    (tmp_path / "text.jpg").write_text("<html>not found</html>")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    found = {name: images.fault(tmp_path / f"{name}.jpg")[0] for name in ("text", "empty", "folder", "none")}
    assert found == {"text": "is no image that PIL knows", "empty": "is empty", "folder": "is a folder", "none": "is not there"}


def test_a_corpus_may_keep_its_own_images(tmp_path):
    with corpora.IndexWriter(tmp_path / "c", "c") as writer:
        writer.add(Conversation("1", "gqa", ("a.jpg",), (Turn("<image>\nWhat?", "é"),)))
    jpeg(tmp_path / "c" / "images" / "a.jpg")
    corpora.finish(
        tmp_path / "c",
        corpora.Facts(name="c", format="embedded", digest="0", source_rows=1, rows=1, rows_with_image=1, images=1),
    )
    found = corpora.IndexedCorpus(tmp_path / "c")
    assert found[0] == Conversation("1", "gqa", ("a.jpg",), (Turn("<image>\nWhat?", "é"),))
    assert found.picture("a.jpg").shape == (40, 40, 3)
