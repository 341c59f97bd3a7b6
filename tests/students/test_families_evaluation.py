"""Every family is evaluated by the code that evaluates all checkpoints: gold replies get the probabilities of training."""

import numpy as np
import pytest
import torch
import twin_families as twins

from students import models
from students.data.conversations import Conversation, Turn
from tasks import batching
from tasks.lmms import CheckpointModel

PROMPT, ANSWER = "Which one is larger, the first or the second?", "the second"


@pytest.fixture(scope="module", params=twins.FAMILIES)
def folder(request, tmp_path_factory):
    made = tmp_path_factory.mktemp(request.param) / "twin"
    twins.twin(request.param, made)
    return made


@pytest.mark.parametrize("images", [0, 1])
def test_gold_replies_have_the_probabilities_that_training_gives_them(folder, images):
    picture = twins.picture(40, 56)
    adapter = models.load(folder)
    adapter.model.eval()
    turn = Turn("<image>\n" * images + PROMPT, ANSWER)
    row = adapter.row(Conversation("a", "x", ("p",) * images, (turn,)), [picture] * images)
    batch = adapter.collate([row], (0,))
    with torch.no_grad():
        trained = adapter.head(adapter.supervised(adapter.hidden(batch), batch)).log_softmax(-1).numpy()
    asked = CheckpointModel(folder)
    ids = asked.answer_ids(ANSWER)
    assert ids == batch.labels.tolist()[: len(ids)]  # a template may put more after the end token
    (found,) = asked.gold_logprobs([PROMPT], [picture if images else None], [ANSWER])
    np.testing.assert_allclose(found, trained[: len(ids), : found.shape[1]], atol=2e-5, rtol=1e-5)


def test_a_batch_of_questions_gets_the_probabilities_of_each_alone(folder):
    asked = CheckpointModel(folder, batch_size=3)
    shown = [twins.picture(40, 56, seed) for seed in range(3)]
    together = asked.gold_logprobs([PROMPT] * 3, shown, [ANSWER] * 3)
    alone = CheckpointModel(folder, batch_size=1).gold_logprobs([PROMPT] * 3, shown, [ANSWER] * 3)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 1e-4  # the images matter


def test_prompts_are_made_ready_as_the_familys_processor_makes_them(folder):
    """Text with a blank image of the right size, features of each image apart: together what the processor gives at once."""
    asked = CheckpointModel(folder)
    sizes = [(40, 56), (40, 56), (90, 30), (40, 56)]
    shown = [twins.picture(*size, seed) for seed, size in enumerate(sizes)]
    texts = [PROMPT, PROMPT.replace("larger", "smaller"), PROMPT, PROMPT]
    made = asked.desk.prompts(texts, lambda n: [shown[n]])
    items = [batching.Item(n, row.layout, row.length) for n, row in enumerate(made.rows)]
    for batch in batching.equal(items, 3):
        rendered = [asked.desk.render(texts[n], 1) for n in batch]
        bos = asked.processor.tokenizer.bos_token
        expected = asked.processor(
            text=rendered,
            images=[[shown[n]] for n in batch],
            return_tensors="pt",
            add_special_tokens=bos is None or not rendered[0].startswith(bos),
        )
        found = asked.desk.batch(made, batch)
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_padded_replies_and_gold_replies_are_those_of_each_question_alone(folder, monkeypatch):
    """Or the family's batches are not padded: a trial on the model decides."""
    monkeypatch.setattr(batching, "LEAST", 0)
    texts = [PROMPT + " Say it." * n for n in range(8)]
    shown = [twins.picture(40, 56, seed) for seed in range(8)]
    found = []
    for size in (1, 8):
        asked = CheckpointModel(folder, batch_size=size)
        made = asked.desk.prompts(texts, lambda n: [shown[n]])
        replies = [(r.text, r.token_counts.output_tokens) for r in asked.replies(made, [(5, ())] * 8)]
        found.append((replies, asked.predictions(made, [ANSWER, "the first one"] * 4)))
    assert found[0][0] == found[1][0]
    for a, b in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)
    assert {name: made["padding"] for name, made in asked.how.items()} == {"replies": "left", "gold": "right"}
