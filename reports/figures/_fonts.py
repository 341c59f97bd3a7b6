"""The style's font cut down to what reports write, because embedding the whole of it takes most of a PDF's time."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import matplotlib as mpl
from fontTools import subset  # type: ignore[import-untyped]
from matplotlib import font_manager

#: Unlike the original's, as its licence asks of changed versions.
NAME = "Report Sans"
_FACES = ("DejaVuSans", "DejaVuSans-Bold")
#: Latin, Greek, punctuation, arrows and operators; other letters come from the original, which stands behind it.
_LETTERS = [*range(0x20, 0x250), *range(0x370, 0x400), *range(0x2000, 0x2070), *range(0x2190, 0x2300)]


@functools.cache
def small() -> list[str]:
    """Return the families to look for, the small copy first; it is made on the first call, in a temporary folder."""
    folder = tempfile.TemporaryDirectory(prefix="report-fonts-")
    for face in _FACES:
        target = Path(folder.name) / f"{face}.ttf"
        _cut(Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf", target)
        font_manager.fontManager.addfont(target)
    _kept.append(folder)  # removed when the program ends
    return [NAME, "DejaVu Sans"]


_kept: list[tempfile.TemporaryDirectory[str]] = []


def _cut(source: Path, target: Path) -> None:
    """Write the glyphs of ``_LETTERS`` without ligatures and hints, which no PDF of matplotlib's uses."""
    options = subset.Options(layout_features=[], hinting=False, name_IDs=["*"], notdef_outline=True)
    options.drop_tables += ["GSUB", "GPOS", "GDEF", "FFTM"]
    font = subset.load_font(source, options)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=_LETTERS)
    cutter.subset(font)
    for record in font["name"].names:
        if record.nameID in (1, 4, 6, 16):  # family, full name, PostScript name
            text = str(record).replace("DejaVu Sans", NAME).replace("DejaVuSans", NAME.replace(" ", ""))
            record.string = text
    subset.save_font(font, target, options)
