"""Digests of clips, by which a run that resumes and a sweep that is repeated recognize their data. Imports no torch."""

import hashlib
from collections.abc import Iterable

import numpy as np

from clap.corpus import Clip


def digest_clips(clips: Iterable[Clip]) -> np.ndarray:
    """64-bit digest of each clip, int64 (clips,): its id, captions, label and keywords, not its recording."""
    texts = (repr((clip.id, clip.captions, clip.label, clip.keywords)) for clip in clips)
    digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), dtype="<i8")


def hash_digests(digests: np.ndarray) -> str:
    """One digest of all clips in their order, 16 hexadecimal digits."""
    return hashlib.sha256(digests.tobytes()).hexdigest()[:16]
