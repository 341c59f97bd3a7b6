"""Golden prompts of the official protocols over real questions, and LLaVA's own question files as a second witness."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import yaml
from real import GOLD, ROOT, lines, needs_data

import tasks
from tasks import rules

GOLDEN = yaml.safe_load((Path(__file__).parent / "golden_prompts.yaml").read_text(encoding="utf-8"))
PATHS = {**GOLD, "scienceqa": "scienceqa/common/test_docs_structured.jsonl"}
FULL = {"scienceqa": "scienceqa@all", "gqa": "gqa@llava", "textvqa": "textvqa@ocr", "pope": "pope@mean-f1",
        "mmbench": "mmbench@circular", "mme": "mme@lmms"}  # fmt: skip


@lru_cache
def docs(benchmark):
    gold = tasks.gold(tasks.protocol(FULL[benchmark]), ROOT / PATHS[benchmark])
    found = {question.id: question for question in gold.questions}
    if benchmark == "textvqa":
        tokens = {str(row["question_id"]): row["ocr_tokens"] for row in lines("textvqa/common/ocr_tokens.jsonl")}
        found = {name: replace(q, doc={**q.doc, "ocr_tokens": tokens[name]}) for name, q in found.items()}
    return found


def prompts(name, questions):
    return tasks.prompts(tasks.protocol(name), tasks.QuestionSet(tuple(questions), {}, "golden"), scored=False)


@pytest.mark.parametrize("benchmark", GOLDEN)
def test_ten_questions_of_each_benchmark_cover_every_official_protocol(benchmark):
    assert len(GOLDEN[benchmark]) == 10
    covered = {name for entries in GOLDEN[benchmark].values() for entry in entries for name in entry["protocols"]}
    official = {name for name in tasks.names() if name.startswith(f"{benchmark}@") and tasks.protocol(name).official}
    assert covered == official


@needs_data
@pytest.mark.parametrize("benchmark", GOLDEN)
def test_golden_prompts(benchmark):
    asked: dict[str, dict[str, str]] = {}
    for name, entries in GOLDEN[benchmark].items():
        for entry in entries:
            for protocol in entry["protocols"]:
                asked.setdefault(protocol, {})[name] = entry["prompt"]
    for protocol, golden in asked.items():
        found = prompts(protocol, [docs(benchmark)[name] for name in golden])
        assert dict(zip(golden, found, strict=True)) == golden, protocol


@needs_data
def test_the_prompts_are_those_of_llavas_question_files():
    """gqa@llava on 1,733 questions with gold, pope@mean-f1 on all 8,910."""
    theirs = {row["question_id"]: row["text"] for row in lines("gqa/common/llava_gqa_testdev_balanced.jsonl")}
    ours = docs("gqa")
    assert prompts("gqa@llava", ours.values()) == [theirs[name] for name in ours]
    gold = tasks.gold(tasks.protocol("pope@mean-f1"), ROOT / GOLD["pope"])
    by_id = {question.id: question for question in gold.questions}
    rows = lines("pope/common/llava_pope_test.jsonl")
    named = [by_id[gold.keys[row["category"], str(row["question_id"])]] for row in rows]
    assert prompts("pope@mean-f1", named) == [row["text"] for row in rows]


@needs_data
def test_scienceqas_conversations_ask_what_the_structured_rows_ask():
    """LLaVA's file tells no hint from a question; the prompt is the same string all the same."""
    prompt = rules.rule("prompt", "scienceqa.prompt")
    joined = {q.id: q for q in tasks.gold(tasks.protocol("scienceqa@all"), ROOT / GOLD["scienceqa"]).questions}
    apart = docs("scienceqa")
    assert [prompt(q.doc) for q in apart.values()] == [prompt(joined[name].doc) for name in apart]


@needs_data
def test_real_questions_of_textvqa_are_in_lower_case():
    """So that a capital first letter is all that LLaVA's and lmms-eval's ``capitalize`` changes on this set."""
    assert not [q.id for q in docs("textvqa").values() if q.doc["question"] != q.doc["question"].lower()]
