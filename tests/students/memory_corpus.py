"""A corpus in memory, for tests that need rows of a certain kind."""

import hashlib

import numpy as np

from students.data.conversations import IMAGE, Conversation, Turn


class MemoryCorpus:
    """Rows given as (images, *turns); an image key is the seed of its pixels."""

    name = "memory"

    def __init__(self, rows, side=24):
        self.rows = [
            Conversation(f"row{k}", "memory", tuple(images), tuple(Turn(*turn) for turn in turns))
            for k, (images, *turns) in enumerate(rows)
        ]
        self.side = side
        self.digest = hashlib.sha256(repr(self.rows).encode()).hexdigest()
        self.lengths = np.array([sum(len(t.user) + len(t.assistant) for t in row.turns) for row in self.rows], np.int32)
        self.shows = np.array([len(row.images) for row in self.rows], np.int16)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def picture(self, key):
        return np.random.default_rng(int(key)).integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)


def asked(text, images=1):
    return IMAGE * images + "\n" + text if images else text


#: Rows without, with one and with two images, of one turn and of two.
MIXED = [
    (("1",), (asked("What colour is it ?"), "red .")),
    ((), ("Two plus three ?", "The sum is five .")),
    (("2", "3"), (asked("Which is larger ?", 2), "The second one is larger ."), ("Why ?", "It rains .")),
    (("4",), (asked("How many ?"), "three"), ("Say one word .", "yes")),
    ((), ("Is it ?", "no")),
    (("5",), (asked("Describe it"), "a small dog on a large chair beside an open window")),
    (("6", "7", "8"), (asked("Which one ?", 2), "the first"), (asked("And now ?"), "the third")),
    (("9",), (asked("What is in it ?"), "a blue square")),
]
