"""Files of a Hugging Face directory with something wrong in them, by seeds."""

import json
import random
from collections.abc import Iterator
from typing import Any

ODD = [
    None, True, False, 0, 1, -1, 7, 10**9, 2**31, 2**63, 10**300, 1.5, -0.0, float("nan"), float("inf"), float("-inf"),
    1e-320, 1e308, "", "3", "\ud800", "\0", "x" * 5000, "../x", ".", "..", "/etc/passwd", [], {}, [[]], {"a": {}},
    [None], {"rope_type": "default"}, {"rope_theta": float("nan")}, {"rope_theta": "x"}, "llama", "<s>",
    {"type": "NFC"}, {"type": "Prepend", "prepend": "x"}, {"type": "Whitespace"}, {"strategy": {"Fixed": 10**9}},
]  # fmt: skip
INSERTED = [b"\xff\xfe", b"[", b"[" * 200_000, b'{"a":' * 100_000, b"\0", b"NaN", b"1e999", b"9" * 5000]


def mutated(content: bytes, seed: int) -> bytes:
    """A JSON file with one or two values changed, removed or added, or with bytes changed, removed or put in."""
    rng = random.Random(seed)
    if rng.random() < 0.2:
        return _bytewise(bytearray(content), rng)
    document = json.loads(content)
    for _ in range(rng.choice([1, 1, 2])):
        places = list(_places(document))
        depth = rng.choice(sorted({len(place) for place in places}))  # or the vocabulary would get them all
        *outer, last = rng.choice([place for place in places if len(place) == depth])
        around = document
        for key in outer:
            around = around[key]
        if (action := rng.random()) < 0.7:
            around[last] = rng.choice(ODD)
        elif action < 0.85 or isinstance(around, list):
            del around[last]
        else:
            around[rng.choice(["", "type", "\ud800", "model.layers.9.x", "model.layers."])] = rng.choice(ODD)
        if not document:
            break
    return json.dumps(document).encode()


def _places(value: Any, above: tuple = ()) -> Iterator[tuple]:
    """The ways to all values inside, as keys and indices."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*above, key)
        if isinstance(inner, (dict, list)):
            yield from _places(inner, (*above, key))


def _bytewise(content: bytearray, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    if (action := rng.random()) < 0.3:
        return bytes(content[:place])
    if action < 0.6:
        return bytes(content[:place] + rng.choice(INSERTED) + content[place:])
    for _ in range(rng.randrange(1, 6)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)
