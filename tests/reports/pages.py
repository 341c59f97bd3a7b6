"""What the tests of the page share: a browser, a page quickly made, a run of any size."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import simulate

from harness.base import read_json, write_json
from reports import build, explorer, figures, frames, page

#: Text that would run, end a script or open a comment, were it taken for markup.
HOSTILE = "</script><script>window.hacked = 1</script><!-- <img src=x onerror='window.hacked = 2'> ${7*7} {{ 7*7 }} & \u2028"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def launch() -> Iterator[Any]:
    """A headless browser of the system, or a skip with the reason. Nothing is downloaded."""
    import pytest

    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the dev extra has it)")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def poison(run: Path) -> None:
    """Put hostile text wherever a run takes text from data."""
    for path in sorted(run.glob("questions/*.parquet")):
        frame = pd.read_parquet(path)
        for column in ("prompt", "gold", "group"):
            frame.loc[frame.index[0], column] = f"{HOSTILE} {column}"
        frame.to_parquet(path)
    manifest = read_json(run / "manifest.json")
    manifest["preset"] |= {"title": f"Title {HOSTILE}", "description": f"Described {HOSTILE}"}
    manifest["command"] = f"command {HOSTILE}"
    write_json(run / "manifest.json", manifest)
    for path in sorted(run.glob("replies/*/seed0/*.jsonl")):
        lines = path.read_text().splitlines()
        first = frames.read_jsonl(path)[0]["reply"]
        lines[0] = lines[0].replace(f'"reply": "{first}"', f'"reply": "{HOSTILE} reply"')
        path.write_text("\n".join(lines) + "\n")


def built(
    run: Path | list[Path], out: Path, monkeypatch: Any, layouts: tuple[str, ...] = ("accuracy", "difference-fixed")
) -> Path:
    """Build the page with two tables and two figures: the rest has tests of its own."""
    few = [d for d in figures.drawings() if d.name in ("beta-evolution", "teacher-agreement")]
    monkeypatch.setattr("reports.drawn.drawings", lambda: few)
    build.build(run, formats=("html",), layouts=list(layouts), out=out, resamples=50)
    return out / "index.html"


def bare(run: frames.Run, out: Path) -> Path:
    """Render the page around the explorer alone."""
    context = {
        "title": "Bare", "description": "", "suite": None, "facts": [], "conclusions": [], "tables": [], "figures": [],
        "provenance": [], "origins": [], "regenerate": "", "explorer": explorer.write(run, out),
    }  # fmt: skip
    text = page.html_environment().get_template("index.html.jinja").render(**context)
    (out / "index.html").write_text(text)
    return out / "index.html"


def large(folder: Path, rows: int) -> Path:
    """A run of at least ``rows`` questions that eight models answered."""
    return simulate.write_run(folder, clusters=-(-rows // 21), students=simulate.STUDENTS[:6], steps=20)


class Reader:
    """A page that was opened, with what it complained of and what it asked for."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)
        self.page.add_style_tag(content="html { scroll-behavior: auto !important }")

    def explore(self) -> Any:
        self.page.evaluate("document.querySelector('#samples').scrollIntoView()")
        self.page.wait_for_selector("#list-questions .row")
        return self.page

    def count(self) -> int:
        return int(self.page.inner_text(".count:not([hidden])").split()[0].replace(",", ""))

    def focused(self) -> Any:
        return self.page.evaluate(
            "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
        )
