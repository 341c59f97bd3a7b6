"""Golden prompts: what lmms-eval 0.7.3's task code asks. A change here is upstream drift, and moves every score."""

from __future__ import annotations

import pytest
import toys

import tasks
from tasks import bridge

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."

GOLDEN = {
    "scienceqa": {
        0: "Which object is number 0?\nA. a cup\nB. a dog" + LETTER,
        1: "Context: Look closely.\nWhich object is number 1?\nA. a cup\nB. a dog\nC. a tree" + LETTER,
    },
    "gqa": {0: "What color is item 0?" + SHORT},
    "textvqa": {0: "What does the ibm sign say?" + SHORT},  # .capitalize() also lowers the rest
    "pope": {0: "Is there a dog in image 0?" + SHORT},
    "mmbench": {
        0: "What is shown (11)? There are several options:\nA. red\nB. green\nC. blue\nD. black\n" + LETTER,
        4: "Count them. What is shown (12)? There are several options:\nA. two\nB. three\n" + LETTER,
    },
    "mme": {0: "Is object 0 here?" + SHORT},
}


@pytest.mark.parametrize("benchmark", GOLDEN)
def test_golden_prompts(benchmark):
    found = tasks.prompts(tasks.protocol(f"{benchmark}@miniature"), toys.questions(benchmark))
    assert {n: found[n] for n in GOLDEN[benchmark]} == GOLDEN[benchmark]
    assert len(found) == len(toys.questions(benchmark).questions)


@pytest.mark.parametrize("benchmark", toys.BENCHMARKS)
def test_the_request_that_a_model_gets(benchmark):
    """Prompt, decoding and picture as the protocol says, through lmms-eval's own request building."""
    protocol, questions = tasks.protocol(f"{benchmark}@miniature"), toys.questions(benchmark)
    task = bridge.build(protocol, questions)
    task.build_all_requests()
    prompts = tasks.prompts(protocol, questions)
    assert len(task.instances) == len(questions.questions)
    for instance, question, expected in zip(task.instances, questions.questions, prompts, strict=True):
        prompt, generation, doc_to_visual, doc_id, _, split = instance.args
        assert prompt == expected
        assert generation["max_new_tokens"] == protocol.generation.max_new_tokens
        assert generation["until"] == list(protocol.generation.until)
        assert generation["do_sample"] is False
        shown = doc_to_visual(task.dataset[split][doc_id])
        assert len(shown) == (question.image is not None)
        for image in shown:
            assert (toys.np.asarray(image) == questions.images[question.image]).all()


def test_documents_are_fresh_on_every_access():
    """TextVQA's scoring rewrites the answers in place."""
    docs = bridge.Docs(toys.questions("textvqa"), pictures=False)
    docs[0]["answers"][0] = "rewritten"
    assert docs[0]["answers"][0] == "stop"
