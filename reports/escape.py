"""Escapes for Markdown, LaTeX and HTML. Nothing that comes from data is trusted."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup, escape

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--", "β": r"$\beta$", "|": r"\textbar{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "λ": r"$\lambda$", '"': r"\textquotedbl{}", "§": r"\S{}",
    "ρ": r"$\rho$", "±": r"$\pm$",
}  # fmt: skip


def tex(text: object) -> str:
    """Escape for LaTeX text."""
    return "".join(_TEX.get(c, c) for c in str(text))


def tex_code(text: object) -> str:
    """Set a name in typewriter, breakable after ``+`` and ``@``; a quote character needs no T1 font there."""
    safe = "".join("{\\textquotedbl}" if c == '"' else _TEX.get(c, c) for c in str(text))
    return r"\texttt{" + re.sub(r"([+@])", r"\1\\allowbreak{}", safe) + "}"


def markdown(text: object) -> str:
    """Escape for Markdown running text and table cells; one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def markdown_code(text: object) -> str:
    """Set a name as code; a pipe would end a table cell even there."""
    flat = " ".join(str(text).split()).replace("|", "\\|")
    fence = "``" if "`" in flat else "`"
    return f"{fence}{flat}{fence}"


def _with_code(text: str, plain: Any, code: Any) -> str:
    """Treat what stands between backticks as code and the rest as text."""
    parts = str(text).split("`")
    return "".join(str(code(p) if k % 2 else plain(p)) for k, p in enumerate(parts))


def prose_markdown(text: str) -> str:
    """Escape a sentence with `names` for Markdown."""
    return _with_code(text, lambda p: re.sub(r"([\\*_<>|#])", r"\\\1", p), markdown_code)


def prose_tex(text: str) -> str:
    """Escape a sentence with `names` for LaTeX."""
    return _with_code(text, tex, tex_code)


def breakable(text: object) -> Markup:
    """Escape a name for HTML and let long recipes break after + and @."""
    return Markup(re.sub(r"([+@])", r"\1<wbr>", str(escape(text))))


def prose_html(text: str) -> Markup:
    """Escape a sentence with `names` for HTML."""
    return Markup(_with_code(text, escape, lambda p: f"<code>{breakable(p)}</code>"))
