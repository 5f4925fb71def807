"""An index with one corrupted line: the clips do not change, or an error names file and line."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from replicas import write_fsd50k, write_wavcaps

from clap.commands.synthesize import synthesize
from clap.corpus import SPLITS, Clip, Corpus
from clap.dataset.csv import CSV
from clap.dataset.registry import find_corpus

INDEXES = {
    "clotho": "clotho_captions_development.csv",
    "audiocaps": "train.csv",
    "esc50": "meta/esc50.csv",
    "urbansound8k": "metadata/UrbanSound8K.csv",
    "csv": "metadata.csv",
    "fsd50k": "FSD50K.ground_truth/dev.csv",
    "wavcaps": "json_files/FreeSound/fsd_final.json",
    "jsonl": "metadata.jsonl",
}
LINE = 3  # the corrupted line, counted from 1
HARMLESS = {
    "byte order mark": lambda line: b"\xef\xbb\xbf" + line,
    "Windows line end": lambda line: line + b"\r",
}
CORRUPTIONS = {
    "empty": lambda line: b"",
    "blank": lambda line: b" \t ",
    "cut off": lambda line: line[:20],
    "another column": lambda line: line + b",more",
    "no last column": lambda line: line.rpartition(b",")[0],
    "no first field": lambda line: b"," + line.partition(b",")[2],
    "semicolons": lambda line: line.replace(b",", b";"),
    "no UTF-8": lambda line: line[:9] + b"\xe9" + line[9:],
    "UTF-16": lambda line: line.decode().encode("utf-16"),
    "NUL": lambda line: line[:9] + b"\0" + line[9:],
    "lone quote": lambda line: b'"' + line,
    "number": lambda line: b"9" * 5000,
    "very long": lambda line: line + b"x" * 200_000,
    "repeated": lambda line: line + b"\n" + line,
}
VALUES = [
    ("clotho", "file_name", "../../secret.wav"),
    ("clotho", "file_name", "42"),
    ("clotho", "caption_3", "42"),
    ("audiocaps", "audiocap_id", "one"),
    ("audiocaps", "youtube_id", "../../etc/x"),
    ("audiocaps", "start_time", "-1"),
    ("audiocaps", "start_time", "9" * 5000),
    ("audiocaps", "caption", "42"),
    ("esc50", "filename", "x" * 300 + ".wav"),
    ("esc50", "fold", "9" * 5000),
    ("esc50", "fold", "6"),
    ("esc50", "category", "42"),
    ("esc50", "src_file", "dog"),
    ("urbansound8k", "slice_file_name", "..\\secret.wav"),
    ("urbansound8k", "fold", "-1"),
    ("urbansound8k", "class", " "),
    ("fsd50k", "fname", "9" * 5000),
    ("fsd50k", "labels", "Bark,42"),
    ("fsd50k", "split", "x" * 5000),
    ("csv", "path", "../../secret.wav"),
    ("csv", "path", "x" * 300 + ".wav"),
    ("csv", "path", "."),
    ("csv", "split", "9" * 5000),
    ("wavcaps", "id", "../11"),
    ("wavcaps", "id", 11),
    ("wavcaps", "caption", 10**4000),
    ("wavcaps", "caption", "\ud800"),
    ("jsonl", "path", 3),
    ("jsonl", "path", "\ud800.wav"),
    ("jsonl", "path", "a\0.wav"),
    ("jsonl", "caption", ["a dog", 3]),
]


@pytest.fixture(scope="module")
def lines_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[bytes]]:
    """`lines_of("clotho")` -> lines of the index of its replica; for WavCaps, one per entry."""
    folder, known = tmp_path_factory.mktemp("replicas"), {}

    def write(name: str) -> str:
        if name == "jsonl":
            rows = [{"path": f"{i}.wav", "caption": ["a dog", f"bark {i}"], "split": "train"} for i in range(4)]
            return "\n".join(map(json.dumps, rows)) + "\n"
        if name in ("fsd50k", "wavcaps"):
            {"fsd50k": write_fsd50k, "wavcaps": write_wavcaps}[name](folder / name, seconds=0.1)
        else:
            lengths = {"min_duration": 3.0, "max_duration": 3.0, "sample_rate": 1_000}
            synthesize(folder / name, layout=name, num_clips=30, **lengths)
        return (folder / name / INDEXES[name]).read_text().replace("}, {", "},\n{").replace('[{"id', '[\n{"id')

    def read(name: str) -> list[bytes]:
        if name not in known:
            known[name] = write(name).encode().split(b"\n")
        return list(known[name])

    return read


def open_index(folder: Path, name: str, lines: list[bytes]) -> Corpus:
    path = folder / INDEXES[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(lines))
    if name in ("csv", "jsonl"):
        return CSV(folder, path)
    return find_corpus(name, folder, {"subsets": ["FreeSound"], "exclusion_lists": []} if name == "wavcaps" else None)


def read_clips(folder: Path, name: str, lines: list[bytes]) -> list[Clip]:
    """All clips of this index."""
    corpus = open_index(folder, name, lines)
    splits = {"clotho": SPLITS[:1], "audiocaps": SPLITS[:1], "fsd50k": SPLITS[:2]}.get(name, SPLITS)
    return [clip for split in splits for clip in corpus.clips(split)]


def check(folder: Path, name: str, lines: list[bytes], new: bytes) -> None:
    """The corrupted index gives the same clips (a blank line removes one), or a short one-line error."""
    before = [*lines[: LINE - 1], *lines[LINE - (bool(new.strip())) :]]
    changed = [*lines[: LINE - 1], new, *lines[LINE:]]
    try:
        found = read_clips(folder, name, changed)
    except ValueError as error:
        place = rf"{folder / INDEXES[name]}, (line {LINE}|entry {LINE - 1})\b"
        assert re.search(place, str(error)), str(error)[:300]
        assert type(error) is ValueError and "\n" not in str(error) and len(str(error)) < 500
    else:
        assert found == read_clips(folder, name, before if not new.strip() else lines)


@pytest.mark.parametrize("name", INDEXES)
@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_bytes_do_not_change_the_clips(lines_of: Callable, tmp_path: Path, name: str, kind: str):
    lines = lines_of(name)
    expected = read_clips(tmp_path, name, lines)
    lines[LINE - 1] = HARMLESS[kind](lines[LINE - 1])
    assert expected and read_clips(tmp_path, name, lines) == expected


@pytest.mark.parametrize("name", INDEXES)
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corrupted_line_is_harmless_or_named_with_file_and_line(
    lines_of: Callable, tmp_path: Path, name: str, kind: str
):
    lines = lines_of(name)
    check(tmp_path, name, lines, CORRUPTIONS[kind](lines[LINE - 1]))


@pytest.mark.parametrize(
    ("name", "column", "value"), VALUES, ids=[f"{n}-{c}-{i}" for i, (n, c, _) in enumerate(VALUES)]
)
def test_invalid_value_is_named_with_file_and_line(lines_of: Callable, tmp_path: Path, name: str, column: str, value):
    lines = lines_of(name)
    if name in ("wavcaps", "jsonl"):
        entry = json.loads(lines[LINE - 1].strip(b",")) | {column: value}
        new = (json.dumps(entry) + "," * (name == "wavcaps")).encode()
    else:
        header, row = csv.reader([lines[0].decode(), lines[LINE - 1].decode()])
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(
            [value if key == column else row[i] for i, key in enumerate(header)]
        )
        new = text.getvalue().encode()
    with pytest.raises(ValueError):
        read_clips(tmp_path, name, [*lines[: LINE - 1], new, *lines[LINE:]])
    check(tmp_path, name, lines, new)
