"""Digests of clips, by which a run that resumes and a sweep that is repeated recognize their data. Imports no torch."""

import hashlib
from collections.abc import Iterable

import numpy as np

from clap.corpus import Clip
from clap.dataset.clip_table import ClipTable, JoinedClips, digest_clip


def digest_clips(clips: Iterable[Clip]) -> np.ndarray:
    """64-bit digest of each clip, int64 (clips,): its id, captions, label and keywords, not its recording."""
    if isinstance(clips, ClipTable | JoinedClips):
        return clips.numbers("digest")
    return np.fromiter(map(digest_clip, clips), dtype=np.int64)


def hash_digests(digests: np.ndarray) -> str:
    """One digest of all clips in their order, 16 hexadecimal digits."""
    return hashlib.sha256(digests.tobytes()).hexdigest()[:16]
