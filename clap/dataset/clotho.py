"""Clotho v2.1 (Drossos et al. 2020) in the layout of its unpacked archives."""

from collections.abc import Mapping
from pathlib import Path

from clap.corpus import Clip, Corpus, check_split
from clap.dataset.index import (
    check_has_letters,
    check_name,
    check_recording,
    check_unique,
    find_file,
    find_index,
    require_root,
)
from clap.dataset.index_file import read_csv

FOLDERS = {"train": "development", "val": "validation", "test": "evaluation"}
CAPTION_COLUMNS = tuple(f"caption_{i}" for i in range(1, 6))


class Clotho(Corpus):
    """Clips of 15 to 30 seconds from Freesound with five captions each.

    Layout of root: clotho_captions_FOLDER.csv and FOLDER/, where FOLDER is development, validation or evaluation.
    clotho_metadata_FOLDER.csv is optional and adds keywords and Freesound ids.

    Args:
        max_duration: seconds; training reads only this much of a longer clip.

    Raises:
        FileNotFoundError: root or the captions of a split are missing.
        ValueError: a row is invalid; the message names file and line.
    """

    name, title = "clotho", "Clotho"
    source = "zenodo.org/records/4783391"
    licence = "captions: Tampere University, non-commercial with attribution; audio: Creative Commons, by clip"
    citation = "K. Drossos, S. Lipping, T. Virtanen. Clotho: An audio captioning dataset. ICASSP 2020."
    counts = {"train": 3839, "val": 1045, "test": 1045}

    def __init__(self, root: str | Path, *, max_duration: float = 30.0) -> None:
        self.root, self.max_duration = Path(root), max_duration
        require_root(self)

    def clips(self, split: str) -> list[Clip]:
        check_split(split)
        folder = FOLDERS[split]
        path = find_index(self, f"clotho_captions_{folder}.csv")
        rows, metadata = read_csv(path, ("file_name", *CAPTION_COLUMNS)), self.read_metadata(folder)
        seen: dict[str, str] = {}
        clips = []
        for where, row in rows:
            name = check_recording(row["file_name"], "file_name", where)
            check_unique(seen, name, "file_name", where)
            captions = tuple(check_has_letters(row, column, where) for column in CAPTION_COLUMNS)
            keywords, source = metadata.get(name.strip(), ((), None))
            clips.append(Clip(name, captions, find_file(self.root / folder, name), keywords=keywords, source=source))
        return clips

    def read_metadata(self, folder: str) -> Mapping[str, tuple[tuple[str, ...], str | None]]:
        """{file name: (keywords, `freesound:ID` or None)}; empty if there is no metadata file."""
        path = self.root / f"clotho_metadata_{folder}.csv"
        if not path.is_file():
            return {}
        found = {}
        for where, row in read_csv(path, ("file_name", "keywords", "sound_id"), encoding="iso-8859-1"):
            name = check_name(row["file_name"], "file_name", where).strip()
            keywords = tuple(word.strip() for word in row["keywords"].split(";") if word.strip())
            sound = row["sound_id"].strip()
            found[name] = (keywords, f"freesound:{sound}" if sound.isdecimal() else None)
        return found
