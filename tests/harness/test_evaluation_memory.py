"""Too little memory while evaluating: one line that names the batch; other errors stay what they are."""

from types import SimpleNamespace

import pytest
import torch

from harness.base import UserError
from harness.stages import evaluate

CONFIG = {"name": "teacher", "protocol": {"name": "pope@lmms"}, "batch_size": 16, "dtype": "bfloat16"}


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory.\nmore"), MemoryError(), RuntimeError("DefaultCPUAllocator: no")]
)
def test_a_shortage_names_the_batch_and_what_needs_less(error, monkeypatch):
    def short(context):
        raise error

    monkeypatch.setattr(evaluate, "_run", short)
    with pytest.raises(UserError, match=r"evaluating teacher on pope@lmms, 16 .*batch_size \(now 16\), dtype") as found:
        evaluate.run(SimpleNamespace(config=CONFIG))
    assert "\n" not in str(found.value)
    assert "(now bfloat16)" in str(found.value)


def test_other_errors_are_not_hidden(monkeypatch):
    def broken(context):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(evaluate, "_run", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        evaluate.run(SimpleNamespace(config=CONFIG))
