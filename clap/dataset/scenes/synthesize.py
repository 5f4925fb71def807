"""Writes synthetic soundscapes to disk in the layouts of published corpora, to try their loaders offline.

Layouts: Clotho v2.1 (Drossos et al. 2020), AudioCaps (Kim et al. 2019), ESC-50 (Piczak 2015), UrbanSound8K (Salamon
et al. 2014), and a custom CSV.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from clap.atomic import write_atomic
from clap.corpus import SPLITS, Clip, Corpus
from clap.dataset.scenes.phrases import NUM_CAPTIONS
from clap.dataset.scenes.planning import SHORTEST_SCENE, plan_lone_event
from clap.dataset.scenes.rendering import render_scene
from clap.dataset.scenes.sounds import RENDER_RATE, SOUNDS
from clap.progress import progress_bar
from clap.text_table import to_csv

NUM_FOLDS = 5
NUM_CLASSES = 10  # of UrbanSound8K
MIN_CLIPS = 5  # one per fold, and at least one per split
CAPTION_COLUMNS = tuple(f"caption_{i}" for i in range(1, NUM_CAPTIONS + 1))
CLOTHO_SPLITS = {"train": "development", "val": "validation", "test": "evaluation"}


@dataclass(frozen=True)
class CorpusWriter:
    """Writes audio and index files of num_clips scenes; durations in seconds, sample_rate in Hz."""

    folder: Path
    corpus: Corpus
    num_clips: int
    seed: int
    sample_rate: int
    min_duration: float
    max_duration: float

    def write_split(self, split: str, names: dict[str, Path]) -> None:
        """Render the clips of a split; `names` maps their ids to paths relative to the folder."""
        for clip in progress_bar(self.corpus.clips(split), desc=split, unit="clip"):
            waveform = self.corpus.load(clip, sample_rate=self.sample_rate, max_duration=self.max_duration)
            self.write_audio(names[clip.id], waveform)

    def write_audio(self, name: Path, waveform: np.ndarray) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, waveform, self.sample_rate, subtype="PCM_16")

    def write_index(self, name: str, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
        """Write a CSV atomically, through a temporary file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, to_csv([columns, *rows]).encode())


def write_clotho(writer: CorpusWriter) -> None:
    """`development/NAME.wav` and `clotho_captions_development.csv`; likewise validation and evaluation.

    Names contain spaces and dots, as those that Clotho takes from Freesound.
    """
    for split, folder in CLOTHO_SPLITS.items():
        clips = writer.corpus.clips(split)
        names = {clip.id: f"Synthetic scene no. {clip.id}.wav" for clip in clips}
        writer.write_split(split, {key: Path(folder, name) for key, name in names.items()})
        rows = ((names[clip.id], *clip.captions) for clip in clips)
        writer.write_index(f"clotho_captions_{folder}.csv", ("file_name", *CAPTION_COLUMNS), rows)


def write_audiocaps(writer: CorpusWriter) -> None:
    """`audio/{train,val,test}/YOUTUBE_ID.wav` and `{train,val,test}.csv`.

    The file name is the id of the video; the start in the video is in the index only. A training clip has one row with
    its caption, a clip of the other splits has five.
    """
    audiocap_id = 0
    for split in SPLITS:
        clips = writer.corpus.clips(split)
        names = {clip.id: _youtube_id(clip, writer.seed) for clip in clips}
        writer.write_split(split, {key: Path("audio", split, f"{name}.wav") for key, name in names.items()})
        rows = []
        for number, clip in enumerate(clips):
            for caption in clip.captions[: 1 if split == "train" else NUM_CAPTIONS]:
                audiocap_id += 1
                rows.append((audiocap_id, names[clip.id], 10 * (number % 30), caption))
        writer.write_index(f"{split}.csv", ("audiocap_id", "youtube_id", "start_time", "caption"), rows)


def write_esc50(writer: CorpusWriter) -> None:
    """`audio/FOLD-SRC_FILE-TAKE-TARGET.wav` and `meta/esc50.csv`: scenes with one kind of event, the category.

    Folds and categories are filled in turn, and balanced if num_clips is a multiple of 5 times the number of kinds.
    Takes A and B of a source file are in one fold, as published; the first ten kinds replace those of ESC-10.
    """
    kinds = tuple(SOUNDS)
    rows = []
    for i in progress_bar(range(writer.num_clips), desc="clips", unit="clip"):
        fold, target = i % NUM_FOLDS + 1, i // NUM_FOLDS % len(kinds)
        pair, take = divmod(i // (NUM_FOLDS * len(kinds)), 2)
        source = 100_000 + (pair * len(kinds) + target) * NUM_FOLDS + fold
        name = f"{fold}-{source}-{'AB'[take]}-{target}.wav"
        writer.write_audio(Path("audio", name), _render_kind(writer, kinds[target], i))
        rows.append((name, fold, target, kinds[target].replace(" ", "_"), target < 10, source, "AB"[take]))
    writer.write_index("meta/esc50.csv", ("filename", "fold", "target", "category", "esc10", "src_file", "take"), rows)


def write_urbansound8k(writer: CorpusWriter) -> None:
    """`audio/foldFOLD/FSID-CLASSID-OCCURRENCE-SLICE.wav` and `metadata/UrbanSound8K.csv`: scenes with one kind of
    event.

    Folds and the first ten kinds, which replace the ten classes, are filled in turn.
    """
    kinds = tuple(SOUNDS)[:NUM_CLASSES]
    rows = []
    for i in progress_bar(range(writer.num_clips), desc="clips", unit="clip"):
        fold, target, number = i % 10 + 1, i // 10 % len(kinds), 100_000 + i
        name = f"{number}-{target}-0-0.wav"
        waveform = _render_kind(writer, kinds[target], i)
        writer.write_audio(Path("audio", f"fold{fold}", name), waveform)
        seconds = len(waveform) / writer.sample_rate
        rows.append((name, number, 0.0, round(seconds, 6), 1, fold, target, kinds[target].replace(" ", "_")))
    columns = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
    writer.write_index("metadata/UrbanSound8K.csv", columns, rows)


def write_csv(writer: CorpusWriter) -> None:
    """`audio/ID.wav` and `metadata.csv` with paths relative to the folder; mixed scenes have an empty label."""
    rows = []
    for split in SPLITS:
        clips = writer.corpus.clips(split)
        names = {clip.id: Path("audio", f"{clip.id}.wav") for clip in clips}
        writer.write_split(split, names)
        rows += [(names[clip.id].as_posix(), *clip.captions, split, clip.label) for clip in clips]
    writer.write_index("metadata.csv", ("path", *CAPTION_COLUMNS, "split", "label"), rows)


def _render_kind(writer: CorpusWriter, kind: str, index: int) -> np.ndarray:
    """A scene with one event of a kind, float32 (samples,) at the sample rate of the writer; in none of the splits."""
    rng = np.random.default_rng([writer.seed, len(SPLITS), index])
    duration = writer.min_duration + (writer.max_duration - writer.min_duration) * rng.random()
    waveform = render_scene(plan_lone_event(rng, kind, duration), rng)
    return np.clip(soxr.resample(waveform, RENDER_RATE, writer.sample_rate), -1, 1)


def _youtube_id(clip: Clip, seed: int) -> str:
    """An id like those of YouTube: eleven letters, digits, - and _."""
    digest = hashlib.sha256(f"{seed} {clip.id}".encode()).digest()
    return base64.urlsafe_b64encode(digest).decode()[:11]


WRITERS = {
    "clotho": write_clotho,
    "audiocaps": write_audiocaps,
    "esc50": write_esc50,
    "urbansound8k": write_urbansound8k,
    "csv": write_csv,
}
DURATIONS = {  # seconds
    "clotho": (15.0, 30.0),
    "audiocaps": (10.0, 10.0),
    "esc50": (5.0, 5.0),
    "urbansound8k": (3.0, 4.0),
    "csv": (3.0, 10.0),
}


def choose_durations(layout: str, shortest: float | None, longest: float | None) -> tuple[float, float]:
    """Minimum and maximum duration of clips in seconds; a missing one is that of the layout, adjusted to the other."""
    if longest is None:
        longest = max(DURATIONS[layout][1], shortest or 0.0)
    if shortest is None:
        shortest = min(DURATIONS[layout][0], longest)
    if not SHORTEST_SCENE <= shortest <= longest:
        raise ValueError(
            f"clips of {shortest} to {longest} s cannot be made; "
            f"set {SHORTEST_SCENE} <= --min-duration <= --max-duration"
        )
    return shortest, longest
