"""Every family is evaluated by the code that evaluates all checkpoints: gold replies get the probabilities of training."""

import numpy as np
import pytest
import torch
import twin_families as twins

from students import models
from students.data.conversations import Conversation, Turn
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
