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
    row = adapter.row(Conversation("a", "x", ("p",) * images, (Turn("<image>\n" * images + PROMPT, ANSWER),)), [picture] * images)
    batch = adapter.collate([row], (0,))
    with torch.no_grad():
        trained = adapter.head(adapter.supervised(adapter.hidden(batch), batch)).log_softmax(-1).numpy()
    asked = CheckpointModel(folder)
    ids = asked.answer_ids(ANSWER)
    assert ids == batch.labels.tolist()[: len(ids)]  # a template may put more after the end token
    (found,) = asked.gold_logprobs([PROMPT], [picture if images else None], [ANSWER])
    np.testing.assert_allclose(found, trained[: len(ids), : found.shape[1]], atol=2e-5, rtol=1e-5)
