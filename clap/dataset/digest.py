"""Digests of clips, by which a run that resumes and a sweep that is repeated recognize their data. Imports no torch."""

import hashlib
import json
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clap.corpus import Clip
from clap.dataset.clip_table import BATCH, ClipTable, JoinedClips, decode, digest_clip

MANIFEST = ("id", "captions", "label")  # what makes clips the same evaluation task
MOST_TEXTS = 100_000  # clips whose texts are sorted and hashed, 10 µs each


def digest_clips(clips: Iterable[Clip]) -> np.ndarray:
    """64-bit digest of each clip, int64 (clips,): its id, captions, label and keywords, not its recording."""
    if isinstance(clips, ClipTable | JoinedClips):
        return clips.numbers("digest")
    return np.fromiter(map(digest_clip, clips), dtype=np.int64)


def hash_digests(digests: np.ndarray) -> str:
    """One digest of all clips in their order, 16 hexadecimal digits."""
    return hashlib.sha256(digests.tobytes()).hexdigest()[:16]


def digest_manifest(clips: JoinedClips) -> str:
    """Hash of ids, captions and labels in any order, 16 hexadecimal digits; of many clips, of their 64-bit digests."""
    if len(clips) > MOST_TEXTS:
        return hash_digests(np.sort(clips.numbers("digest")))
    batches = [pa.array(map(json.dumps, list_entries(batch)), pa.string()) for batch in clips.batches(*MANIFEST)]
    texts = pa.chunked_array(batches, pa.string())
    order, digest = pc.sort_indices(texts), hashlib.sha256(b"[")
    for first in range(0, len(texts), BATCH):
        own = ", ".join(texts.take(order[first : first + BATCH]).to_pylist())
        digest.update((", " * (first > 0) + own).encode())
    digest.update(b"]")
    return digest.hexdigest()[:16]


def list_entries(batch: pa.Table) -> Iterator[list]:
    rows = zip(*(batch[name].to_pylist() for name in MANIFEST), strict=True)
    return ([decode(clip_id), sorted(captions), label] for clip_id, captions, label in rows)
