r"""LaTeX: every table compiles alone by ``\input``, and the text of hostile names is in the PDF."""

import re
import shutil
import subprocess
from pathlib import Path

import official
import pandas as pd
import pytest
import simulate

from harness.base import read_json, write_json
from reports import escape, figures, frames, markup, tables
from reports.build import build
from reports.measures import Estimates

#: Names that LaTeX would choke on, swallow or change, and how they must read in the PDF.
HOSTILE = {
    r"a_b&c%d$e#f{g}h~i^j\k": r"a_b&c%d$e#f{g}h~i^j\k",
    "x<y>z|w'v\"u": "x<y>z|w'v\"u",
    "two--three---four": "two--three---four",
    "comma,,quote``tick": "comma,,quote``tick",
    "[first]*star": "[first]*star",
    r"\input{/etc/passwd}": r"\input{/etc/passwd}",
    "naïve-Öl-ß": "naïve-Öl-ß",
    "模型": "[U+6A21][U+578B]",
    "line\nbreak\tand\x07bell": "line break and bell",
}
ALONE = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage{booktabs}
\begin{document}
\input{%s}
\end{document}
"""


def compiled(folder: Path, name: str) -> Path:
    """Compile ``name``.tex in ``folder`` with the first engine that is there and return the PDF."""
    commands = {
        "tectonic": ["tectonic", f"{name}.tex"],
        "latexmk": ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"],
        "pdflatex": ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"],
    }
    command = next((c for engine, c in commands.items() if shutil.which(engine)), None)
    if command is None:
        pytest.skip("no LaTeX: neither tectonic nor latexmk nor pdflatex is installed")
    done = subprocess.run(command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    log = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, log[-2000:]
    return folder / f"{name}.pdf"


def text_of(pdf: Path) -> str:
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed, so the PDF cannot be read")
    return subprocess.run(["pdftotext", "-raw", str(pdf), "-"], capture_output=True, text=True, check=True).stdout


def pages_of(pdf: Path) -> int:
    if shutil.which("pdfinfo") is None:
        pytest.skip("pdfinfo is not installed, so pages cannot be counted")
    told = subprocess.run(["pdfinfo", str(pdf)], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"Pages:\s+(\d+)", told).group(1))


def squeezed(text: str) -> str:
    """Text without spaces, and with the quotes and dashes that a PDF's fonts map to their plain characters."""
    plain = text.translate(str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "˜": "~", "ˆ": "^", "∗": "*"}))
    return re.sub(r"\s+", "", re.sub(r"-\n", "", plain))  # words are hyphenated at the ends of lines


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    students = ["ce", "cosine_probs", "ce+fkl@manual", "ce+fkl@instance", "ce+cosine_probs@instance", "ce+align_kd@fixed"]
    return simulate.write_run(tmp_path_factory.mktemp("latex") / "run", seeds=(0, 1), clusters=14, steps=6, students=students)


@pytest.fixture(scope="module")
def report(simulated, tmp_path_factory):
    """The LaTeX of a run under published protocols, with a student whose names are hostile, without its figures."""
    folder = official.write(simulated, tmp_path_factory.mktemp("latex") / "official")
    scores = pd.read_parquet(folder / "scores.parquet")
    own = scores[scores["student"] == "base"]
    extra = [own.assign(student=name, kind="external") for name in HOSTILE]
    pd.concat([scores, *extra], ignore_index=True).to_parquet(folder / "scores.parquet")
    manifest = read_json(folder / "manifest.json")
    manifest["preset"]["title"] = "Hostile & 100 % _title_"
    manifest["command"] = r"python -m harness.run --out C:\runs\{a}_b"
    write_json(folder / "manifest.json", manifest)
    out = tmp_path_factory.mktemp("latex") / "report"
    with pytest.MonkeyPatch.context() as patch:  # one figure is enough here, drawing them all takes most of the time
        patch.setattr("reports.drawn.drawings", lambda: [d for d in figures.drawings() if d.name == "accuracy-cost"])
        build(folder, formats=("tex",), out=out, resamples=50)
    return out


def test_the_report_compiles_with_every_table_and_figure(report):
    pdf = compiled(report, "report")
    names = sorted(path.stem for path in (report / "tables").glob("*.tex"))
    assert {"accuracy", "cost", "paper-1", "paper-2", "paper-4", "paper-6"} <= set(names)
    assert len(names) / 3 <= pages_of(pdf) <= 2 * len(names) + 4
    text = squeezed(text_of(pdf))
    for word in ("Hostile&100%_title_", "Paper’sTable".replace("’", "'"), "harness.report--run", r"C:\runs\{a}_b"):
        assert word.lower() in text.lower(), word
    log = (report / "report.log").read_text(encoding="latin-1") if (report / "report.log").is_file() else ""
    wide = [float(w) for w in re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide\)", log)]
    assert all(w < 10 for w in wide), wide  # a tenth of an inch; tables are scaled to the text


def test_the_text_of_hostile_names_survives(report):
    text = squeezed(text_of(compiled(report, "report")))
    for name, shown in HOSTILE.items():
        assert squeezed(shown) in text, name


@pytest.mark.parametrize("name", ["accuracy", "difference-ce", "cost", "paper-1", "paper-2", "paper-4", "paper-6"])
def test_each_table_compiles_alone(report, tmp_path, name):
    shutil.copy(report / "tables" / f"{name}.tex", tmp_path)
    (tmp_path / "alone.tex").write_text(ALONE % name)
    pdf = compiled(tmp_path, "alone")
    assert 1 <= pages_of(pdf) <= 2
    text = squeezed(text_of(pdf))
    assert "Runofficial,manifest" in text
    if name == "paper-2":
        assert "54.9" in text and "/53.1" in text and "contradictsreadingnoteA54.9" in text


def test_two_runs_compile_with_their_column(simulated, tmp_path, monkeypatch):
    monkeypatch.setattr("reports.drawn.drawings", list)
    shutil.copytree(simulated, tmp_path / "run_b&c")
    build([simulated, tmp_path / "run_b&c"], formats=("tex",), layouts=["accuracy"], out=tmp_path / "two", resamples=50)
    for path in (tmp_path / "two" / "tables").glob("*.tex"):
        (tmp_path / "two" / "alone.tex").write_text(ALONE % f"tables/{path.stem}")
        assert "run_b&c" in squeezed(text_of(compiled(tmp_path / "two", "alone")))


@pytest.mark.parametrize(("name", "shown"), HOSTILE.items())
def test_markdown_shows_a_name_as_it_is_on_one_line(name, shown):
    code = escape.markdown_code(name)
    assert "\n" not in code and code.startswith("`") and code.endswith("`")
    assert not re.search(r"(?<!\\)\|", code)


def test_letters_of_footnotes_are_raised_in_every_format():
    assert escape.tex("65.3ᵃ / 65.5ᵇ") == r"65.3\textsuperscript{a} / 65.5\textsuperscript{b}"
    assert "q" not in escape.LETTERS and len(set(escape.RAISED.values())) == len(escape.LETTERS)


def test_columns_match_their_heads(report):
    for path in (report / "tables").glob("*.tex"):
        text = path.read_text()
        spec = re.search(r"\\begin\{tabular\}\{@\{\}(\w+)@\{\}\}", text).group(1)
        body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
        assert len(re.findall(r"(?<!\\)&", body)) == (len(spec) - 1) * body.count(r"\\[2pt]"), path.name


def test_a_long_table_names_itself_on_every_part(simulated, monkeypatch):
    monkeypatch.setattr(markup, "MOST_ROWS", 3)
    made = tables.build("accuracy", tables.layouts(["accuracy"])["accuracy"], Estimates(frames.load(simulated), resamples=50))
    assert [len(part) for part in markup.tex_pages(made)] == [3, 3, 3, 1]
