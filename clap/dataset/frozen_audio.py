"""Outputs of a frozen audio encoder in place of waveforms: a clip with a known output is not decoded."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from clap.corpus import Clip, Corpus
from clap.dataset.cache import MIN_AGE, read_identity
from clap.dataset.feature_store import FeatureStore, Rows, Use, make_key
from clap.waveform import AudioError, AudioHeader

if TYPE_CHECKING:  # clips.py and loader.py use this module
    from clap.dataset.loader import Batch

NO_KEY = np.zeros(2, np.uint64)  # of a clip whose features are not stored


@dataclass
class Entry:
    """A clip in the store.

    Args:
        key: (2,) uint64, zeros if the features must not be stored.
        features: (width,) float32, NaN if they are not known. length: samples of the clip as it is read.
        is_cut: whether the recording is longer than what is read of it.
    """

    key: np.ndarray
    features: np.ndarray
    length: int = 0
    is_cut: bool = False

    @property
    def is_known(self) -> bool:
        return not np.isnan(self.features[0])


class FrozenAudio:
    """Finds the outputs of a frozen audio encoder for the clips of a dataset, and adds new ones.

    A key has the identity of the recording, so that a changed one is decoded again, and all that determines which
    samples of it are read. A recording younger than two seconds, which may still change, is not stored.
    """

    def __init__(self, store: FeatureStore, use: Use) -> None:
        self.store, self.use = store, use

    def find(self, corpus: Corpus, clip: Clip, max_duration: float | None) -> Entry:
        """The entry of a clip, of which `max_duration` seconds are read (None: all)."""
        key = find_key(corpus, clip, max_duration)
        if key is None:
            return Entry(NO_KEY, np.full(self.store.width, np.nan, np.float32))
        rows = self.store.find(key[None])
        return Entry(key, rows.features[0], int(rows.lengths[0]), bool(rows.is_cut[0]))

    def describe_loaded(
        self, entry: Entry, corpus: Corpus, clip: Clip, max_duration: float | None, samples: np.ndarray
    ) -> Entry:
        """The entry of a clip that has been loaded, without a key if it has changed meanwhile."""
        is_cached = samples.dtype == np.int16  # not if the cache of waveforms is not writable
        is_same = np.array_equal(entry.key, find_key(corpus, clip, max_duration)) and is_cached == has_cache(corpus)
        is_cut = is_longer(corpus.read_header(clip), max_duration)
        return replace(entry, key=entry.key if is_same else NO_KEY, length=len(samples), is_cut=is_cut)

    @torch.no_grad()
    def complete(
        self, batch: "Batch", encode: Callable[[Tensor, Tensor], Tensor], *, size: int | None = None
    ) -> "Batch":
        """A batch on its device with the features of all clips; those that are not known are computed and added.

        Args:
            encode: waveforms (rows, samples), lengths (rows,) -> (rows, width), in evaluation mode.
            size: rows that are encoded at once; None: all.
        """
        if batch.features is None:
            return batch
        device, keys, features = (
            batch.samples.device,
            batch.feature_keys.numpy().view(np.uint64),
            batch.features.clone(),
        )
        missing = find_unknown(features)
        if len(missing):  # computed since they were loaded, or by another process
            features[missing] = torch.from_numpy(self.store.find(keys[missing.numpy()]).features)
            missing = find_unknown(features)
        self.use.found += len(batch) - len(missing)
        for start in range(0, len(missing), size or len(batch)):
            with self.use.computing(len(rows := missing[start : start + (size or len(batch))])):
                lengths = batch.lengths[rows]
                waveform = batch.waveform[rows.to(device), : int(lengths.max())]
                features[rows] = encode(waveform, lengths).float().cpu()
                self.add(batch, rows, features)
        return replace(batch, features=features.to(device, non_blocking=device.type != "cpu"))

    def add(self, batch: "Batch", rows: Tensor, features: Tensor) -> None:
        """Store rows of a batch, except those whose audio has no key."""
        stored = rows[(batch.feature_keys[rows] != 0).any(dim=1)]
        found = Rows(features[stored].numpy(), batch.lengths[stored].numpy(), batch.is_cut[stored].numpy())
        self.store.add(batch.feature_keys[stored].numpy().view(np.uint64), found)


def find_unknown(features: Tensor) -> Tensor:
    """Numbers of the rows of features (rows, width) that are not known."""
    return features[:, 0].isnan().nonzero().flatten()


def find_key(corpus: Corpus, clip: Clip, max_duration: float | None) -> np.ndarray | None:
    """Key (2,) of the audio that is read of a clip; None if it may still change or its corpus does not identify it."""
    try:
        found = identify(corpus, clip)
    except (OSError, AudioError):
        return None  # loading reports it
    if found is None or found[1] > time.time() - MIN_AGE:
        return None
    return make_key(found[0], max_duration, corpus.longest_clip, has_cache(corpus))


def identify(corpus: Corpus, clip: Clip) -> tuple[str, float] | None:
    """Text that identifies the audio of a clip, and its last change in seconds since 1970; None if it is not known.

    Raises:
        OSError, AudioError: the recording is missing or cannot be fetched.
    """
    if (text := corpus.identify(clip)) is not None:
        return text, 0.0
    recording = corpus.locate(clip) if corpus.loads_recordings else None
    return None if recording is None else read_identity(recording)


def is_identified(corpus: Corpus, clip: Clip) -> bool:
    """Whether the audio of a clip has an identity, as long as its recording exists."""
    return corpus.identify(clip) is not None or (corpus.loads_recordings and clip.recording is not None)


def has_cache(corpus: Corpus) -> bool:
    """Whether the waveforms of a corpus are from a cache, rounded to 16 bits."""
    return corpus.cache is not None


def is_longer(header: AudioHeader | None, max_duration: float | None) -> bool:
    """Whether a clip is longer than `max_duration` seconds (None: any length is read), or its length is not known."""
    return max_duration is not None and (header is None or header.num_frames > round(max_duration * header.sample_rate))
