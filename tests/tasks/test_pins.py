"""Data without a published revision are pinned at the first load; other data later are an error."""

from __future__ import annotations

import pytest

from harness.base import UserError
from tasks import pins


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_PINS", str(tmp_path / "pins"))
    return tmp_path / "pins"


def test_the_first_load_is_recorded_and_the_same_data_pass(folder):
    pins.check("gqa@llava", 3, "a" * 64, "hub")
    pins.check("gqa@llava", 3, "a" * 64, "elsewhere")
    assert [path.name for path in folder.iterdir()] == ["gqa@llava.json"]


@pytest.mark.parametrize(("rows", "digest"), [(4, "a" * 64), (3, "b" * 64)])
def test_other_data_are_an_error_that_says_how_to_accept_them(folder, rows, digest):
    pins.check("gqa@llava", 3, "a" * 64, "hub")
    with pytest.raises(UserError) as caught:
        pins.check("gqa@llava", rows, digest, "data/gqa")
    message = str(caught.value)
    assert "data/gqa" in message
    assert "hub" in message
    assert str(folder / "gqa@llava.json") in message
    (folder / "gqa@llava.json").unlink()
    pins.check("gqa@llava", rows, digest, "data/gqa")


def test_a_damaged_pin_is_an_error_not_a_new_pin(folder):
    pins.check("x@y", 1, "a", "hub")
    (folder / "x@y.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        pins.check("x@y", 1, "a", "hub")


def test_the_default_place_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("HARNESS_PINS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert pins.folder() == tmp_path / "beta-kd-bench" / "pins"
