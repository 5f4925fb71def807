"""Settings of every dataset: how its clips are selected, loaded and batched."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from clap.config.values import CAPTION_POLICIES
from clap.waveform import LONGEST


@dataclass(frozen=True)
class DatasetSettings:
    """The keys of conf/dataset/_loader.yaml; the other keys of a dataset's yaml are the arguments of its corpus.

    Args:
        batch_size: clips per batch, over all processes.
        num_workers: worker processes that decode and resample.
        persistent_workers: keep the workers of training between epochs.
        prefetch_factor: batches that a worker loads in advance.
        max_bad_fraction: share of clips that may be missing or unreadable before the run stops.
        longest_clip: seconds; a clip of which more would be read counts as unreadable.
        max_clips: maximum number of clips per corpus and split, the first ones; None: all.
        cache: folder of decoded recordings (see `WaveformCache`); None: decode every time.
        cache_gigabytes: limit of its size; None: no limit.
        exclude: text file of clips that the train split skips (see `read_exclusions`); other splits ignore it.
        exclude_evaluated: training skips clips that are cut from a recording that another corpus evaluates.
        captions: in training, `sample` draws one caption of a clip each time; `all` makes a separate pair of each
            caption; `keywords` replaces the captions of clips with keywords by templates; `rewritten` draws from
            `rewritings` too.
        rewritings: JSON Lines file of rewritten captions (see `read_rewritings`).
        rewritten_fraction: share of draws that are rewritings, of clips that have any.

    Raises:
        ValueError: a value is out of range.
    """

    batch_size: int = 32
    num_workers: int = 2
    persistent_workers: bool = True
    prefetch_factor: int = 2
    max_bad_fraction: float = 0.01
    longest_clip: float = LONGEST
    max_clips: int | None = None
    cache: str | None = None
    cache_gigabytes: float | None = None
    exclude: str | None = None
    exclude_evaluated: bool = True
    captions: str = "sample"
    rewritings: str | None = None
    rewritten_fraction: float = 0.6

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(
                f"dataset.batch_size={self.batch_size} must be 1 or more, "
                f"dataset.num_workers={self.num_workers} 0 or more"
            )
        if self.prefetch_factor < 1:
            raise ValueError(f"dataset.prefetch_factor={self.prefetch_factor} must be 1 or more")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"dataset.max_bad_fraction={self.max_bad_fraction} must be between 0 and 1")
        if not self.longest_clip > 0:
            raise ValueError(f"dataset.longest_clip={self.longest_clip} must be above 0 s")
        if self.max_clips is not None and self.max_clips < 1:
            raise ValueError(f"dataset.max_clips={self.max_clips} must be 1 or more, or null for all clips")
        if self.cache_gigabytes is not None and not self.cache_gigabytes > 0:
            raise ValueError(f"dataset.cache_gigabytes={self.cache_gigabytes} must be above 0, or null for no limit")
        if self.captions not in CAPTION_POLICIES:
            allowed = ", ".join(CAPTION_POLICIES)
            raise ValueError(f"captions={self.captions!r} is not one of {allowed}; set dataset.captions")
        if self.captions == "rewritten" and self.rewritings is None:
            raise ValueError("captions=rewritten needs a file of rewritten captions; set dataset.rewritings")
        if not 0 <= self.rewritten_fraction <= 1:
            raise ValueError(f"dataset.rewritten_fraction={self.rewritten_fraction} must be between 0 and 1")


SETTINGS_KEYS = tuple(field.name for field in fields(DatasetSettings))


def read_dataset_settings(node: Mapping[str, Any]) -> DatasetSettings:
    """The settings of a `dataset` config node."""
    return DatasetSettings(**{key: node[key] for key in SETTINGS_KEYS if key in node})
