"""The real gold and predictions of ``HARNESS_REAL_DATA``; a test that needs them is skipped, with the reason, without them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

GIVEN = os.environ.get("HARNESS_REAL_DATA")
ROOT = Path(GIVEN or "absent")
needs_data = pytest.mark.skipif(
    GIVEN is None or not ROOT.is_dir(), reason="HARNESS_REAL_DATA names no folder with real gold and predictions"
)
GOLD = {
    "scienceqa": "scienceqa/common/llava_test_CQM-A.json",
    "gqa": "gqa/cases/llava15_13b_oodhead/ood_testdev_head.json",
    "textvqa": "textvqa/common/TextVQA_0.5.1_val.json",
    "pope": "pope/common/labels_e3e39262_2910_3000_3000",
    "mmbench": "mmbench/common/mmbench_dev_20230712_gold.jsonl",
    "mme": "mme/common/gold_Your_Results",
}


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / path).read_text(encoding="utf-8").split("\n") if line.strip()]


def value(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))
