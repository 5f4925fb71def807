"""Captions compared by their words: equal up to case and punctuation, or nearly so."""

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
    """A caption's words with single spaces; empty where it has none."""
    return " ".join(find_words(caption))


class CaptionIndex:
    """Normalised captions, to be searched for near ones: those whose sets of words have a Jaccard index of `threshold`.

    Exact and quick by prefix filtering (Bayardo et al. 2007): of two sets that are as near as that, the few rarest
    words of each share one.

    Args:
        threshold: words in both, divided by words in either; above 0, at most 1.
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
        """The rarest words, so many that without them too few would be left to share."""
        rarest = sorted(words, key=lambda word: (self.frequency[word], word))
        return rarest[: len(words) - self.min_shared_words(len(words)) + 1]

    def min_shared_words(self, count: int) -> int:
        return math.ceil(self.threshold * count - 1e-9)

    def search(self, caption: str) -> list[tuple[str, float]]:
        """Captions of the index that are near, and how near, the nearest first."""
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
