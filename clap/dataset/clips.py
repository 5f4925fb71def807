"""From corpora to items: ClapDataset and the sampling of its clips and captions in an epoch."""

import copy
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from clap import process_group
from clap.audio_encoder.base import find_sample_rate
from clap.config import read_config
from clap.corpus import SPLITS, Clip, Corpus, Part
from clap.dataset.cache import WaveformCache
from clap.dataset.clip_table import JoinedClips
from clap.dataset.dataset_settings import DatasetSettings, read_dataset_settings
from clap.dataset.digest import digest_manifest
from clap.dataset.epoch_order import order_epoch
from clap.dataset.epoch_pairs import EpochPairs, number_groups, pair_captions
from clap.dataset.evaluation_options import plan_evaluation_datasets
from clap.dataset.held_out import select_training_clips
from clap.dataset.item import Item
from clap.dataset.keywords import use_keywords
from clap.dataset.missing import find_missing, name_missing
from clap.dataset.registry import check_names, check_weights, download_named, find_corpus, open_corpus
from clap.dataset.rewritings import RewrittenCaptions, read_rewritings
from clap.waveform import AudioError, AudioHeader, choose_part

if TYPE_CHECKING:  # imports torch
    from clap.dataset.frozen_audio import FrozenAudio

log = logging.getLogger(__name__)
HEADER_THREADS = 8  # that read headers: on a network drive, each waits for a server


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
        evaluated: other corpora that are evaluated; training skips clips cut from the same published recordings.

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
        evaluated: Sequence[Corpus] = (),
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
            evaluated = [plan.corpus for plan in plan_evaluation_datasets(config).values()]
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
        self.headers: dict[tuple[str, str, str], AudioHeader | AudioError | None] = {}  # see `read_headers`
        self.kind, self.sample_rate, self.window, self.seed = kind, sample_rate, window, seed
        self.settings, self.max_bad_fraction = settings, settings.max_bad_fraction
        self.training = kind == "train" if training is None else training
        self.random_parts = True  # of longer clips in training; False: the middle
        self.num_leaked: int | None = None  # clips that the evaluated model was trained on; None: unknown
        self.frozen_audio: FrozenAudio | None = None  # while a frozen audio encoder is cached
        self.distort: Callable[[np.ndarray, int, str], np.ndarray] | None = None  # waveform, Hz and clip id -> waveform
        clips = [self.list_clips(part) for part in parts]
        if kind == "train":
            clips = select_training_clips(parts, clips, settings, evaluated=evaluated)
        listed = [own.select(np.arange(min(len(own), settings.max_clips or len(own)))) for own in clips]
        present = self.separate_missing(listed)
        self.check_missing()
        if not any(map(len, listed)):
            raise ValueError(f"the {kind} split of {self.name} has no clips; choose another split or dataset")
        if self.training:
            present = self.use_keyword_captions(present)
        self.set_clips(present)
        counts = self.clips.count_captions()
        if bare := np.flatnonzero(counts == 0).tolist():
            raise ValueError(
                f"{len(bare)} clips of {self.name} have no caption, the first is {self.clips[bare[0]].id!r}; add "
                "captions"
            )
        self.groups = number_groups(self.clips.numbers("captions_digest"))
        sizes = list(map(len, present))
        self.rewritten = self.open_rewritings(sizes) if self.training else None
        self.epoch_pairs = self.build_epoch_pairs(counts, sizes) if self.training else []

    def separate_missing(self, listed: Sequence[JoinedClips]) -> list[JoinedClips]:
        """The listed clips of each corpus without those whose recording is missing, which are kept apart."""
        self.listed, self.num_listed = listed, sum(map(len, listed))
        missing = [np.concatenate([np.zeros(0, bool), *map(find_missing, own.tables)]) for own in listed]
        absent, present = (
            [own.select(np.flatnonzero(mask == flag)) for own, mask in zip(listed, missing, strict=True)]
            for flag in (True, False)
        )
        lost = [] if self.settings.max_clips else [clip for part in self.parts for clip in part.list_lost(self.kind)]
        self.missing, self.num_listed = JoinedClips([*absent, lost]), self.num_listed + len(lost)
        return present

    def set_clips(self, present: Sequence[JoinedClips]) -> None:
        """Set the clips, and the corpus of each."""
        self.clips = JoinedClips(present)
        corpora = np.empty(len(self.corpora), dtype=object)
        corpora[:] = self.corpora
        self.owners = np.repeat(corpora, [len(own) for own in present])

    @property
    def names(self) -> list[str]:
        """Names of the corpora with clips in this split, as in metric names."""
        listed = zip(self.corpora, self.listed, strict=True)
        return list(dict.fromkeys(corpus.name for corpus, own in listed if len(own)))

    @functools.cached_property
    def by_corpus(self) -> "list[tuple[ClapDataset, Sequence[int]]]":
        """For each corpus, this split as a dataset of its own for evaluation, and the indices of its clips here."""
        if self.names == [self.name]:  # not of a mixture of which one corpus has this split
            return [(self, range(len(self.clips)))]
        parts = []
        for name in self.names:
            part = copy.copy(self)
            part.__dict__.pop("digest", None)
            part.name, part.parts = name, [own for own in self.parts if own.corpus.name == name]
            part.corpora = [own.corpus for own in part.parts]
            listed = zip(self.corpora, self.listed, strict=True)
            part.separate_missing([own for corpus, own in listed if corpus.name == name])
            chosen = np.flatnonzero(np.isin(self.owners, part.corpora))
            part.clips, part.owners = self.clips.select(chosen), self.owners[chosen]
            part.groups = self.groups[chosen]
            parts.append((part, chosen.tolist()))
        return parts

    def read_headers(self, indices: Sequence[int]) -> list[AudioHeader | AudioError | None]:
        """Header of the recording of each clip, or why it is invalid; None: its corpus does not know it. Read once."""

        def read(index: int) -> AudioHeader | AudioError | None:
            try:
                return self.owners[index].read_header(self.clips[index])
            except AudioError as error:
                return error

        keys = {index: self.name_header(index) for index in indices}
        new = [index for index in indices if keys[index] not in self.headers]
        with ThreadPoolExecutor(HEADER_THREADS) as threads:
            self.headers |= zip([keys[index] for index in new], threads.map(read, new), strict=True)
        return [self.headers[keys[index]] for index in indices]

    def share_headers(self, indices: Sequence[int]) -> list[AudioHeader | AudioError | None]:
        """As `read_headers`, but only rank 0 reads; collective."""
        headers = process_group.broadcast_object(self.read_headers(indices) if process_group.is_main() else None)
        self.headers |= zip(map(self.name_header, indices), headers, strict=True)
        return headers

    def name_header(self, index: int) -> tuple[str, str, str]:
        """The corpus, id and recording of a clip, the key of its header."""
        clip = self.clips[index]
        return self.owners[index].name, clip.id, str(clip.recording)

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

    def list_clips(self, part: Part) -> JoinedClips:
        """The clips of a corpus in this split, with a warning if there are fewer than published."""
        clips, published = JoinedClips(part.list_clips(self.kind)), part.count_published(self.kind)
        if published and len(clips) < published:
            log.warning(
                "the index of %s (%s) lists %d of %d published clips",
                *(part.corpus.name, self.kind, len(clips), published),
            )
        return clips

    @property
    def captions(self) -> list[str]:
        """Every caption of every clip, rewritten ones that training draws too; see also `list_captions`."""
        return list(list_captions(self))

    @functools.cached_property
    def digest(self) -> str:
        """Hash of ids, captions and labels in any order; datasets with the same digest are the same evaluation task."""
        return digest_manifest(self.clips)

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
            first = name_missing(self.missing[:1])
            raise FileNotFoundError(
                f"{share} are missing, the first is {first}; set dataset.root, or allow them with "
                f"dataset.max_bad_fraction, now {self.max_bad_fraction:g} (`python -m clap check` lists all)"
            )
        log.warning("%s are missing and skipped: %s", share, name_missing(self.missing))

    def use_keyword_captions(self, clips: Sequence[JoinedClips]) -> list[JoinedClips]:
        """Make the captions of the corpora with the policy `keywords`.

        Raises:
            ValueError: none of their clips has keywords.
        """
        chosen = [own for own, policy in zip(clips, self.caption_policies, strict=True) if policy == "keywords"]
        if not chosen:
            return list(clips)
        count = sum(own.count_keywords() for own in chosen)
        if not count:
            raise ValueError(f"no clip of {self.name} has keywords; set dataset.captions to sample or all")
        log.info("captions are made from the keywords of %d of %d clips of %s", count, sum(map(len, chosen)), self.name)
        return [
            own.replace_clips(use_keywords) if policy == "keywords" else own
            for own, policy in zip(clips, self.caption_policies, strict=True)
        ]

    @property
    def caption_policies(self) -> list[str]:
        """The policy of each corpus in training."""
        return [part.captions or self.settings.captions for part in self.parts]

    def open_rewritings(self, sizes: Sequence[int]) -> RewrittenCaptions | None:
        """The rewritten captions of the corpora with the policy `rewritten`; None if none has it.

        Args:
            sizes: clips of each corpus.
        """
        is_used = np.repeat([policy == "rewritten" for policy in self.caption_policies], sizes)
        if not is_used.any():
            return None
        rewritings, fraction = read_rewritings(self.settings.rewritings), self.settings.rewritten_fraction
        return RewrittenCaptions(rewritings, self.clips, self.groups, fraction=fraction, is_used=is_used)

    def build_epoch_pairs(self, counts: np.ndarray, sizes: Sequence[int]) -> list[EpochPairs]:
        """The (clip, caption) pairs of each corpus that training epochs draw from.

        Args:
            counts: (clips,) captions of each clip.
            sizes: clips of each corpus.
        """
        pairs, ends = [], np.cumsum(sizes)
        for place, (part, policy) in enumerate(zip(self.parts, self.caption_policies, strict=True)):
            clips, numbers = np.arange(ends[place] - sizes[place], ends[place]), None
            if policy == "all":
                clips, numbers = pair_captions(clips, counts[clips])
            pairs.append(EpochPairs(clips, numbers, part.weight, seed=(self.seed, place)))
        return pairs

    def locate_pair(self, position: int, epoch: int) -> tuple[int, int | None]:
        """Index of the clip and number of its caption (None: random) at a position of an epoch."""
        if not self.training:
            return position, 0
        for pairs in self.epoch_pairs:
            if position < len(pairs):
                return pairs.locate(position, epoch)
            position -= len(pairs)
        raise IndexError(position)

    def order_epoch(self, epoch: int, *, seed: int) -> np.ndarray:
        """The positions of a training epoch in a random order; clips in shards shard by shard."""
        opened = [corpus.open_shards for corpus in self.corpora]
        return order_epoch(self.clips, self.epoch_pairs, opened, epoch=epoch, seed=seed)

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
        clip, corpus, group = self.clips[index], self.owners[index], int(self.groups[index])
        caption = None if self.rewritten is None else self.rewritten.draw(index, rng)
        caption = caption or clip.captions[rng.integers(len(clip.captions)) if number is None else number]
        duration = self.limit_duration(corpus)
        entry = None if self.frozen_audio is None else self.frozen_audio.find(corpus, clip, duration)
        if entry is not None and entry.is_known:
            dtype = np.float32 if corpus.cache is None else np.int16
            return Item(index, np.empty(0, dtype), caption, group, seed=seed, entry=entry)
        part = rng if self.random_parts else None
        try:
            samples, scale = self.load_samples(clip, corpus, duration, part)
            if entry is not None:
                entry = self.frozen_audio.describe_loaded(entry, corpus, clip, duration, samples)
        except (AudioError, MemoryError) as error:
            is_audio = isinstance(error, AudioError)
            problem = str(error) if is_audio else f"{clip.recording or clip.id}: does not fit into memory"
            return Item(index, None, caption, group, problem=problem)
        is_hit = None if corpus.cache is None else corpus.cache.take_hit()
        options = {"seed": seed, "is_hit": is_hit, "entry": entry}
        return Item(index, samples, caption, group, scale=scale, **options)

    def load_samples(
        self, clip: Clip, corpus: Corpus, duration: float | None, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, np.float32]:
        """The samples of a clip and their scale; with `distort`, the part is read from the whole distorted clip."""
        if self.distort is None:
            return corpus.load_samples(clip, sample_rate=self.sample_rate, max_duration=duration, rng=rng)
        limit = corpus.clip_duration
        samples, scale = corpus.load_samples(clip, sample_rate=self.sample_rate, max_duration=limit, rng=None)
        waveform = self.distort(samples * scale, self.sample_rate, clip.id)
        start, count = choose_part(len(waveform), self.sample_rate, duration, rng)
        return waveform[start : start + count], np.float32(1)


def list_captions(dataset: Dataset) -> Iterable[str]:
    """Every caption of a dataset, rewritten ones that training draws too, one by one; none of a Subset."""
    if not isinstance(dataset, ClapDataset):
        return getattr(dataset, "captions", [])
    rewritten = [] if dataset.rewritten is None else dataset.rewritten.list_texts()
    return itertools.chain(dataset.clips.captions, rewritten)
