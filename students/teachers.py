"""The teacher's signal by its short name; see the package :mod:`students.teacher_signal`."""

from students.teacher_signal.keys import data_digest, signal_key
from students.teacher_signal.packed import FACTS, VERSION, cache
from students.teacher_signal.reading import TeacherSignal
from students.vision.pictures import pixel_table

__all__ = ["ARRAYS", "VERSION", "TeacherSignal", "cache", "data_digest", "pixel_table", "signal_key"]

#: Files of the exact form.
ARRAYS = ("logits", *FACTS)
