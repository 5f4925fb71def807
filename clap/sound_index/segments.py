"""Similarity of a long recording and texts over time, and the events in it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clap.model import Clap
from clap.sound_index.windows import WindowPolicy, embed_recording


@dataclass(frozen=True)
class SegmentScores:
    """Scores of texts in the windows of a recording.

    Args:
        texts: n texts.
        times: (windows, 2), start and end of each window in seconds.
        scores: (windows, n), cosine similarity, or whatever a caller derives from it.
        hop: seconds between windows.
    """

    texts: tuple[str, ...]
    times: np.ndarray
    scores: np.ndarray
    hop: float


@dataclass(frozen=True)
class Event:
    """A part of a recording in which a text scores above the threshold; seconds."""

    start: float
    end: float
    text: str
    peak: float


def score_over_time(
    clap: Clap,
    path: str | os.PathLike,
    texts: Sequence[str],
    *,
    hop: float | None = None,
    window: float | None = None,
    batch_size: int = 16,
) -> SegmentScores:
    """Cosine similarity of each text and each window of a recording, which is read in flat memory.

    Args:
        hop: seconds between windows; None: a quarter of the window.
        window: seconds, at most the model's window, which is the default; shorter ones locate events more precisely.

    Raises:
        AudioError: the recording is invalid. ValueError: invalid texts, window or hop.
    """
    policy = WindowPolicy.choose(clap, window=window, hop=hop, overlap=4)
    text = clap.get_text_embeddings(texts).cpu()  # first, so that a tokenizer error appears early
    times, scores = [], []
    for batch_times, embeddings in embed_recording(clap, path, policy, batch_size=batch_size):
        times.append(batch_times)
        scores.append((embeddings @ text.T).numpy())
    return SegmentScores(tuple(texts), np.concatenate(times), np.concatenate(scores), policy.hop)


def find_events(segments: SegmentScores, *, threshold: float, median: int = 3) -> list[Event]:
    """Events in order of their start.

    The scores of a text are smoothed by a running median over `median` windows; consecutive windows with a smoothed
    score of `threshold` or more are one event. A window stands for the time around its center that is closer to it than
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
    """Median of each value and its neighbors, (n,); at the ends the outermost value is repeated.

    Raises:
        ValueError: the width is not odd and positive.
    """
    if width < 1 or width % 2 == 0:
        raise ValueError(f"median={width} is not 1 or another odd number of windows; change it")
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)
