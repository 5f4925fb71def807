"""Compares captions by their words, ignoring case and punctuation."""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def find_words(caption: str) -> list[str]:
    """The words of a caption, without case and punctuation."""
    return WORD.findall(unicodedata.normalize("NFKC", caption).casefold())


def normalize_caption(caption: str) -> str:
    """The words of a caption joined by single spaces; empty if it has none."""
    return " ".join(find_words(caption))


class CaptionIndex:
    """Index of normalized captions that finds near ones: word sets with a Jaccard index of at least `threshold`.

    Exact, and fast by prefix filtering (Bayardo et al. 2007): the rarest words of two near captions have one in common.

    Args:
        threshold: words in both captions divided by words in either; above 0, at most 1.
    """

    def __init__(self, captions: Iterable[str], threshold: float) -> None:
        self.threshold = threshold
        self.captions = list(dict.fromkeys(captions))
        self.words = [frozenset(caption.split()) for caption in self.captions]
        self.frequency = Counter(word for words in self.words for word in words)
        self.postings: dict[str, list[int]] = defaultdict(list)
        for position, words in enumerate(self.words):
            for word in self.rarest_words(words):
                self.postings[word].append(position)

    def rarest_words(self, words: frozenset[str]) -> list[str]:
        """The rarest words of a caption, at least one of which is in every near caption."""
        rarest = sorted(words, key=lambda word: (self.frequency[word], word))
        return rarest[: len(words) - self.min_shared_words(len(words)) + 1]

    def min_shared_words(self, count: int) -> int:
        return math.ceil(self.threshold * count - 1e-9)

    def search(self, caption: str) -> list[tuple[str, float]]:
        """Near captions of the index with their Jaccard index, nearest first."""
        words = frozenset(caption.split())
        shortest, longest = self.min_shared_words(len(words)), len(words) / self.threshold + 1e-9
        candidates = {position for word in self.rarest_words(words) for position in self.postings.get(word, ())}
        found = []
        for position in candidates:
            other = self.words[position]
            if shortest <= len(other) <= longest:
                shared = len(words & other)
                similarity = shared / (len(words) + len(other) - shared)
                if similarity >= self.threshold - 1e-9:
                    found.append((self.captions[position], similarity))
        return sorted(found, key=lambda item: (-item[1], item[0]))
