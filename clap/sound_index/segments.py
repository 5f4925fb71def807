"""Similarity of a long recording and texts over time."""

import os
from collections.abc import Sequence

import numpy as np

from clap.model import Clap
from clap.sound_index.events import SegmentScores
from clap.sound_index.windows import WindowPolicy, embed_recording


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
