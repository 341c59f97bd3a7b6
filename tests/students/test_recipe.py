"""One spelling per recipe, and errors that name what is wrong."""

import subprocess
import sys

import pytest

from harness.base import UserError
from students import recipe


@pytest.mark.parametrize(
    ("text", "name", "channels", "weighting", "variant"),
    [
        ("ce", "ce", ("ce",), None, None),
        ("ce@fixed", "ce", ("ce",), None, None),
        ("fkl", "fkl", ("fkl",), None, None),
        ("ce+fkl", "ce+fkl@fixed", ("ce", "fkl"), "fixed", None),
        ("fkl+ce@fixed", "ce+fkl@fixed", ("ce", "fkl"), "fixed", None),
        ("fkl+cosine_probs+ce@beta_task", "ce+cosine_probs+fkl@task", ("ce", "cosine_probs", "fkl"), "beta_task", None),
        ("ce+fkl@instance", "ce+fkl@instance", ("ce", "fkl"), "beta_instance", None),
        ("ce+fkl@fixed@lambda0.3", "ce+fkl@fixed@lambda0.3", ("ce", "fkl"), "fixed", "lambda0.3"),
        ("fkl@fixed@t2", "fkl@fixed@t2", ("fkl",), "fixed", "t2"),
    ],
)
def test_every_spelling_leads_to_one_name(text, name, channels, weighting, variant):
    read = recipe.parse(text)
    assert (read.name, read.channels, read.weighting, read.variant) == (name, channels, weighting, variant)
    assert recipe.parse(read.name) == read


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ce+fkll", ("'fkll'", "'fkl'")),
        ("ce+cosine", ("'cosine'", "'cosine_probs'")),
        ("ce+fkl@tusk", ("'tusk'", "'task'")),
        ("ce+fkl@beta_instanse", ("beta_instanse", "instance")),
        ("ce+fkl@fixed@lambda5", ("'lambda5'", "'lambda4'")),
        ("ce+ce", ("'ce'", "twice")),
        ("fkl@task", ("'fkl'", "alone")),
        ("ce@instance", ("alone",)),
        ("teacher", ("teacher", "row")),
        ("base", ("base", "row")),
        ("", ("malformed",)),
        ("ce+", ("malformed",)),
        ("CE+fkl", ("'CE'",)),
        ("ce+fkl@", ("malformed",)),
        ("ce/../x", ("ce/../x",)),
        ("ce+fkl@fixed@a@b", ("3 '@'",)),
    ],
)
def test_bad_recipes_name_the_fault_and_the_nearest_word(text, words):
    with pytest.raises(UserError) as error:
        recipe.parse(text, variants=("lambda0.3", "lambda4"))
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_words_are_key_errors_too():
    with pytest.raises(KeyError):
        recipe.parse("ce+nothing")


def test_parsing_and_listing_need_no_torch():
    code = (
        "import sys; from students import energies, options, recipe, weightings; recipe.parse('ce+fkl@task');"
        "energies.names(), weightings.names(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
