"""Training clips: those that no block list names, and that no other corpus evaluates the recording of."""

import itertools
import logging
from collections.abc import Sequence

from clap.corpus import SPLITS, Corpus, Part
from clap.dataset.clip_table import JoinedClips
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.exclude import drop_clips, skip_excluded
from clap.dataset.sources import find_recordings, find_sources

log = logging.getLogger(__name__)


def select_training_clips(
    parts: Sequence[Part], clips: Sequence[JoinedClips], settings: DatasetSettings, *, evaluated: Sequence[Corpus] = ()
) -> list[JoinedClips]:
    """The training clips of each part without those that are excluded, with their numbers in the log.

    Other splits keep all clips, since an evaluation on fewer clips is a different task.

    Args:
        clips: of each part.
        evaluated: corpora that are evaluated besides the parts.

    Raises:
        FileNotFoundError, ValueError: a block list is missing or invalid, or no clip is left.
    """
    clips, name = list(clips), "_".join(part.corpus.name for part in parts)
    if settings.exclude is not None:
        clips = skip_excluded(clips, settings.exclude, name)
    for place, part in enumerate(parts):
        for path in part.exclude:
            key = f"dataset.corpora.{part.corpus.name}.exclude"
            clips[place : place + 1] = skip_excluded(clips[place : place + 1], path, part.corpus.name, key=key)
    others = [part for corpus in evaluated for part in corpus.parts]
    if settings.exclude_evaluated and len(parts) + len(others) > 1:
        clips = skip_evaluated(parts, clips, others, name=name)
    return clips


def skip_evaluated(
    parts: Sequence[Part], clips: Sequence[JoinedClips], others: Sequence[Part], *, name: str
) -> list[JoinedClips]:
    """The clips of recordings that no other corpus evaluates."""
    known = [(part.corpus.name, list_evaluated(part)) for part in (*parts, *others)]
    kept, counts = [], {corpus: 0 for corpus, recordings in known if recordings}
    for part, own in zip(parts, clips, strict=True):
        rivals = [(corpus, recordings) for corpus, recordings in known if corpus != part.corpus.name and recordings]
        skipped = find_recordings(own, set().union(*(recordings for _, recordings in rivals)))
        for corpus, recordings in rivals:
            counts[corpus] += len(find_recordings(own.select(skipped), recordings))
        kept.append(drop_clips(own, skipped.tolist()))
    num_listed, num_kept = sum(map(len, clips)), sum(map(len, kept))
    log.info(
        "skipped %d of %d training clips of %s, cut from recordings that other corpora evaluate (%s); "
        "dataset.exclude_evaluated=false keeps them",
        *(num_listed - num_kept, num_listed, name),
        ", ".join(f"{corpus}: {count}" for corpus, count in counts.items()) or "none is known",
    )
    if not num_kept:
        raise ValueError(
            f"every training clip of {name} is cut from a recording that another corpus evaluates; set "
            "dataset.exclude_evaluated=false, or another dataset"
        )
    return kept


def list_evaluated(part: Part) -> set[str]:
    """The recordings of the validation and test clips of a corpus, as far as they are known."""
    found: set[str] = set()
    for split in SPLITS[1:]:
        try:
            clips = list(itertools.chain(*part.list_clips(split)))
        except FileNotFoundError as error:  # of a corpus that is downloaded split by split
            log.warning("training clips are not compared with the %s split of %s: %s", split, part.corpus.name, error)
            continue
        found |= set(filter(None, find_sources(clips)))
    return found
