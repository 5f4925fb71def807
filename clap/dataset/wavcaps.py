"""WavCaps (Mei et al. 2024): the published json_files/ and the FLAC files of the unpacked zips."""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clap.corpus import Clip, Corpus, check_split
from clap.dataset.clip_table import ClipTable
from clap.dataset.csv import assign_split, check_characters, check_fractions
from clap.dataset.index import check_name, check_unique, find_index, require_root, shorten_repr
from clap.dataset.index_file import parse_json, read_index_file
from clap.dataset.kept_index import Notes, keep_index

INDEXES = {
    "FreeSound": "json_files/FreeSound/fsd_final.json",
    "BBC_Sound_Effects": "json_files/BBC_Sound_Effects/bbc_final.json",
    "SoundBible": "json_files/SoundBible/sb_final.json",
    "AudioSet_SL": "json_files/AudioSet_SL/as_final.json",
}
SIZES = {"FreeSound": 262_300, "BBC_Sound_Effects": 31_201, "SoundBible": 1_232, "AudioSet_SL": 108_317}
EXCLUSION_LISTS = (  # published with the corpus: clips of AudioCaps and Clotho; of UrbanSound8K, ESC-50 and VGGSound
    "json_files/blacklist/blacklist_exclude_all_ac.json",
    "json_files/blacklist/blacklist_exclude_ub8k_esc50_vggsound.json",
)
EXCLUSION_KEYS = {"FreeSound": "FreeSound", "AudioSet_SL": "AudioSet"}  # subset -> key in an exclusion list
UNPACKED = "mnt/fast/nobackup/scratch4weeks/xm00178/WavCaps/data/waveforms"  # path inside the published zips
FOLDERS = ("{}_flac", "waveforms/{}_flac", "Audio/{}", f"{UNPACKED}/{{}}_flac")


class WavCaps(Corpus):
    """Weakly labelled clips of any length with one caption each; no validation or test set is published.

    Layout of root: json_files/, and for each subset one of SUBSET_flac/, waveforms/SUBSET_flac/, Audio/SUBSET/
    (aac-datasets), or the folder that its zips unpack to.

    Args:
        subsets: one or more of FreeSound, BBC_Sound_Effects, SoundBible, AudioSet_SL.
        exclusion_lists: JSON files relative to root, {"FreeSound": [ids], "AudioSet": [ids]}, with the ids of clips to
            skip, so that evaluation sets share no clip with training; by default the two published lists. Without lists
            all clips are kept, with a warning. BBC_Sound_Effects and SoundBible have no excluded clips.
        val_fraction: share of the clips for validation, chosen by a hash of their ids.
        max_duration: seconds; training reads only this much of a longer clip.

    Raises:
        FileNotFoundError: root, an index or an exclusion list is missing.
        ValueError: an entry or option is invalid.
    """

    name, title = "wavcaps", "WavCaps"
    source = "huggingface.co/datasets/cvssp/WavCaps"
    licence = "academic use only; the card says CC BY 4.0"
    citation = (
        "X. Mei, C. Meng, H. Liu, Q. Kong, T. Ko, C. Zhao, M. D. Plumbley, Y. Zou, W. Wang. WavCaps: A "
        "ChatGPT-assisted weakly-labelled audio captioning dataset for audio-language multimodal research. TASLP 2024."
    )

    def __init__(
        self,
        root: str | Path,
        *,
        subsets: Sequence[str] = tuple(INDEXES),
        exclusion_lists: Sequence[str] = EXCLUSION_LISTS,
        val_fraction: float = 0.01,
        max_duration: float = 30.0,
    ) -> None:
        self.root, self.subsets, self.max_duration = Path(root), list(subsets), max_duration
        self.exclusion_lists, self.fractions = list(exclusion_lists), check_fractions(val=val_fraction)
        if unknown := [name for name in self.subsets if name not in INDEXES]:
            raise ValueError(f"subset {unknown[0]!r} is not one of {', '.join(INDEXES)}; set dataset.subsets")
        if not self.subsets or len(set(self.subsets)) < len(self.subsets):
            raise ValueError(f"subsets={self.subsets}: name one or more, each once; set dataset.subsets")
        require_root(self)

    def clips(self, split: str) -> ClipTable:
        check_split(split)
        return self.table.select_split(split)

    @functools.cached_property
    def table(self) -> ClipTable:
        """The clips of all splits."""
        indexes = [find_index(self, INDEXES[subset]) for subset in self.subsets]
        folders = {subset: str(self.find_folder(subset).relative_to(self.root)) for subset in self.subsets}
        return keep_index(
            *(*indexes, *(self.find_exclusion_lists() if EXCLUSION_KEYS.keys() & folders.keys() else ())),
            options={"folders": folders, "fractions": self.fractions, "lists": self.exclusion_lists},
            read=self.read_rows,
            root=self.root,
        )

    def read_rows(self, notes: Notes) -> Iterator[tuple[str, Clip]]:
        """Split and clip of each entry that no list excludes."""
        listed = {subset: self.read_subset(subset, notes) for subset in self.subsets}
        excluded = {subset: set() for subset in listed}
        if EXCLUSION_KEYS.keys() & listed.keys():
            excluded = self.read_exclusion_lists()
            num_listed = sum(map(len, listed.values()))
            skipped = sum(len(excluded[subset] & clips.keys()) for subset, clips in listed.items())
            notes.append(
                (
                    logging.INFO if skipped else logging.WARNING,  # evaluation sets share clips with WavCaps
                    f"wavcaps: skipped {skipped} of {num_listed} clips, dataset.exclusion_lists={self.exclusion_lists}",
                )
            )
        for subset, clips in listed.items():
            for name, clip in clips.items():
                if name not in excluded[subset]:
                    yield assign_split(clip.id, self.fractions), clip

    def find_exclusion_lists(self) -> list[Path]:
        """Paths of the lists; FileNotFoundError if one is missing."""
        remedy = "or set dataset.exclusion_lists=[] to keep the clips that it names"
        return [find_index(self, name, remedy=remedy) for name in self.exclusion_lists]

    def read_exclusion_lists(self) -> dict[str, set[str]]:
        """{subset: ids of the clips to skip}.

        Raises:
            FileNotFoundError: a list is missing.
            ValueError: a list is invalid.
        """
        excluded: dict[str, set[str]] = {subset: set() for subset in INDEXES}
        for path in self.find_exclusion_lists():
            found = read_json_index(path)
            if isinstance(found, Mapping) and not set(EXCLUSION_KEYS.values()) & found.keys():
                raise ValueError(f"{path}: no key {' or '.join(EXCLUSION_KEYS.values())}; write {{KEY: [ids]}}")
            for subset, key in EXCLUSION_KEYS.items():
                ids = found.get(key, []) if isinstance(found, Mapping) else None
                if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
                    raise ValueError(f"{path}: {key} is not a list of ids; write {{{key!r}: [ids]}}")
                excluded[subset] |= set(ids)
        return excluded

    def read_subset(self, subset: str, notes: Notes) -> dict[str, Clip]:
        """{id in the index: clip}."""
        path = find_index(self, INDEXES[subset])
        found = read_json_index(path)
        entries = found.get("data") if isinstance(found, Mapping) else found
        if not isinstance(entries, list) or not entries:
            raise ValueError(f'{path}: not a list of entries; write [entries] or {{"data": [entries]}}')
        if len(entries) < SIZES[subset]:
            text = f"{path} lists {len(entries)} of {SIZES[subset]} published clips"
            notes.append((logging.WARNING, text))
        folder = self.find_folder(subset)
        seen: dict[str, str] = {}
        clips = {}
        for number, entry in enumerate(entries, start=1):
            where = f"{path}, entry {number}"
            name = check_name(require_text(entry, "id", where), "id", where)
            check_unique(seen, name, "id", where)
            clips[name] = make_clip(subset, name, entry, folder, where)
        return clips

    def find_folder(self, subset: str) -> Path:
        """The folder of the recordings of a subset; the usual one if there is none."""
        folders = [self.root / folder.format(subset) for folder in FOLDERS]
        return next((folder for folder in folders if folder.is_dir()), folders[0])


def make_clip(subset: str, name: str, entry: Mapping[str, Any], folder: Path, where: str) -> Clip:
    """The clip of an entry; ids of AudioSet_SL are file names, YVIDEO.wav, those of other subsets site numbers."""
    stem = name.removesuffix(".wav")
    sources = {"FreeSound": f"freesound:{name}", "AudioSet_SL": f"youtube:{stem.removeprefix('Y')}"}
    tags = entry.get("tags") or []
    tags = [tag for tag in tags if isinstance(tag, str) and tag.strip()] if isinstance(tags, list) else []
    keywords = tuple(check_characters(tag, "tags", where) for tag in tags)
    caption = require_text(entry, "caption", where)
    return Clip(f"{subset}/{name}", (caption,), folder / f"{stem}.flac", keywords=keywords, source=sources.get(subset))


def require_text(entry: Any, key: str, where: str) -> str:
    """The stripped text at a key of an entry; ValueError if it is missing, blank or not a string."""
    value = entry.get(key) if isinstance(entry, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {key}={shorten_repr(value)} is not a text; write a string that is not blank")
    return check_characters(value.strip(), key, where)


def read_json_index(path: Path) -> Any:
    return parse_json(read_index_file(path), path)
