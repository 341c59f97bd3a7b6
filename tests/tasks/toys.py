"""A few made-up questions per benchmark in the official column schemas, with the cases that official data hold."""

from __future__ import annotations

import numpy as np

from tasks.questions import Question, QuestionSet, image_key


def picture(seed: int, height: int = 60, width: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)


def scienceqa() -> list[Question]:
    made = []
    for n in range(6):
        choices = ["a cup", "a dog", "a tree"][: 2 + n % 2]
        doc = {
            "question": f"Which object is number {n}?",
            "choices": choices,
            "answer": n % 2,
            "hint": "Look closely." if n % 2 else "",
        }
        made.append(
            Question(f"s{n}", doc, None if n == 2 else f"i{n}", "AB"[n % 2], f"i{n}", "text" if n == 2 else "image", ("C",))
        )
    return made


def gqa() -> list[Question]:
    made = []
    for n, answer in enumerate(["yellow", "blue"] * 3):
        doc = {"id": f"g{n}", "imageId": f"n{n}", "question": f"What color is item {n}?", "answer": answer}
        made.append(Question(f"g{n}", doc, f"i{n}", answer, f"i{n}", "query", ("green", "red")))
    return made


def textvqa() -> list[Question]:
    made = []
    for n in range(6):
        answers = ["stop"] * (10 - 3 * (n % 3)) + ["go"] * (3 * (n % 3))
        doc = {
            "question_id": 34600 + n,
            "question": "what does the IBM sign say?",
            "answers": answers,
            "ocr_tokens": ["STOP", "IBM"],
        }
        made.append(Question(str(34600 + n), doc, f"i{n}", "stop", f"i{n}", "word", ("wrong",)))
    return made


def pope() -> list[Question]:
    made = []
    for n in range(12):
        split, answer = ("random", "popular", "adversarial")[n % 3], ("yes", "no")[n % 2]
        doc = {"question_id": str(n), "question": f"Is there a dog in image {n}?", "answer": answer, "category": split}
        made.append(
            Question(f"{split}:{n}", doc, f"i{n // 6}", answer, f"i{n // 6}", split, ({"yes": "no", "no": "yes"}[answer],))
        )
    return made


def mmbench() -> list[Question]:
    made = []
    for base, options, right, hint in (
        (11, ["red", "green", "blue", "black"], 1, None),
        (12, ["two", "three"], 0, "Count them."),
    ):
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            cells = dict(zip("ABCD", turned + [None] * (4 - len(options)), strict=True))
            answer = "ABCD"[turned.index(options[right])]
            index = base + turn * 1_000_000
            doc = {"index": index, "question": f"What is shown ({base})?", "hint": hint, "answer": answer, **cells}
            doc |= {"category": f"kind {base}", "L2-category": "perception", "source": "toy", "split": "dev"}
            wrong = tuple(x for x in "ABCD"[: len(options)] if x != answer)
            made.append(Question(str(index), doc, f"i{base}", answer, str(base), f"kind {base}", wrong))
    return made


def mme() -> list[Question]:
    made = []
    for category in ("existence", "count", "code_reasoning"):
        for n in range(2):
            for word, answer in (("here", "Yes"), ("missing", "No")):
                pair = f"{category}/{n:04d}.png"
                doc = {"question_id": pair, "question": f"Is object {n} {word}? Please answer yes or no.", "answer": answer,
                       "category": category}  # fmt: skip
                wrong = ({"Yes": "no", "No": "yes"}[answer],)
                made.append(Question(f"{pair}:{answer}", doc, f"i{n}", answer.lower(), pair, category, wrong))
    return made


BENCHMARKS = {"scienceqa": scienceqa, "gqa": gqa, "textvqa": textvqa, "pope": pope, "mmbench": mmbench, "mme": mme}


def questions(benchmark: str) -> QuestionSet:
    from dataclasses import replace

    made = BENCHMARKS[benchmark]()
    pixels = {name: picture(n) for n, name in enumerate(sorted({q.image for q in made if q.image}))}
    keys = {name: image_key(value) for name, value in pixels.items()}
    named = tuple(replace(q, image=q.image and keys[q.image]) for q in made)
    return QuestionSet(named, {keys[name]: value for name, value in pixels.items()}, f"toy {benchmark}")
