"""Batches for the tests of taps."""

import torch

from students.batch import TokenBatch
from students.data.pack import collate


def batch_of(made, rows=None):
    encoded, pixels, packed = made
    return collate(encoded, packed if rows is None else rows, pixels)


def own_columns(batch, k):
    """The columns of sample k's tokens, from the row's segments."""
    row = int(batch.prompt_row[k])
    return row, [c for c in range(batch.segment.shape[1]) if batch.segment[row, c] == batch.question[k]]


def token_batch(student, batch, hidden, paired):
    logits = student.head(student.supervised(hidden, batch))
    return TokenBatch(logits, torch.zeros_like(logits), batch.labels, batch.sample, paired)
