"""From corpora to items: ClapDataset and the sampling of its clips and captions in an epoch."""

import copy
import functools
import hashlib
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from clap import process_group
from clap.audio_encoder.base import find_sample_rate
from clap.config import read_config
from clap.corpus import SPLITS, Clip, Corpus, Part
from clap.dataset.cache import WaveformCache
from clap.dataset.dataset_settings import DatasetSettings, read_dataset_settings
from clap.dataset.exclude import find_unknown, is_excluded, read_exclusions
from clap.dataset.keywords import fill_keyword_templates
from clap.dataset.registry import check_names, check_weights, download_named, find_corpus, open_corpus
from clap.dataset.rewritings import RewrittenCaptions, read_rewritings
from clap.waveform import AudioError, AudioHeader

log = logging.getLogger(__name__)
HEADER_THREADS = 8  # that read headers: on a network drive, each waits for a server


@dataclass
class Item:
    """One clip as a worker loads it.

    Args:
        index: of the clip in the dataset.
        samples: (samples,) float32, or int16 from a cache, which Collate converts without an extra copy.
        group: equal for clips with the same captions.
        problem: the error if the clip cannot be loaded; `samples` is None then.
        scale: factor that converts `samples` to [-1, 1].
        seed: of the random numbers of this clip in this epoch; None in evaluation.
        is_hit: whether the samples were found in a cache; None without one.
    """

    index: int
    samples: np.ndarray | None
    caption: str
    group: int
    problem: str | None = None
    scale: np.float32 = np.float32(1)
    seed: tuple[int, ...] | None = None
    is_hit: bool | None = None

    @property
    def waveform(self) -> np.ndarray | None:
        """Float32 (samples,)."""
        return None if self.samples is None else self.samples * self.scale


class ClapDataset(Dataset):
    """The clips of one split of one or several corpora, each as a waveform with one caption.

    In training, the caption and the part of the clip are random in each epoch and depend only on seed, epoch and
    position; in evaluation they are the first caption and the middle of the clip.

    Args:
        datasets: names (`"ESC50"`) or corpora, concatenated in this order.
        kind: `train`, `val` or `test`.
        root: folder of the corpus, or a folder with a subfolder for each corpus, `clotho` or `Clotho`.
        sample_rate: Hz of the waveforms; by default that of the audio encoder in `config`.
        window: seconds of a clip to read; None: the whole clip, in training at most the corpus's max_duration.
        training: random captions and parts; by default in the train split only.
        weights: draws of each clip of a corpus per training epoch; 0.5: half of the clips, different ones each epoch.
        settings: limits on missing clips, clips to skip, caption sampling.
        config: a composed config (path or mapping) that replaces the arguments above except `kind` and `window`.
        download: first download missing files of the named corpora into `root`, as `python -m clap download` does.

    Raises:
        ValueError: a name, split or weight is invalid, or the split is empty.
        FileNotFoundError: too many recordings are missing.
    """

    def __init__(
        self,
        datasets: Sequence[str | Corpus] | str | Corpus | None = None,
        kind: str = "train",
        root: str | Path | None = None,
        *,
        sample_rate: int | None = None,
        window: float | None = None,
        seed: int = 0,
        training: bool | None = None,
        weights: Sequence[float] | None = None,
        settings: DatasetSettings | None = None,
        config: str | Path | Mapping | None = None,
        download: bool = False,
    ) -> None:
        if kind not in SPLITS:
            raise ValueError(f"kind={kind!r} is not one of {', '.join(SPLITS)}")
        if config is not None:
            config = read_config(config)
            if missing := [key for key in ("dataset", "audio_encoder") if key not in config]:
                raise ValueError(
                    f"the config has no {missing[0]}; pass a composed config, as `train.py --cfg job` prints it"
                )
            datasets, settings = open_corpus(config["dataset"]), read_dataset_settings(config["dataset"])
            seed = config.get("seed", seed)
            sample_rate = sample_rate or find_sample_rate(config["audio_encoder"])
        if datasets is None or sample_rate is None:
            raise ValueError(
                "ClapDataset requires datasets=[...] and sample_rate=... (clap.sample_rate), or config=..."
            )
        settings = settings or DatasetSettings()
        datasets = [datasets] if isinstance(datasets, str | Corpus) else list(datasets)
        if download:
            download_named(datasets, root, kind)
        found = [find_corpus(item, root) if isinstance(item, str) else item for item in datasets]
        given = check_weights(weights, len(found))
        parts = [
            replace(part, weight=own * part.weight)
            for corpus, own in zip(found, given, strict=True)
            for part in corpus.parts
        ]
        check_names(parts)
        self.parts, self.corpora = parts, [part.corpus for part in parts]
        if settings.cache is not None:
            for corpus in self.corpora:
                corpus.cache = WaveformCache(settings.cache, settings.cache_gigabytes)
        for corpus in self.corpora:
            corpus.longest_clip = settings.longest_clip
        self.name = "_".join(corpus.name for corpus in self.corpora)
        self.headers: dict[tuple[str, Clip], AudioHeader | AudioError | None] = {}  # by corpus, see `read_headers`
        self.kind, self.sample_rate, self.window, self.seed = kind, sample_rate, window, seed
        self.settings, self.max_bad_fraction = settings, settings.max_bad_fraction
        self.training = kind == "train" if training is None else training
        clips = [self.list_clips(part) for part in parts]
        if settings.exclude is not None and kind == "train":
            clips = self.skip_excluded(clips, settings.exclude)
        listed = [
            (corpus, clip)
            for corpus, own in zip(self.corpora, clips, strict=True)
            for clip in own[: settings.max_clips]
        ]
        if not listed:
            raise ValueError(f"the {kind} split of {self.name} has no clips; choose another split or dataset")
        self.separate_missing(listed)
        self.check_missing()
        if self.training and settings.captions == "keywords":
            self.clips = use_keyword_captions(self.clips, self.name)
        if bare := [clip.id for clip in self.clips if not clip.captions]:
            raise ValueError(
                f"{len(bare)} clips of {self.name} have no caption, the first is {bare[0]!r}; add captions"
            )
        numbers: dict[tuple[str, ...], int] = {}
        self.groups = [numbers.setdefault(clip.captions, len(numbers)) for clip in self.clips]
        self.rewritten: RewrittenCaptions | None = None
        if self.training and settings.captions == "rewritten":
            self.rewritten = RewrittenCaptions(
                read_rewritings(settings.rewritings), self.clips, self.groups, fraction=settings.rewritten_fraction
            )
        self.epoch_pairs = self.build_epoch_pairs(every_caption=settings.captions == "all") if self.training else []

    def separate_missing(self, listed: Sequence[tuple[Corpus, Clip]]) -> None:
        """Separate the listed clips into those whose recording exists and those whose recording is missing."""
        self.listed, self.num_listed = listed, len(listed)
        self.missing = [clip for _, clip in listed if clip.path is not None and not clip.path.is_file()]
        absent = set(self.missing)
        present = [(corpus, clip) for corpus, clip in listed if clip not in absent]
        self.owners, self.clips = [corpus for corpus, _ in present], [clip for _, clip in present]

    @property
    def names(self) -> list[str]:
        """Names of the corpora with clips in this split, as in metric names."""
        return list(dict.fromkeys(corpus.name for corpus, _ in self.listed))

    @functools.cached_property
    def by_corpus(self) -> "list[tuple[ClapDataset, list[int]]]":
        """For each corpus, this split as a dataset of its own for evaluation, and the indices of its clips here."""
        if len(self.names) == 1:
            return [(self, list(range(len(self.clips))))]
        parts = []
        for name in self.names:
            part = copy.copy(self)
            part.__dict__.pop("digest", None)
            part.name, part.parts = name, [own for own in self.parts if own.corpus.name == name]
            part.corpora = [own.corpus for own in part.parts]
            part.separate_missing([(corpus, clip) for corpus, clip in self.listed if corpus.name == name])
            chosen = [i for i, corpus in enumerate(self.owners) if corpus.name == name]
            part.groups = [self.groups[i] for i in chosen]
            parts.append((part, chosen))
        return parts

    def read_headers(self, indices: Sequence[int]) -> list[AudioHeader | AudioError | None]:
        """Header of the recording of each clip, or why it is invalid; None: its corpus does not know it. Read once."""

        def read(index: int) -> AudioHeader | AudioError | None:
            try:
                return self.owners[index].read_header(self.clips[index])
            except AudioError as error:
                return error

        keys = {index: (self.owners[index].name, self.clips[index]) for index in indices}
        new = [index for index in indices if keys[index] not in self.headers]
        with ThreadPoolExecutor(HEADER_THREADS) as threads:
            self.headers |= zip([keys[index] for index in new], threads.map(read, new), strict=True)
        return [self.headers[keys[index]] for index in indices]

    def share_headers(self, indices: Sequence[int]) -> list[AudioHeader | AudioError | None]:
        """As `read_headers`, but only rank 0 reads; collective."""
        headers = process_group.broadcast_object(self.read_headers(indices) if process_group.is_main() else None)
        self.headers |= zip(((self.owners[index].name, self.clips[index]) for index in indices), headers, strict=True)
        return headers

    def find_longest(self, most: int) -> float:
        """Seconds of the longest clip as training reads it, of at most `most` clips, evenly spaced.

        A clip whose duration is unknown counts as long as its corpus allows.
        """
        chosen = range(0, len(self.clips), -(-len(self.clips) // most))
        limits = [self.owners[index].max_duration for index in chosen]
        found = zip(limits, self.read_headers(chosen), strict=True)
        durations = [
            limit if header is None else min(limit, header.duration)
            for limit, header in found
            if not isinstance(header, AudioError)
        ]
        return max(durations, default=0.0)

    def list_clips(self, part: Part) -> Sequence[Clip]:
        """The clips of a corpus in this split, with a warning if there are fewer than published."""
        clips, published = part.clips(self.kind), part.count_published(self.kind)
        if published and len(clips) < published:
            log.warning(
                "the index of %s (%s) lists %d of %d published clips",
                *(part.corpus.name, self.kind, len(clips), published),
            )
        return clips

    @property
    def captions(self) -> list[str]:
        """Every caption of every clip, rewritten ones that training draws too."""
        rewritten = [] if self.rewritten is None else self.rewritten.list_texts()
        return [caption for clip in self.clips for caption in clip.captions] + rewritten

    @functools.cached_property
    def digest(self) -> str:
        """Hash of ids, captions and labels in any order; datasets with the same digest are the same evaluation task."""
        manifest = sorted(([clip.id, sorted(clip.captions), clip.label] for clip in self.clips), key=json.dumps)
        return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()[:16]

    def skip_excluded(self, clips: list[list[Clip]], exclude: str | Path) -> list[list[Clip]]:
        """Remove the clips in a block list from the training clips.

        Other splits keep them, since an evaluation on fewer clips is a different task.
        """
        names = read_exclusions(exclude)
        kept = [[clip for clip in own if not is_excluded(clip, names)] for own in clips]
        num_listed, num_kept = sum(map(len, clips)), sum(map(len, kept))
        log.info(
            "skipped %d of %d training clips of %s, dataset.exclude=%s",
            *(num_listed - num_kept, num_listed, self.name, exclude),
        )
        if not num_kept:
            raise ValueError(
                f"dataset.exclude={exclude} names all {num_listed} training clips of {self.name}; shorten the list"
            )
        if unknown := find_unknown(names, itertools.chain(*clips)):
            log.warning(
                "%d of %d names in dataset.exclude=%s match no training clip of %s, the first is %s",
                *(len(unknown), len({name.strip() for name in names}), exclude, self.name, unknown[0]),
            )
        return kept

    @property
    def num_published(self) -> int | None:
        """Published number of clips in this split; None if it is not known for one of the corpora."""
        counts = [part.count_published(self.kind) for part in self.parts]
        return None if None in counts else sum(counts)

    def check_missing(self) -> None:
        """Log missing recordings; FileNotFoundError if their share exceeds `max_bad_fraction`."""
        if not self.missing:
            return
        share = f"{len(self.missing)} of {self.num_listed} recordings of the {self.kind} split of {self.name}"
        if len(self.missing) > self.max_bad_fraction * self.num_listed or len(self.missing) == self.num_listed:
            raise FileNotFoundError(
                f"{share} are missing, the first is {self.missing[0].path}; set dataset.root, or allow them with "
                f"dataset.max_bad_fraction, now {self.max_bad_fraction:g} (`python -m clap check` lists all)"
            )
        log.warning("%s are missing and skipped: %s", share, ", ".join(str(clip.path) for clip in self.missing))

    def build_epoch_pairs(self, *, every_caption: bool) -> "list[EpochPairs]":
        """The (clip, caption) pairs of each corpus that training epochs draw from."""
        pairs: list[list[tuple[int, int | None]]] = [[] for _ in self.corpora]
        for index, (corpus, clip) in enumerate(zip(self.owners, self.clips, strict=True)):
            numbers = range(len(clip.captions)) if every_caption else [None]
            pairs[self.corpora.index(corpus)] += [(index, number) for number in numbers]
        drawn = enumerate(zip(pairs, self.parts, strict=True))
        return [EpochPairs(own, part.weight, seed=(self.seed, place)) for place, (own, part) in drawn]

    def locate_pair(self, position: int, epoch: int) -> tuple[int, int | None]:
        """Index of the clip and number of its caption (None: random) at a position of an epoch."""
        if not self.training:
            return position, 0
        for pairs in self.epoch_pairs:
            if position < len(pairs):
                return pairs.locate(position, epoch)
            position -= len(pairs)
        raise IndexError(position)

    def limit_duration(self, corpus: Corpus) -> float | None:
        """Seconds that are read of a longer clip of a corpus; None: all."""
        limits = (self.window, corpus.max_duration if self.training else corpus.clip_duration)
        return min((limit for limit in limits if limit is not None), default=None)

    def __len__(self) -> int:
        return sum(map(len, self.epoch_pairs)) if self.training else len(self.clips)

    def __getitem__(self, position: int | tuple[int, int]) -> Item:
        """`position`: an index, or (epoch, index) from EpochSampler; without an epoch, training draws at random."""
        epoch, position = position if isinstance(position, tuple) else (int(torch.randint(2**31, ())), position)
        seed = (self.seed, epoch, position) if self.training else None
        rng = None if seed is None else np.random.default_rng(seed)
        index, number = self.locate_pair(position, epoch)
        clip, corpus = self.clips[index], self.owners[index]
        caption = None if self.rewritten is None else self.rewritten.draw(index, rng)
        caption = caption or clip.captions[rng.integers(len(clip.captions)) if number is None else number]
        duration = self.limit_duration(corpus)
        try:
            samples, scale = corpus.load_samples(clip, sample_rate=self.sample_rate, max_duration=duration, rng=rng)
        except (AudioError, MemoryError) as error:
            is_audio = isinstance(error, AudioError)
            problem = str(error) if is_audio else f"{clip.recording or clip.id}: does not fit into memory"
            return Item(index, None, caption, self.groups[index], problem=problem)
        is_hit = None if corpus.cache is None else corpus.cache.take_hit()
        return Item(index, samples, caption, self.groups[index], scale=scale, seed=seed, is_hit=is_hit)


class EpochPairs:
    """The pairs of one corpus, each `weight` times per epoch; for a fractional weight, the extra pairs vary by epoch.

    Args:
        pairs: index of a clip, and number of its caption or None for a random one.
    """

    def __init__(self, pairs: list[tuple[int, int | None]], weight: float, *, seed: tuple[int, int]) -> None:
        self.pairs, self.weight, self.seed = pairs, weight, seed
        if weight != 1:  # neighbours in an index may be similar
            self.pairs = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]

    def __len__(self) -> int:
        return round(self.weight * len(self.pairs))

    def locate(self, position: int, epoch: int) -> tuple[int, int | None]:
        first = 0 if self.weight == 1 else np.random.default_rng([*self.seed, epoch]).integers(len(self.pairs))
        return self.pairs[(first + position) % len(self.pairs)]


def use_keyword_captions(clips: Sequence[Clip], name: str) -> list[Clip]:
    """Replace the captions of clips with keywords by templates; ValueError if no clip has keywords."""
    count = sum(bool(clip.keywords) for clip in clips)
    if not count:
        raise ValueError(f"no clip of {name} has keywords; set dataset.captions to sample or all")
    log.info("captions are made from the keywords of %d of %d clips of %s", count, len(clips), name)
    return [
        replace(clip, captions=fill_keyword_templates(clip.keywords), captions_from_labels=True)
        if clip.keywords
        else clip
        for clip in clips
    ]
