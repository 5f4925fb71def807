"""Annotated relevance: the clips that are right answers to a caption, read from a CSV, with or without grades.

The annotations of DCASE 2025 Task 6 for the Clotho evaluation split have one row for each query, `query` and
`audio_filenames`, the names in the form ['a.wav', 'b.wav']. Grades have one row for each pair, `query`,
`audio_filename` and `relevance`, a number from 0 on; 0 and pairs without a row are irrelevant.
"""

import ast
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clap.corpus import Clip
from clap.dataset.clips import ClapDataset
from clap.dataset.index_file import read_csv

KEY = "evaluation.retrieval.relevance"
FORMS = (("query", "audio_filenames"), ("query", "audio_filename", "relevance"))


@dataclass(frozen=True)
class AnnotatedGallery:
    """The queries of an annotation file with the clips that are evaluated.

    Attributes:
        texts: captions of the split that are queries.
        pair_clips, pair_texts: (pairs,) row of the clip and of the text of every relevant pair.
        grades: (pairs,) relevance, above 0.
        text_clips: (texts,) row of the clip that has the caption, of its best answer if that clip is skipped.
        protocol: of the annotations.
    """

    texts: list[str]
    pair_clips: list[int]
    pair_texts: list[int]
    grades: list[float]
    text_clips: list[int]
    protocol: dict[str, Any]


class Relevance:
    """The annotations of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has other columns, or a value is invalid; the message names file and line.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{KEY}={path} is not a file; give a CSV with the columns {describe_forms()}, or null"
            )
        rows = read_csv(self.path)
        columns = rows[0][1].keys()
        form = next((form for form in FORMS if columns >= {*form}), None)
        if form is None:
            raise ValueError(f"{self.path}: the columns are {', '.join(columns)}; {KEY} reads {describe_forms()}")
        self.is_graded = form is FORMS[1]
        # query -> clip name -> grade; query -> "FILE, line N"
        self.grades: dict[str, dict[str, float]] = {}
        self.lines: dict[str, str] = {}
        for where, row in rows:
            query = normalize(row["query"])
            if not query or (not self.is_graded and query in self.grades):
                raise ValueError(f"{where}: query is {'given twice' if query else 'empty'}; give each caption once")
            self.lines.setdefault(query, where)
            own = self.grades.setdefault(query, {})
            for name, grade in read_pair(row, where) if self.is_graded else read_names(row, where):
                if self.is_graded and name in own:
                    raise ValueError(f"{where}: {name} has a relevance for this query already; give each pair once")
                own[name] = grade

    def check(self, dataset: ClapDataset) -> None:
        """Refuse a split that lacks a query or a clip of the file; clips whose file is missing are allowed."""
        find_clip, captions = self.index(dataset)
        for query, grades in self.grades.items():
            unknown = next((name for name in grades if name not in find_clip), None)
            if query in captions and unknown is None:
                continue
            what, advice = f"{query!r} is not a caption", "annotate captions of this split, word for word"
            if query in captions:
                what, advice = f"{unknown!r} is not a clip", "give ids or file names of its clips"
            raise ValueError(
                f"{self.lines[query]}: {what} of {dataset.name} ({dataset.kind}); {advice}, or evaluate the annotated "
                "split with evaluate.py"
            )

    def index(self, dataset: ClapDataset) -> tuple[dict[str, Clip], dict[str, tuple[str, Clip]]]:
        """Clips by id and file name, and captions with their first clip by `normalize`, those of missing clips too."""
        clips = [*dataset.clips, *dataset.missing]
        by_name = {Path(clip.id).name.strip(): clip for clip in reversed(clips)}
        captions = {normalize(caption): (caption, clip) for clip in reversed(clips) for caption in clip.captions}
        return by_name | {clip.id.strip(): clip for clip in clips}, captions

    def gallery(self, dataset: ClapDataset, clips: Sequence[Clip]) -> AnnotatedGallery:
        """The queries that have a relevant clip among those that are evaluated.

        Raises:
            ValueError: none has.
        """
        find_clip, captions = self.index(dataset)
        row_of = {clip.id: row for row, clip in enumerate(clips)}
        found = AnnotatedGallery([], [], [], [], [], {})
        for query, grades in self.grades.items():
            caption, clip = captions[query]
            rows = [(row_of.get(find_clip[name].id), grade) for name, grade in grades.items() if grade > 0]
            pairs = {row: grade for row, grade in rows if row is not None}
            if not pairs:
                continue
            found.text_clips.append(row_of.get(clip.id, max(pairs, key=pairs.get)))
            found.pair_clips.extend(pairs)
            found.grades.extend(pairs.values())
            found.pair_texts.extend([len(found.texts)] * len(pairs))
            found.texts.append(caption)
        if not found.texts:
            raise ValueError(f"{self.path}: no query has a relevant clip in {dataset.name} ({dataset.kind})")
        found.protocol.update(self.describe(find_clip, len(found.texts), len(found.grades)))
        return found

    def describe(self, find_clip: Mapping[str, Clip], num_queries: int, num_pairs: int) -> dict[str, Any]:
        """What was annotated, for the protocol; independent of the order and the path of the file."""
        pairs = sorted(
            [query, find_clip[name].id, grade] for query, own in self.grades.items() for name, grade in own.items()
        )
        return {
            "queries": f"{num_queries} of {len(self.grades)}",
            "relevant_pairs": num_pairs,
            "graded": self.is_graded,
            "manifest": hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16],
        }


def read_names(row: Mapping[str, str], where: str) -> Iterable[tuple[str, float]]:
    """The names of a list such as ['a.wav', 'b.wav'], each with grade 1."""
    try:
        names = ast.literal_eval(row["audio_filenames"].strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(
            f"{where}: audio_filenames is {row['audio_filenames'][:80]!r}; give a list of names, ['a.wav', 'b.wav']"
        )
    return [(name.strip(), 1.0) for name in names]


def read_pair(row: Mapping[str, str], where: str) -> Iterable[tuple[str, float]]:
    """The name and the grade of a row."""
    try:
        grade = float(row["relevance"])
    except ValueError:
        grade = math.nan
    if not 0 <= grade < math.inf:
        raise ValueError(f"{where}: relevance is {row['relevance']!r}; give a number from 0 (irrelevant) on")
    if not row["audio_filename"].strip():
        raise ValueError(f"{where}: audio_filename is empty; give the name of a clip")
    return [(row["audio_filename"].strip(), grade)]


def normalize(caption: str) -> str:
    """A caption without white space that is repeated or at its ends."""
    return " ".join(caption.split())


def describe_forms() -> str:
    return " or ".join(", ".join(form) for form in FORMS)
