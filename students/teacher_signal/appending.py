"""An array on disk that grows at its end: a numpy file whose number of rows is written last."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError
from students.data.mapped import REMAKE


class Appender:
    """Appends rows to ``path``; numpy leaves room in a file's header for as many rows as there may come.

    Args:
        path: a .npy file.
        dtype: of the array.
        shape: of one row.
        rows: how many an earlier attempt wrote whole, which are kept; None to start anew.

    Raises:
        UserError: when the file has fewer rows than that.
    """

    def __init__(self, path: Path, dtype: Any, shape: tuple[int, ...], rows: int | None = None) -> None:
        self.path, self.dtype, self.shape, self.rows = path, np.dtype(dtype), shape, rows or 0
        self._width = self.dtype.itemsize * int(np.prod(shape))
        self._file: BinaryIO = path.open("wb" if rows is None else "rb+")
        self._header()
        self._start = self._file.tell()
        if rows is not None:
            end = self._start + rows * self._width
            if path.stat().st_size < end:
                self._file.close()
                raise UserError(f"{path} is cut off: {path.stat().st_size} bytes, {end} were written. {REMAKE}")
            self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)

    def _header(self) -> None:
        facts = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.rows, *self.shape)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, facts)

    def add(self, values: NDArray[Any]) -> None:
        """Append rows [n, ...]."""
        if values.shape[1:] != self.shape:
            raise ValueError(f"rows of shape {values.shape[1:]} do not fit {self.path}, whose rows are {self.shape}")
        self._file.write(np.ascontiguousarray(values, self.dtype).tobytes())
        self.rows += len(values)

    def flush(self) -> None:
        """Put what was appended onto the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def finish(self) -> list[int]:
        """Write how many rows there are, let go of the file, and return the array's shape."""
        self._header()
        if self._file.tell() != self._start:
            raise RuntimeError(f"the header of {self.path} grew")
        self.flush()
        self._file.close()
        return [self.rows, *self.shape]
