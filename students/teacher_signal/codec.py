"""Distributions to arrays and back, in each form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from students.bins import Bins
from students.stored import Spoken, held
from students.teacher_signal.forms import Form

Arrays = Mapping[str, NDArray[Any]]
#: Logits that are turned into arrays at once; in float64 they are 32 MiB.
AT_ONCE = 1 << 22
#: numpy has no bfloat16: its bits are kept.
_KEPT_AS: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


def columns(form: Form, vocabulary: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Return {file: (type, shape of one token)}."""
    kept = _KEPT_AS[form.dtype]
    if form.k is not None:
        return {"logits": (kept, (form.k + 1,)), "tokens": (np.int32, (form.k,))}
    found: dict[str, tuple[Any, tuple[int, ...]]] = {"logits": (kept, (vocabulary,))}
    return found | {"peak": (np.float32, ())} if form.name == "half" else found


def encode(form: Form, logits: Tensor) -> dict[str, NDArray[Any]]:
    """Turn logits [N, V] into the arrays of :func:`columns`, on the CPU."""
    logits = logits.detach()
    if form.name == "exact":
        return {"logits": bits(logits, form.dtype)}
    if form.k is None:
        peak = logits.float().amax(-1)
        return {"logits": _float16(logits.float() - peak[:, None]), "peak": peak.cpu().numpy()}
    log_p = logits.double().log_softmax(-1)
    top = log_p.topk(form.k, -1)
    rest = log_p.scatter_(-1, top.indices, -torch.inf).logsumexp(-1, keepdim=True)
    values = torch.cat([top.values, rest], -1)
    kept = _float16(values) if form.dtype == "float16" else values.float().cpu().numpy()
    return {"logits": kept, "tokens": top.indices.to(torch.int32).cpu().numpy()}


def decode(form: Form, arrays: Arrays) -> Tensor | Bins:
    """Turn arrays of N tokens into logits float32 [N, V], or bins, on the CPU."""
    found = floats(np.asarray(arrays["logits"]), form.dtype)
    if form.k is not None:
        return Bins(torch.from_numpy(np.asarray(arrays["tokens"]).astype(np.int64)), found.log_softmax(-1))
    return found if form.name == "exact" else found + torch.from_numpy(np.asarray(arrays["peak"]))[:, None]


def at(form: Form, arrays: Arrays, tokens: NDArray[np.int64], width: int) -> Spoken:
    """Return what arrays say about ``tokens``; V = ``width``. Logits that are too many at once are read part by part."""

    def read(where: slice) -> Tensor | Bins:
        return decode(form, {name: array[tokens[where]] for name, array in arrays.items()})

    return read(slice(None)) if form.k is not None else held(len(tokens), width, cast(Callable[[slice], Tensor], read))


def bits(values: Tensor, dtype: str) -> NDArray[Any]:
    """Return values as numpy keeps them on disk."""
    if dtype == "bfloat16":
        kept: NDArray[Any] = values.to(torch.bfloat16).contiguous().cpu().view(torch.int16).numpy().view(np.uint16)
        return kept
    return np.asarray(values.to(getattr(torch, dtype)).cpu().numpy())


def floats(kept: NDArray[Any], dtype: str) -> Tensor:
    """Return what :func:`bits` kept, in float32."""
    if dtype == "bfloat16":
        return torch.from_numpy(kept.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(kept).float()


def _float16(values: Tensor) -> NDArray[Any]:
    """Round to float16; what is finite stays so, at a probability that float32 does not know either."""
    least = torch.finfo(torch.float16).min
    kept = torch.where(values == -torch.inf, values, values.clamp(min=least))
    return np.asarray(kept.to(torch.float16).cpu().numpy())


def beyond(form: Form, tokens: NDArray[Any], shared: int) -> int | None:
    """Return a token that bins name and that is not among the first ``shared`` of the vocabulary, or None."""
    assert form.k is not None
    for part in chunks(len(tokens), form.k):
        most = int(tokens[part].max())
        if most >= shared:
            return most
    return None


def chunks(rows: int, width: int) -> Iterator[slice]:
    """Yield slices of rows, each of at most :data:`AT_ONCE` numbers."""
    size = max(1, AT_ONCE // max(1, width))
    return (slice(start, start + size) for start in range(0, rows, size))
