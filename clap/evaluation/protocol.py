"""The protocol of a metric: data, skipped clips, prompts, windows, definitions."""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clap import __version__ as clap_version
from clap.evaluation.embedded_split import EmbeddedSplit
from clap.run_folder import git_commit
from clap.waveform import AudioHeader, Member

if TYPE_CHECKING:  # imports transformers
    from clap.model import Clap

AUDIO_DEFINITION = 1  # raised by hand when a clip gives other samples: decoding, mixing to mono, resampling, rendering


def describe_split(clap: "Clap", split: EmbeddedSplit) -> dict[str, Any]:
    """The part of the protocol that all evaluators share; it does not depend on the weights."""
    dataset = split.dataset
    left_out = {clip.id: "missing" for clip in dataset.missing}
    for clip, problem in ((dataset.clips[index], problem) for index, problem in split.problems.items()):
        left_out[clip.id] = strip_path(problem, clip.recording or clip.id)
    return {
        "dataset": dataset.name,
        "split": dataset.kind,
        **describe_clips(split),
        "left_out": left_out,
        "windows": clap.windows or "as the model was trained",
        "audio_definition": AUDIO_DEFINITION,
        "leak_check": "unknown" if dataset.num_leaked is None else "complete",
        **({} if dataset.num_published is None else {"published_clips": dataset.num_published}),
        **({"training_clips_in_test": dataset.num_leaked} if dataset.num_leaked else {}),
    }


def describe_other_splits(splits: Sequence[EmbeddedSplit]) -> dict[str, Any]:
    """The splits that an evaluator reads besides the evaluated one; empty if there are none."""
    clips = {split.dataset.kind: describe_clips(split) for split in splits}
    return {"other_splits": clips} if clips else {}


def describe_clips(split: EmbeddedSplit) -> dict[str, Any]:
    """The clips of a split and what identifies their audio, which no path, time or machine changes."""
    listed = split.dataset.num_listed
    num_cached = 0 if split.is_cached is None else int(split.is_cached.sum())
    durations = sorted({corpus.clip_duration for corpus in split.dataset.corpora} - {None})
    changes = {"cached_in_16_bits": f"{num_cached} of {len(split.index)}"} if num_cached else {}
    changes |= {"cut_to_seconds": durations} if durations else {}
    return {
        "clips": f"{len(split.index)} of {listed}",
        "clip_manifest": split.dataset.digest,
        "audio_manifest": digest_audio(split),
    } | changes


def digest_audio(split: EmbeddedSplit) -> str:
    """Hash of id, sample rate, length and file size of the clips that are evaluated, in any order."""
    headers = zip(split.clips, split.dataset.read_headers(split.index), strict=True)
    audio = sorted(
        [clip.id, header.sample_rate, header.num_frames, header.num_bytes]
        for clip, header in headers
        if isinstance(header, AudioHeader)
    )
    return hashlib.sha256(json.dumps(audio).encode()).hexdigest()[:16]


@functools.cache
def describe_code() -> dict[str, str | None]:
    """The code that runs, recorded next to the hash: a commit that changes no definition keeps numbers comparable."""
    return {"clap": clap_version, "commit": git_commit(Path(__file__).parent)}


def strip_path(problem: str, name: Path | Member | str) -> str:
    """A problem without the file that it names, whose folder differs from machine to machine."""
    return problem.partition(f"{name}: ")[2] or problem
