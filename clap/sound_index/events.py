"""Scores of texts over time, and the events that they show. Imports no torch."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class SegmentScores:
    """Scores of texts in the windows of a recording.

    Args:
        texts: n texts.
        times: (windows, 2), start and end of each window in seconds.
        scores: (windows, n), cosine similarity, or probability after `softmax`.
        hop: seconds between windows.
        kind: what the scores are.
    """

    texts: tuple[str, ...]
    times: np.ndarray
    scores: np.ndarray
    hop: float
    kind: str = "cosine similarity"

    def softmax(self, logit_scale: float) -> "SegmentScores":
        """Probabilities of the texts in each window, as of zero-shot classification, from cosine similarities."""
        logits = logit_scale * self.scores
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return replace(self, scores=powers / powers.sum(axis=1, keepdims=True), kind="probability")


@dataclass(frozen=True)
class Event:
    """A part of a recording in which a text scores above the threshold; seconds."""

    start: float
    end: float
    text: str
    peak: float


def find_events(segments: SegmentScores, *, threshold: float, median: int = 3) -> list[Event]:
    """Events in order of their start.

    The scores of a text are smoothed by a running median over `median` windows; consecutive windows with a smoothed
    score of `threshold` or more are one event. A window covers the time around its center that is closer to it than
    to the centers of its neighbors; the first one from its start, the last one to its end. The peak is the highest
    unsmoothed score in the event.
    """
    centers = segments.times.mean(axis=1)
    edges = np.concatenate([segments.times[:1, 0], (centers[1:] + centers[:-1]) / 2, segments.times[-1:, 1]])
    events = []
    for text, scores in zip(segments.texts, segments.scores.T, strict=True):
        above = np.concatenate([[False], running_median(scores, median) >= threshold, [False]])
        changes = np.flatnonzero(above[1:] != above[:-1])
        for first, end in zip(changes[::2], changes[1::2], strict=True):
            events.append(Event(float(edges[first]), float(edges[end]), text, float(scores[first:end].max())))
    return sorted(events, key=lambda event: (event.start, event.end))


def running_median(values: np.ndarray, width: int) -> np.ndarray:
    """Median of each value and its neighbors, (n,); at the ends the outermost value is repeated."""
    check_median(width)
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)


def check_median(width: int) -> None:
    """ValueError if a number of windows has no middle one."""
    if width < 1 or width % 2 == 0:
        raise ValueError(f"median={width} is not an odd number of windows; give 1, 3, 5, ...")
