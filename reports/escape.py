"""Escapes for Markdown, LaTeX and HTML. Nothing that comes from data is trusted: it is shown as the text that it is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from markupsafe import Markup, escape

#: Letters of footnotes, as plain text carries them; Unicode has no raised q.
LETTERS = "abcdefghijklmnoprstuvwxyz"
RAISED = dict(zip(LETTERS, "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", strict=True))

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}",
    '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "§": r"\S{}", "·": r"\textperiodcentered{}", "…": r"\dots{}",
    "−": "$-$", "–": "--", "—": "---", "±": r"$\pm$", "×": r"$\times$", "→": r"$\rightarrow$", "≤": r"$\leq$", "≥": r"$\geq$",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "λ": r"$\lambda$", "μ": r"$\mu$", "ρ": r"$\rho$", "σ": r"$\sigma$",
    "τ": r"$\tau$", "Δ": r"$\Delta$", "’": "'", "‘": "'", "“": r"\textquotedblleft{}", "”": r"\textquotedblright{}",
    **{raised: rf"\textsuperscript{{{letter}}}" for letter, raised in RAISED.items()},
}  # fmt: skip


def _tex_character(character: str) -> str:
    """One character; what pdfLaTeX's T1 fonts lack is named by its code point: it would not compile."""
    if character in _TEX:
        return _TEX[character]
    if character.isspace() or unicodedata.category(character) in ("Cc", "Cf"):
        return " "
    if " " <= character <= "~" or ("À" <= character <= "ÿ" and character != "÷"):
        return character
    return f"[U+{ord(character):04X}]"


def tex(text: object) -> str:
    """Escape for LaTeX text; needs ``\\usepackage[T1]{fontenc}``."""
    plain = unicodedata.normalize("NFC", str(text))
    apart = re.sub(r"([-,'])(?=\1)", "\\1\u200b", plain)  # T1 fonts join --, ,, and '' to other characters
    return "".join("{}" if c == "\u200b" else _tex_character(c) for c in apart)


def tex_code(text: object) -> str:
    """Set a name in typewriter, breakable after ``+`` and ``@``."""
    safe = tex(text).replace(r"\textquotedbl{}", r"{\textquotedbl}").replace("'", r"\textquotesingle{}")
    return r"\texttt{" + re.sub(r"([+@])", r"\1\\allowbreak{}", safe) + "}"


def markdown(text: object) -> str:
    """Escape for Markdown running text and table cells; one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def markdown_code(text: object) -> str:
    """Set a name as code; a pipe would end a table cell even there."""
    flat = " ".join(str(text).split()).replace("|", "\\|")
    fence = "``" if "`" in flat else "`"
    return f"{fence}{flat}{fence}"


def with_code(text: str, plain: Callable[[str], object], code: Callable[[str], object]) -> str:
    """Treat what stands between backticks as code and the rest as text."""
    parts = str(text).split("`")
    return "".join(str(code(p) if k % 2 else plain(p)) for k, p in enumerate(parts))


def prose_markdown(text: str) -> str:
    """Escape a sentence with `names` for Markdown."""
    return with_code(text, lambda p: re.sub(r"([\\*_<>|#])", r"\\\1", p), markdown_code)


def prose_tex(text: str) -> str:
    """Escape a sentence with `names` for LaTeX."""
    return with_code(text, tex, tex_code)


def breakable(text: object) -> Markup:
    """Escape a name for HTML and let long recipes break after + and @."""
    return Markup(re.sub(r"([+@])", r"\1<wbr>", str(escape(text))))


def prose_html(text: str) -> Markup:
    """Escape a sentence with `names` for HTML."""
    return Markup(with_code(text, escape, lambda p: f"<code>{breakable(p)}</code>"))
