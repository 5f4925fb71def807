"""Rewritten captions of training clips, from a JSON Lines file (ReCLAP, Ghosh et al. 2024). Imports no torch."""

import functools
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clap.corpus import Clip
from clap.dataset.clip_table import ClipTable, JoinedClips, digest_text, encode
from clap.prompts import find_problem

log = logging.getLogger(__name__)
SETTINGS = "settings"  # key of a line that describes how the file was made, and of no clip
EXAMPLE = '{"caption": "a dog barks", "rewritings": ["a large dog barks twice"]}'
TEXTS = pa.large_list(pa.large_binary())
BATCH = 2**16  # lines that are Python objects at once


@dataclass(frozen=True)
class Rewritings:
    """The lines of a file, by what they rewrite: a caption wherever it occurs, a clip, or a caption of a clip.

    Args:
        keys: (keys,) large_binary, see `make_key`, each once.
        lines, key_starts: numbers of the lines of key i: lines[key_starts[i] : key_starts[i + 1]].
        texts, text_starts: rewritings of line i, counted from zero: texts[text_starts[i] : text_starts[i + 1]].
        digests: (texts,) int64, equal for equal texts.
        origins: (lines,) int64, equal for lines about the same caption, zero for those about a clip.
        numbers: line numbers in the file.
    """

    path: Path
    keys: pa.LargeBinaryArray
    lines: np.ndarray
    key_starts: np.ndarray
    texts: pa.ChunkedArray
    text_starts: np.ndarray
    digests: np.ndarray
    origins: np.ndarray
    numbers: np.ndarray


def read_rewritings(path: str | Path | None) -> Rewritings:
    """Read a file with one object a line: what is rewritten, `caption`, `id` or both, and `rewritings`, a list.

    A line with a caption is about this caption of any clip, one with an id about any caption of this clip. Lines with
    the same are joined. Other keys are ignored, as is a line with `settings` instead of `rewritings`.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: no file is given, or a line is invalid; the message names file and line.
    """
    if path is None:
        raise ValueError("captions=rewritten needs a file of rewritten captions; set dataset.rewritings")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"dataset.rewritings={path} is missing; set it to a file such as `python -m clap rewrite` writes"
        )
    status = path.stat()
    return _read_rewritings(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1)  # the check of a config reads the file before the dataset does
def _read_rewritings(path: Path, size: int, modified: int) -> Rewritings:
    keys, texts, counts, digests, origins, numbers = [], [], [], [], [], []
    entries = read_entries(path)
    while batch := list(itertools.islice(entries, BATCH)):
        keys.append(
            pa.array([make_key(entry.get("id"), entry.get("caption")) for _, entry in batch], pa.large_binary())
        )
        own = [text for _, entry in batch for text in entry["rewritings"]]
        texts.append(pa.array(own, pa.large_string()))
        digests.append(np.array([digest_text(text) for text in own], dtype=np.int64))
        counts.append(np.array([len(entry["rewritings"]) for _, entry in batch]))
        captions = [entry.get("caption") for _, entry in batch]
        origins.append(np.array([digest_text(text) if text else 0 for text in captions], dtype=np.int64))
        numbers.append(np.array([number for number, _ in batch]))
    if not keys:
        raise ValueError(f"{path} has no rewritings; write one object a line, such as {EXAMPLE}")
    encoded = pa.chunked_array(keys).combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    return Rewritings(
        path,
        keys=encoded.dictionary,
        lines=np.argsort(codes, kind="stable"),
        key_starts=count_starts(np.bincount(codes, minlength=len(encoded.dictionary))),
        texts=pa.chunked_array(texts),
        text_starts=count_starts(np.concatenate(counts)),
        digests=np.concatenate(digests),
        origins=np.concatenate(origins),
        numbers=np.concatenate(numbers),
    )


def read_entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line with rewritings.

    Raises:
        ValueError: a line is invalid.
    """
    with path.open("rb") as file:  # text files also end lines at other characters
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:  # also of bytes that are not UTF-8
                raise ValueError(f"{where}: not JSON ({error}); write an object, such as {EXAMPLE}") from None
            if isinstance(entry, dict) and SETTINGS in entry and "rewritings" not in entry:
                continue
            yield number, check_entry(entry, where)


def check_entry(entry: Any, where: str) -> dict[str, Any]:
    """Return the object of a line; ValueError if it is invalid."""
    if not isinstance(entry, dict) or not isinstance(entry.get("rewritings"), list):
        raise ValueError(f"{where}: no list of rewritings; write an object, such as {EXAMPLE}")
    if entry.get("id") is None and entry.get("caption") is None:
        raise ValueError(f"{where}: neither caption nor id; write what the line rewrites, such as {EXAMPLE}")
    for name in ("id", "caption"):
        if not isinstance(entry.get(name), str | None):
            raise ValueError(f"{where}: {name} {entry[name]!r} is not a string; quote it")
    for text in entry["rewritings"]:
        if (problem := find_problem(text)) is not None:
            raise ValueError(f"{where}: a rewriting {problem}")
    return entry


def make_key(clip_id: str | None, caption: str | None) -> bytes:
    """What a line rewrites."""
    return encode(f"{clip_id or ''}\0{caption or ''}")


def count_starts(counts: np.ndarray) -> np.ndarray:
    """Where each of consecutive ranges starts, and the end, (ranges + 1,)."""
    return np.concatenate([[0], np.cumsum(counts)])


def expand_ranges(starts: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The members of the ranges at `indices`, and the position in `indices` that each is from."""
    counts = starts[indices + 1] - starts[indices]
    positions = np.repeat(np.arange(len(indices)), counts)
    within = np.arange(len(positions)) - count_starts(counts)[positions]
    return starts[indices][positions] + within, positions


class RewrittenCaptions:
    """The rewritings of the clips of a dataset, of which training draws one in place of an original caption.

    A text that rewrites different captions of clips in different groups is not drawn: such clips are not positives
    of each other, and one text would have to match and not to match a clip.

    Args:
        clips: of the dataset.
        groups: (clips,), equal for clips with equal captions.
        fraction: share of draws that are rewritings, of clips that have any; 0.6 in ReCLAP (p = 0.4 for the original).
        is_used: (clips,) truth values; other clips keep their captions. None: all.

    Raises:
        ValueError: no clip has a rewriting.
    """

    def __init__(
        self,
        rewritings: Rewritings,
        clips: Sequence[Clip],
        groups: Sequence[int],
        *,
        fraction: float,
        is_used: np.ndarray | None = None,
    ) -> None:
        self.fraction, self.texts = fraction, rewritings.texts
        clip, key = find_keys(rewritings.keys, clips)
        if is_used is not None:
            clip, key = clip[is_used[clip]], key[is_used[clip]]
        line, position = expand_ranges(rewritings.key_starts, key)
        line, clip = rewritings.lines[line], clip[position]
        unknown = np.setdiff1d(np.arange(len(rewritings.numbers)), line)
        text, position = expand_ranges(rewritings.text_starts, line)
        line, clip = line[position], clip[position]
        group, digests = np.asarray(groups)[clip], rewritings.digests[text]
        origin = np.where(rewritings.origins[line] == 0, group, rewritings.origins[line])
        is_shared = find_shared(digests, group) & find_shared(digests, origin)
        self.chosen, clip = text[~is_shared], clip[~is_shared]
        counts = np.bincount(clip, minlength=len(clips))
        self.starts = count_starts(counts)
        self.digests = np.zeros(len(clips), dtype=np.int64)
        np.add.at(self.digests, clip, digests[~is_shared])
        where = f"{len(unknown)} of {len(rewritings.numbers)} lines of {rewritings.path} are about no training clip"
        where += f", the first is line {rewritings.numbers[unknown[0]]}" if len(unknown) else ""
        if not len(clip):
            raise ValueError(
                f"no training clip has a rewritten caption: {where}; set dataset.rewritings to another file"
            )
        log.info(
            "%d of %d clips have rewritten captions, %d texts, drawn with probability %g; %s",
            *(np.count_nonzero(counts), len(clips), len(np.unique(digests[~is_shared])), fraction, where),
        )
        if is_shared.any():
            log.info(
                "%d of %d texts are not drawn, since different captions share them",
                *(len(np.unique(digests[is_shared])), len(np.unique(digests))),
            )

    def draw(self, index: int, rng: np.random.Generator) -> str | None:
        """A rewriting of a clip; None: the original caption is drawn, or there is no rewriting."""
        start, end = self.starts[index], self.starts[index + 1]
        if start == end or rng.random() >= self.fraction:
            return None
        return self.texts[int(self.chosen[rng.integers(start, end)])].as_py()

    def list_texts(self) -> list[str]:
        """The rewritings that may be drawn, each once."""
        return self.texts.take(np.unique(self.chosen)).to_pylist()


def find_keys(keys: pa.LargeBinaryArray, clips: Sequence[Clip]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a clip and a key that is about it, sorted and each once, as two arrays (pairs,) of indices."""
    ids, captions = read_columns(clips)
    owners = np.repeat(np.arange(len(clips)), captions.value_lengths().to_numpy(zero_copy_only=False))
    flat, empty = captions.flatten(), pa.scalar(b"", pa.large_binary())
    owner_ids = ids.take(owners)
    found = []
    for own, text, clip in ((empty, flat, owners), (owner_ids, flat, owners), (ids, empty, np.arange(len(clips)))):
        names = pc.binary_join_element_wise(own, text, pa.scalar(b"\0", pa.large_binary()))
        key = pc.index_in(names, value_set=keys).fill_null(-1).to_numpy().astype(np.int64)
        found.append((clip * len(keys) + key)[key >= 0])
    pairs = np.unique(np.concatenate(found))
    return pairs // len(keys), pairs % len(keys)


def read_columns(clips: Sequence[Clip]) -> tuple[pa.LargeBinaryArray, pa.LargeListArray]:
    """Ids and captions of clips."""
    if isinstance(clips, ClipTable | JoinedClips):
        schema = pa.schema([("id", pa.large_binary()), ("captions", TEXTS)])
        table = pa.concat_tables(clips.batches("id", "captions")).cast(schema)
        return tuple(column.combine_chunks() for column in table.columns)
    ids = pa.array([encode(clip.id) for clip in clips], pa.large_binary())
    captions = [[encode(caption) for caption in clip.captions] for clip in clips]
    return ids, pa.array(captions, TEXTS)


def find_shared(digests: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Whether the text with a digest is also in another group, truth values (texts,)."""
    order = np.lexsort((groups, digests))
    digest, group = digests[order], groups[order]
    is_other = (digest[1:] == digest[:-1]) & (group[1:] != group[:-1])
    return np.isin(digests, digest[1:][is_other])
