"""LLaVA's files as they are in the wild: every oddity is read as LLaVA reads it or left out, and always counted and named."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_corpus import jpeg, make, said

from harness.base import UserError
from students.data import indexing, llava_json


@pytest.fixture
def images(tmp_path):
    for number, name in enumerate(("a.jpg", "b.jpg", "deep/er/c.jpg")):
        jpeg(tmp_path / "images" / name, seed=number)
    return tmp_path / "images"


def turns(found, index=0):
    return [(turn.user, turn.assistant) for turn in found[index].turns]


def test_ids_are_made_unique_the_same_way_each_time(tmp_path):
    given = ["x", "x", None, 7, "x#2", "7", "", "x", "row 2"]
    rows = [{"id": name, "conversations": said("q", "a")} for name in given]
    rows[2].pop("id")
    expected = ["x", "x#2", "row 2", "7", "x#2#2", "7#2", "row 6", "x#3", "row 2#2"]
    for folder in ("one", "two"):
        _, found = make(tmp_path / folder, rows)
        assert [row.id for row in found] == expected


def test_many_rows_of_one_id_take_linear_time(tmp_path):
    _, found = make(tmp_path, [{"id": "x", "conversations": said("q", "a")}] * 4000)
    assert found[3999].id == "x#4000"
    assert len({row.id for row in found}) == 4000


@pytest.mark.parametrize("image", [None, "", [], "absent"])
def test_rows_without_an_image(tmp_path, image):
    row = {"id": "t", "image": image, "conversations": said("q", "a", "r", "b")}
    if image == "absent":
        del row["image"]
    facts, found = make(tmp_path, [row])
    assert (found[0].images, turns(found), found.shows[0]) == ((), [("q", "a"), ("r", "b")], 0)
    assert (facts.images, facts.rows_with_image, facts.changed, facts.skipped) == (0, 0, {}, {})


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("<image>\nWhat?", "<image>\nWhat?"),
        ("What?\n<image>", "<image>\nWhat?"),
        ("What <image> now?", "<image>\nWhat  now?"),
        ("<image>", "<image>"),
        ("  <image>  What?  ", "<image>\nWhat?"),
    ],
)
def test_the_mark_of_one_image_is_in_front_as_llava_puts_it(tmp_path, images, text, read):
    """The expected texts are those of LLaVA's ``preprocess_multimodal``: remove the mark, strip, put it before, strip."""
    facts, found = make(tmp_path, [{"image": "a.jpg", "conversations": said(text, "a", " more ", "b")}])
    assert turns(found) == [(read, "a"), (" more ", "b")]
    assert facts.changed == {}


def test_marks_of_several_images_stay(tmp_path, images):
    texts = ("<image> and <image>?", "a", "And <image>?", "b")
    row = {"image": ["b.jpg", "deep/er/c.jpg", "a.jpg"], "conversations": said(*texts)}
    _, found = make(tmp_path, [row])
    assert turns(found) == [texts[:2], texts[2:]]
    assert found[0].images == ("b.jpg", "deep/er/c.jpg", "a.jpg")
    assert found.shows[0] == 3
    assert (found.pictures(found[0])[1] == found.picture("deep/er/c.jpg")).all()


def test_the_mark_may_be_in_a_later_turn(tmp_path, images):
    _, found = make(tmp_path, [{"image": "a.jpg", "conversations": said("Hi", "Hello", "What is this <image>", "a")}])
    assert turns(found) == [("Hi", "Hello"), ("<image>\nWhat is this", "a")]


CHANGED = [
    (said("q", "a")[1:] + said("q", "a"), [("q", "a")], "began with gpt"),
    (said("q", "a", "and"), [("q", "a")], "ended with a question"),
]


@pytest.mark.parametrize(("conversations", "read", "what"), CHANGED)
def test_odd_rows_are_read_as_llava_reads_them_and_counted(tmp_path, conversations, read, what):
    facts, found = make(
        tmp_path, [{"id": "odd", "conversations": conversations}, {"id": "ok", "conversations": said("q", "a")}]
    )
    assert turns(found) == read
    [(said_of, remark)] = facts.changed.items()
    assert said_of.startswith(what)
    assert (remark.rows, remark.first) == (1, ("odd",))


def test_several_marks_of_one_image_in_one_turn_are_one(tmp_path, images):
    facts, found = make(tmp_path, [{"id": 5, "image": "a.jpg", "conversations": said("<image> and <image>", "a")}])
    assert turns(found) == [("<image>\nand", "a")]
    assert [remark.first for remark in facts.changed.values()] == [("5",)]


SKIPPED = [
    ({"conversations": said("q", "")}, "has an empty reply"),
    ({"conversations": said("q", " \n")}, "has an empty reply"),
    ({"conversations": said("q", "a", "r", "")}, "has an empty reply"),
    ({"conversations": []}, "has no reply"),
    ({"conversations": said("q")}, "has no reply"),
    ({"conversations": said("q", "a")[1:]}, "has no reply"),
    ({"conversations": said("q", "a") + said("q", "a")[1:]}, "has two turns of one speaker in a row"),
    ({"conversations": said("<image> q", "a")}, "has more marks <image> than images"),
    ({"image": "a.jpg", "conversations": said("q", "a")}, "has fewer marks <image> than images"),
    ({"image": ["a.jpg", "b.jpg"], "conversations": said("<image> q", "a")}, "has fewer marks <image> than images"),
    ({"image": ["a.jpg", "b.jpg"], "conversations": said("<image><image><image>", "a")}, "has more marks <image> than images"),
    ({"image": "a.jpg", "conversations": said("<image>", "a", "<image>", "b")}, "has more marks <image> than images"),
    ({"image": "a.jpg", "conversations": said("<image>", "an <image>")}, "has <image> in a reply"),
    ({"video": "v.mp4", "conversations": said("q", "a")}, "shows a video"),
    ({"conversations": said("q", "\ud83d")}, "holds half a surrogate pair, which is no Unicode text"),
    ({"image": "\ud83d.jpg", "conversations": said("<image>", "a")}, "holds half a surrogate pair, which is no Unicode text"),
]


@pytest.mark.parametrize(("row", "what"), SKIPPED)
def test_rows_that_cannot_be_learned_from_are_counted_and_named(tmp_path, images, row, what):
    good = {"id": "ok", "image": "b.jpg", "conversations": said("<image>", "a")}
    facts, found = make(tmp_path, [good, {"id": "bad", **row}, good], expected=3)
    assert [r.id for r in found] == ["ok", "ok#2"]
    assert (facts.source_rows, facts.rows, facts.images) == (3, 2, 1)
    assert {key: (remark.rows, remark.first) for key, remark in facts.skipped.items()} == {what: (1, ("bad",))}


def test_an_id_of_half_a_surrogate_pair_can_be_named(tmp_path):
    facts, found = make(tmp_path, [{"id": "\ud83d", "conversations": said("q", "a")}, {"conversations": said("q", "a")}])
    assert [row.id for row in found] == ["\\ud83d", "row 1"]
    assert facts.skipped == {}


STOPS = [
    ([5], r"row 0 \(from 0\): expected an object, got int"),
    ([{"id": 1}], "'conversations' must be a list of objects"),
    ([{"conversations": [{"from": "human", "value": 5}]}], "'value' must be text, got 5"),
    ([{"conversations": [{"from": "sytem", "value": "x"}]}], "unknown speaker 'sytem'.*Known: assistant, gpt, human, user"),
    ([{"image": 5, "conversations": said("q", "a")}], "'image' must be a path or a list of paths, got 5"),
    ([{"image": {"bytes": "x"}, "conversations": said("q", "a")}], "'image' must be a path"),
    ([{"image": "../x.jpg", "conversations": said("<image>", "a")}], r"the image '\.\./x\.jpg' is not inside the image folder"),
    ([{"image": "a/../../x.jpg", "conversations": said("<image>", "a")}], "is not inside the image folder"),
    ([{"image": "/etc/passwd", "conversations": said("<image>", "a")}], "is not inside the image folder"),
    ([{"conversations": said("q", "")}], r"has no row that can be learned from \(1 row\(s\): has an empty reply\)"),
    ([], "has no row that can be learned from"),
]


@pytest.mark.parametrize(("rows", "message"), STOPS)
def test_what_is_no_row_stops_the_run(tmp_path, images, rows, message):
    with pytest.raises(UserError, match=message):
        make(tmp_path, rows)
    assert not (tmp_path / "index" / "corpus.json").exists()


def test_the_number_of_rows_is_checked(tmp_path):
    with pytest.raises(UserError, match="has 1 rows, expected 2: half a download"):
        make(tmp_path, [{"conversations": said("q", "a")}], expected=2)


# ---- unreadable images ----------------


@pytest.fixture
def broken(tmp_path, images):
    data = (images / "a.jpg").read_bytes()
    for number in range(7):
        (images / f"cut{number}.jpg").write_bytes(data[: len(data) // 2 + number])
    rows = [{"id": f"r{n}", "image": f"cut{n % 7}.jpg", "conversations": said("<image>", "a")} for n in range(9)]
    both = {"id": "two", "image": ["b.jpg", "cut0.jpg"], "conversations": said("<image><image>", "a")}
    good = [{"id": f"g{n}", "image": name, "conversations": said("<image>", "a")} for n, name in enumerate(("b.jpg", "a.jpg"))]
    return [good[0], *rows, both, good[1], {"id": "t", "conversations": said("q", "a")}]


def test_unreadable_images_stop_the_run_and_the_first_are_named(tmp_path, broken):
    with pytest.raises(UserError) as caught:
        make(tmp_path, broken, allowed=6)
    text = str(caught.value)
    assert "7 of its images cannot be read (allowed: 6)" in text
    assert "cut0.jpg cannot be read (image file is truncated" in text
    assert "cut4.jpg" in text and "cut5.jpg" not in text and "and 2 more" in text
    assert "--skip-unreadable 7" in text
    assert "\n" not in text


def test_unreadable_images_that_are_allowed_go_with_their_rows(tmp_path, broken):
    facts, found = make(tmp_path, broken, allowed=7, expected=13)
    assert [row.id for row in found] == ["g0", "g1", "t"]
    assert (facts.source_rows, facts.rows, facts.rows_with_image, facts.images) == (13, 3, 2, 2)
    assert [bad.key for bad in facts.unreadable] == [f"cut{n}.jpg" for n in range(7)]
    remark = facts.skipped["shows an unreadable image"]
    assert (remark.rows, remark.first) == (10, ("r0", "r1", "r2", "r3", "r4"))
    assert [int(n) for n in found.shows] == [1, 1, 0]
    assert all(path.name != "again" for path in (tmp_path / "index").iterdir())
    whole, _ = make(tmp_path, [broken[0], *broken[11:]])
    assert whole.rows == 3
    assert len(found.pictures(found[0])) == 1


def test_a_missing_image_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"image folder .*nowhere does not exist"):
        make(tmp_path, [{"image": "a.jpg", "conversations": said("<image>", "a")}], root=tmp_path / "nowhere")
    facts, _ = make(tmp_path, [{"conversations": said("q", "a")}], root=tmp_path / "nowhere")
    assert facts.images == 0, "a corpus of text needs none"


def test_images_are_decoded_once_and_not_again_after_an_interruption(tmp_path, images, monkeypatch):
    seen = []
    real = indexing.images.fault

    def watched(path):
        seen.append(path.name)
        if path.name == "deep-stop.jpg":
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(indexing.images, "fault", watched)
    monkeypatch.setattr(indexing, "_CHUNK", 2)
    names = ["a.jpg", "b.jpg", "a.jpg", "deep/er/c.jpg", "deep-stop.jpg"]
    rows = [{"image": name, "conversations": said("<image>", "a")} for name in names]
    jpeg(images / "deep-stop.jpg")
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, rows)
    assert sorted(set(seen[:2])) == ["a.jpg", "b.jpg"]
    monkeypatch.setattr(indexing.images, "fault", lambda path: seen.append(f"again {path.name}") or real(path))
    jpeg(images / "b.jpg", side=50)
    facts, _ = make(tmp_path, rows)
    assert facts.images == 4
    again = sorted(name for name in seen if name.startswith("again"))
    assert "again a.jpg" not in again, "it did not change"
    assert "again b.jpg" in again, "it is another file now"


def test_a_damaged_record_of_checks_is_named(tmp_path, images):
    rows = [{"image": "a.jpg", "conversations": said("<image>", "a")}]
    (tmp_path / "checks").write_bytes(b"no data base" * 100)
    with pytest.raises(UserError, match=r"checks is damaged \(file is not a database\)\. Delete it"):
        make(tmp_path, rows)


# ---- the file ----------------

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(texts, values, max_size=4), min_size=1, max_size=8),
    st.sampled_from([1, 2, 3, 7, 64]),
    st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_values_are_what_json_says_however_the_text_is_cut(tmp_path_factory, rows, chunk, pretty):
    path = tmp_path_factory.mktemp("json") / "x.json"
    for text in (
        json.dumps(rows, indent=2 if pretty else None, ensure_ascii=pretty),
        "\n".join(json.dumps(row, ensure_ascii=pretty) for row in rows),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(llava_json, "_CHUNK", chunk)
            assert [element.value for element in llava_json.elements(path)] == rows


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("chunk", [16, 1 << 20])
def test_a_file_that_is_cut_anywhere_is_damaged(tmp_path, monkeypatch, lines, chunk):
    monkeypatch.setattr(llava_json, "_CHUNK", chunk)
    rows = [{"id": n, "conversations": said("q", "a")} for n in range(3)]
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    whole = {text.index(json.dumps(row)) + len(json.dumps(row)) for row in rows} if lines else set()
    path = tmp_path / "x.json"
    for end in range(1, len(text)):
        path.write_text(text[:end])
        if end in whole or end - 1 in whole:
            assert len(list(llava_json.elements(path))) >= 1, "whole lines: the expected number of rows finds what is missing"
            continue
        with pytest.raises(UserError, match=r"row \d \(from 0\): .*(is it whole|not valid JSON)"):
            list(llava_json.elements(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("  \n ", "is empty"),
        ("<html>", "neither a JSON array nor JSON lines: it begins with '<'"),
        ('[{"a": 1} {"b": 2}]', "behind row 0 .* expected ',' or ']'"),
        ('[{"a": 1}] {"b": 2}', "behind row 0 .* more text behind the list"),
        ('[{"a": 1},]', r"row 1 \(from 0\): not valid JSON"),
        ('[{"a": 1}, {"b" 2}' + " " * 100 + "]", r"row 1 \(from 0\): not valid JSON \(Expecting ':' delimiter\)"),
        ('{"a": 1}\n{"b": \n', r"row 1 \(from 0\): not valid JSON .*; the file ends there: is it whole"),
    ],
)
def test_damaged_files_are_named(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        list(llava_json.elements(path))


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'[{"a": "\xff\xfe"}]')
    with pytest.raises(UserError, match="not UTF-8 text"):
        list(llava_json.elements(path))
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        list(llava_json.elements(tmp_path / "none.json"))
    path.write_bytes(b'\xef\xbb\xbf[{"a": 1}]')
    assert [element.value for element in llava_json.elements(path)] == [{"a": 1}]


def test_a_damaged_file_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(llava_json, "_LONGEST", 1 << 16)
    monkeypatch.setattr(llava_json, "_CHUNK", 1 << 10)
    path = tmp_path / "x.json"
    path.write_text('[{"a": "' + "x" * (1 << 20) + '"}]')
    read = []

    class Watched(llava_json._Elements):
        def _more(self, characters):
            read.append(characters)
            return super()._more(characters)

    monkeypatch.setattr(llava_json, "_Elements", Watched)
    with pytest.raises(UserError, match=r"row 0 \(from 0\): not valid JSON \(Unterminated string"):
        list(llava_json.elements(path))
    assert sum(read) <= 4 << 16


def test_lengths_are_llavas(tmp_path, images):
    """Words of all turns, marks included, as ``modality_lengths`` counts them; without an image LLaVA makes them negative."""
    rows = [
        {"image": "a.jpg", "conversations": said("<image>\nWhat is it?", "A cat.")},
        {"conversations": said("One two", "three", "four five", "six")},
    ]
    _, found = make(tmp_path, rows)
    llava = [sum(len(c["value"].split()) for c in row["conversations"]) * (1 if "image" in row else -1) for row in rows]
    assert (np.where(found.shows > 0, found.lengths, -found.lengths) == llava).all()
