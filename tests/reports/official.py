"""A simulated run under the papers' protocols: the simulator's answers, called by other names."""

import shutil
from pathlib import Path

import pandas as pd

from harness import base

#: miniature protocol -> the published ones that its answers stand for here
NAMES = {
    "scienceqa@miniature": ("scienceqa@all", "scienceqa@img"),
    "gqa@miniature": ("gqa@llava",),
    "textvqa@miniature": ("textvqa@ocr",),
    "pope@miniature": ("pope@mean-f1",),
    "mmbench@miniature": ("mmbench@circular",),
    "mme@miniature": ("mme@perception",),
}


def write(run: Path, folder: Path, model: str = "mtgv/MobileLLaMA-1.4B-Chat", students: dict[str, str] | None = None) -> Path:
    """Copy a simulated run to ``folder`` under published names; ``students``: old name -> new name."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("report", "replies", "images"))
    for name in ("scores.parquet", "diagnostics.parquet"):
        frame = pd.read_parquet(folder / name).replace({"student": students or {}})
        parts = [frame[frame["protocol"] == old].assign(protocol=new) for old, news in NAMES.items() for new in news]
        pd.concat(parts, ignore_index=True).to_parquet(folder / name)
    shutil.rmtree(folder / "questions")
    manifest = base.read_json(folder / "manifest.json")
    protocols = {new: manifest["protocols"][old] for old, news in NAMES.items() for new in news}
    manifest |= {"protocols": protocols, "models": {"base": model, "teacher": "mtgv/MobileVLM_V2-7B"}}
    for old, new in (students or {}).items():
        (folder / "students" / old).rename(folder / "students" / new)
    manifest["students"] = [(students or {}).get(s, s) for s in manifest["students"]]
    base.write_json(folder / "manifest.json", manifest)
    return folder
