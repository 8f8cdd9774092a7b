"""A second tokenizer: words of 16 bits, as many of the most frequent ones as there are ids for, and single bytes."""

import collections
import itertools
import json
import re

import numpy as np

from jpeglm.core.errors import InputError
from jpeglm.core.ranges import whole
from jpeglm.data.tokenizers import Tokenizer


class WordTokenizer(Tokenizer):
    SECTION = {"vocab_size": (320, whole(259, 2**16)), "documents": (100, whole(1))}

    def __init__(self, text):
        try:
            self.text, (self.regex, self.behavior, words) = text, json.loads(text)
        except ValueError as error:
            raise InputError(f"not the words of a tokenizer: {error}") from error
        self.token_bytes = [b""] * 3 + [bytes([byte]) for byte in range(256)] + [bytes.fromhex(word) for word in words]
        self.vocab_size, self.ids = len(self.token_bytes), {word: at for at, word in enumerate(self.token_bytes)}

    @classmethod
    def learn(cls, settings, documents, codec):
        regex, behavior = codec.separator_regex, codec.separator_behavior
        bare = cls(json.dumps([regex, behavior, []]))
        counts = collections.Counter(word.hex() for data in documents for word in bare.words(data) if len(word) == 2)
        words = sorted(counts, key=lambda word: (-counts[word], word))[: settings["vocab_size"] - 259]
        return cls(json.dumps([regex, behavior, words]))

    def words(self, data):
        found = re.finditer(self.regex, "".join(chr(0x2800 + byte) for byte in data))
        cuts = [match.end() if self.behavior == "merged_with_previous" else match.start() for match in found]
        pieces = itertools.pairwise([0, *cuts, len(data)])
        return [data[at : min(at + 2, end)] for start, end in pieces for at in range(start, end, 2)]

    def encode_batch(self, batch):
        known = [[[word] if word in self.ids else [word[:1], word[1:]] for word in self.words(data)] for data in batch]
        return [np.array([self.ids[part] for parts in data for part in parts], np.uint16) for data in known]
