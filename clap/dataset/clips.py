"""From corpora to items: ClapDataset, and what an epoch draws from it."""

import copy
import functools
import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from clap.audio import AudioError
from clap.audio_encoder.base import find_sample_rate
from clap.config import read_config
from clap.corpus import SPLITS, Clip, Corpus
from clap.dataset.cache import WaveformCache
from clap.dataset.dataset_settings import DatasetSettings, read_dataset_settings
from clap.dataset.exclude import is_excluded, read_exclusions
from clap.dataset.keywords import fill_keyword_templates
from clap.dataset.registry import check_weights, download_named, find_corpus, open_corpus

log = logging.getLogger(__name__)


@dataclass
class Item:
    """What a worker makes of one clip; `problem` says why there is no waveform.

    Args:
        samples: (samples,) float32, or int16 of a cache, which a batch turns into floats without a copy in between.
        scale: what one of `samples` is worth.
    """

    index: int
    samples: np.ndarray | None
    caption: str
    group: int
    problem: str | None = None
    scale: np.float32 = np.float32(1)

    @property
    def waveform(self) -> np.ndarray | None:
        """Float32 (samples,)."""
        return None if self.samples is None else self.samples * self.scale


class ClapDataset(Dataset):
    """The clips of one split of one or several corpora, with one caption each time a clip is drawn.

    In training a clip's caption and the part of it that is read are drawn anew in every epoch, as a function of seed,
    epoch and position alone; in the other splits they are the first caption and the middle.

    Args:
        datasets: names (`"ESC50"`) or corpora; several are put one behind the other.
        kind: `train`, `val` or `test`.
        root: folder of the corpus, or one that holds a folder for each, `clotho` or `Clotho`.
        sample_rate: Hz of the waveforms; with `config` that of its audio encoder.
        window: seconds of a clip that the model takes; None for all of it, in training up to the corpus's max_duration.
        training: draw captions and parts at random; None does so in the train split.
        weights: how often each clip of a corpus comes in an epoch of training; 0.5: half of the clips, drawn each time.
        settings: what may be missing, which clips are skipped, which captions are drawn.
        config: a composed config (path or mapping) instead of the arguments above, but for `kind` and `window`.
        download: first fetch what is missing of the named corpora into `root`, as `python -m clap download` does.

    Raises:
        ValueError: unknown name or split, empty split. FileNotFoundError: too many recordings are missing.
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
                    f"the config has no {missing[0]}; give a composed one, as `train.py --cfg job` prints it"
                )
            datasets, settings = open_corpus(config["dataset"]), read_dataset_settings(config["dataset"])
            seed = config.get("seed", seed)
            sample_rate = sample_rate or find_sample_rate(config["audio_encoder"])
        if datasets is None or sample_rate is None:
            raise ValueError("ClapDataset needs datasets=[...] and sample_rate=... (clap.sample_rate), or config=...")
        settings = settings or DatasetSettings()
        datasets = [datasets] if isinstance(datasets, str | Corpus) else list(datasets)
        if download:
            download_named(datasets, root, kind)
        found = [find_corpus(item, root) if isinstance(item, str) else item for item in datasets]
        given = check_weights(weights, len(found))
        parts = [
            (part, own * weight) for corpus, own in zip(found, given, strict=True) for part, weight in corpus.parts
        ]
        self.corpora, self.weights = [corpus for corpus, _ in parts], [weight for _, weight in parts]
        if settings.cache is not None:
            for corpus in self.corpora:
                corpus.cache = WaveformCache(settings.cache)
        self.name = "_".join(corpus.name for corpus in self.corpora)
        self.kind, self.sample_rate, self.window, self.seed = kind, sample_rate, window, seed
        self.settings, self.max_bad_fraction = settings, settings.max_bad_fraction
        self.training = kind == "train" if training is None else training
        clips = [self.list_clips(corpus) for corpus in self.corpora]
        if settings.exclude is not None and kind == "train":
            clips = self.skip_excluded(clips, settings.exclude)
        listed = [
            (corpus, clip)
            for corpus, own in zip(self.corpora, clips, strict=True)
            for clip in own[: settings.max_clips]
        ]
        if not listed:
            raise ValueError(f"the {kind} split of {self.name} has no clips")
        self.set_listed(listed)
        self.check_missing()
        if self.training and settings.captions == "keywords":
            self.clips = use_keyword_captions(self.clips, self.name)
        numbers: dict[tuple[str, ...], int] = {}
        self.groups = [numbers.setdefault(clip.captions, len(numbers)) for clip in self.clips]
        self.epoch_pairs = self.build_epoch_pairs(every_caption=settings.captions == "all") if self.training else []

    def set_listed(self, listed: "Sequence[tuple[Corpus, Clip]]") -> None:
        """Divide the listed clips into those whose recording exists and those that are missing."""
        self.listed, self.num_listed = listed, len(listed)
        self.missing = [clip for _, clip in listed if clip.path is not None and not clip.path.is_file()]
        absent = set(self.missing)
        present = [(corpus, clip) for corpus, clip in listed if clip not in absent]
        self.owners, self.clips = [corpus for corpus, _ in present], [clip for _, clip in present]

    @property
    def names(self) -> list[str]:
        """Of the corpora that have clips in this split, under which each is evaluated."""
        return list(dict.fromkeys(corpus.name for corpus, _ in self.listed))

    @functools.cached_property
    def by_corpus(self) -> "list[tuple[ClapDataset, list[int]]]":
        """This split, held out, of each corpus alone, and where its clips stand in this dataset."""
        if len(self.names) == 1:
            return [(self, list(range(len(self.clips))))]
        parts = []
        for name in self.names:
            part = copy.copy(self)
            part.__dict__.pop("digest", None)
            part.name, part.corpora = name, [corpus for corpus in self.corpora if corpus.name == name]
            part.set_listed([(corpus, clip) for corpus, clip in self.listed if corpus.name == name])
            chosen = [i for i, corpus in enumerate(self.owners) if corpus.name == name]
            part.groups = [self.groups[i] for i in chosen]
            parts.append((part, chosen))
        return parts

    def list_clips(self, corpus: Corpus) -> list[Clip]:
        """The clips that a corpus lists in this split; says if fewer than were published."""
        clips, published = corpus.clips(self.kind), corpus.counts.get(self.kind)
        if published and len(clips) < published:
            log.warning(
                "the index of %s (%s) lists %d of %d published clips", corpus.name, self.kind, len(clips), published
            )
        return clips

    @property
    def captions(self) -> list[str]:
        """Every caption of every clip."""
        return [caption for clip in self.clips for caption in clip.captions]

    @functools.cached_property
    def digest(self) -> str:
        """Hash of the clips' ids, captions and labels: two datasets with the same digest pose the same task."""
        manifest = [[clip.id, clip.captions, clip.label] for clip in self.clips]
        return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()[:16]

    def skip_excluded(self, clips: list[list[Clip]], exclude: str | Path) -> list[list[Clip]]:
        """Training clips without those that a block list names.

        Clips of other splits stay, though the list may name them: an evaluation of fewer clips is another task.
        """
        names = read_exclusions(exclude)
        kept = [[clip for clip in own if not is_excluded(clip, names)] for own in clips]
        listed, left = sum(map(len, clips)), sum(map(len, kept))
        log.info(
            "left out %d of %d training clips of %s, dataset.exclude=%s", listed - left, listed, self.name, exclude
        )
        if not left:
            raise ValueError(f"dataset.exclude={exclude} names all {listed} training clips of {self.name}")
        known = {name for own in clips for clip in own for name in (clip.id, str(clip.path))}
        if unknown := [name for name in names if name not in known]:
            log.warning(
                "%d of %d names in dataset.exclude=%s match no training clip of %s, the first is %s",
                *(len(unknown), len(names), exclude, self.name, unknown[0]),
            )
        return kept

    @property
    def num_published(self) -> int | None:
        """Clips that the corpora published for this split; None where one of them does not say."""
        counts = [corpus.counts.get(self.kind) for corpus in self.corpora]
        return None if None in counts else sum(counts)

    def check_missing(self) -> None:
        """Name recordings that are listed but not there; too many of them are an error."""
        if not self.missing:
            return
        share = f"{len(self.missing)} of {self.num_listed} recordings of the {self.kind} split of {self.name}"
        if len(self.missing) > self.max_bad_fraction * self.num_listed or len(self.missing) == self.num_listed:
            raise FileNotFoundError(
                f"{share} are missing, the first is {self.missing[0].path}; set dataset.root, or allow them with "
                f"dataset.max_bad_fraction, now {self.max_bad_fraction:g} (`python -m clap check` names all)"
            )
        log.warning("%s are missing; going on without %s", share, ", ".join(str(clip.path) for clip in self.missing))

    def build_epoch_pairs(self, *, every_caption: bool) -> "list[EpochPairs]":
        """What an epoch of training draws from each corpus."""
        pairs: list[list[tuple[int, int | None]]] = [[] for _ in self.corpora]
        for index, (corpus, clip) in enumerate(zip(self.owners, self.clips, strict=True)):
            numbers = range(len(clip.captions)) if every_caption else [None]
            pairs[self.corpora.index(corpus)] += [(index, number) for number in numbers]
        drawn = enumerate(zip(pairs, self.weights, strict=True))
        return [EpochPairs(own, weight, seed=(self.seed, place)) for place, (own, weight) in drawn]

    def locate_pair(self, position: int, epoch: int) -> tuple[int, int | None]:
        """Index of a clip and number of its caption, None for any."""
        if not self.training:
            return position, 0
        for pairs in self.epoch_pairs:
            if position < len(pairs):
                return pairs.locate(position, epoch)
            position -= len(pairs)
        raise IndexError(position)

    def __len__(self) -> int:
        return sum(map(len, self.epoch_pairs)) if self.training else len(self.clips)

    def __getitem__(self, position: int | tuple[int, int]) -> Item:
        """`position`: an index, or (epoch, index) as EpochSampler draws them."""
        epoch, position = position if isinstance(position, tuple) else (int(torch.randint(2**31, ())), position)
        rng = np.random.default_rng([self.seed, epoch, position]) if self.training else None
        index, number = self.locate_pair(position, epoch)
        clip, corpus = self.clips[index], self.owners[index]
        caption = clip.captions[rng.integers(len(clip.captions)) if number is None else number]
        duration = min(self.window or math.inf, corpus.max_duration) if self.training else self.window
        try:
            samples, scale = corpus.load_samples(clip, sample_rate=self.sample_rate, max_duration=duration, rng=rng)
        except AudioError as error:
            return Item(index, None, caption, self.groups[index], problem=str(error))
        return Item(index, samples, caption, self.groups[index], scale=scale)


class EpochPairs:
    """What an epoch draws from one corpus: each pair `weight` times, the fraction from a part that moves on by epoch.

    Args:
        pairs: index of a clip, and number of its caption or None.
    """

    def __init__(self, pairs: list[tuple[int, int | None]], weight: float, *, seed: tuple[int, int]) -> None:
        self.pairs, self.weight, self.seed = pairs, weight, seed
        if weight != 1:  # neighbours in the index may be alike
            self.pairs = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]

    def __len__(self) -> int:
        return round(self.weight * len(self.pairs))

    def locate(self, position: int, epoch: int) -> tuple[int, int | None]:
        first = 0 if self.weight == 1 else np.random.default_rng([*self.seed, epoch]).integers(len(self.pairs))
        return self.pairs[(first + position) % len(self.pairs)]


def use_keyword_captions(clips: Sequence[Clip], name: str) -> list[Clip]:
    """Clips whose keywords, told by templates, take the place of their captions; those without keep theirs."""
    told = sum(bool(clip.keywords) for clip in clips)
    if not told:
        raise ValueError(f"no clip of {name} has keywords; set dataset.captions to sample or all")
    log.info("captions are made from the keywords of %d of %d clips of %s", told, len(clips), name)
    return [replace(clip, captions=fill_keyword_templates(clip.keywords)) if clip.keywords else clip for clip in clips]
