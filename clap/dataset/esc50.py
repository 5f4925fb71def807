"""ESC-50 (Piczak 2015) in its published layout: audio/ and meta/esc50.csv. ESC-10 is the same layout with fewer classes."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clap.dataset.clips import Clip, Corpus
from clap.dataset.csv import read_csv, require_columns

COLUMNS = ("filename", "fold", "category", "src_file")


class ESC50(Corpus):
    """Labelled five-second clips in folds; captions are made from labels by templates.

    Args:
        root: folder that holds audio/ and meta/esc50.csv.
        train_folds, val_folds, test_folds: folds of each split.
        val_fraction: without val_folds, the share of each class's training clips that is held back for validation;
            clips cut from one recording (`src_file`) stay together.
        templates: each makes one caption, `{}` standing for the label.
    """

    name = "esc50"

    def __init__(
        self,
        root: str | Path,
        *,
        train_folds: Sequence[int] = (1, 2, 3, 4),
        val_folds: Sequence[int] = (),
        test_folds: Sequence[int] = (5,),
        val_fraction: float = 0.1,
        templates: Sequence[str] = ("the sound of {}",),
        max_duration: float = 5.0,
    ) -> None:
        self.root, self.max_duration = Path(root), max_duration
        self.folds = {"train": list(train_folds), "val": list(val_folds), "test": list(test_folds)}
        self.val_fraction, self.templates = val_fraction, list(templates)
        if bad := [template for template in self.templates if "{}" not in template] or not self.templates:
            raise ValueError(f"every template needs {{}} for the label, given {bad}; set dataset.templates")
        self.rows = self.read_index()

    def read_index(self) -> list[dict[str, str]]:
        path = self.root / "meta" / "esc50.csv"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing; dataset.root={self.root} must be the folder that holds audio/ and meta/esc50.csv "
                "(ESC-50 is published at github.com/karolpiczak/ESC-50)"
            )
        rows = read_csv(path)
        require_columns(path, rows[0][1], COLUMNS)
        for line, row in rows:
            if not row["fold"].isdigit() or not row["category"]:
                raise ValueError(
                    f"{path}, line {line}: fold={row['fold']!r} is no number or category={row['category']!r} is empty"
                )
        self.check_folds({int(row["fold"]) for _, row in rows})
        return [row for _, row in rows]

    def check_folds(self, present: set[int]) -> None:
        for split, folds in self.folds.items():
            if unknown := sorted(set(folds) - present):
                raise ValueError(
                    f"dataset.{split}_folds={folds}: fold {unknown[0]} does not exist in {self.root}, which has {sorted(present)}"
                )
        for split, other in (("train", "val"), ("train", "test"), ("val", "test")):
            if shared := set(self.folds[split]) & set(self.folds[other]):
                raise ValueError(
                    f"fold {min(shared)} is in dataset.{split}_folds and in dataset.{other}_folds; keep them apart"
                )

    def clips(self, split: str) -> list[Clip]:
        if split == "test" or self.folds["val"]:
            rows = [row for row in self.rows if int(row["fold"]) in self.folds[split]]
        else:
            held_back = self.held_back()
            training = [row for row in self.rows if int(row["fold"]) in self.folds["train"]]
            rows = [row for row in training if (row["filename"] in held_back) == (split == "val")]
        return [self.make_clip(row) for row in rows]

    def held_back(self) -> set[str]:
        """File names held back for validation: of each class whole recordings, chosen by a fixed seed, up to the fraction."""
        recordings: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for row in self.rows:
            if int(row["fold"]) in self.folds["train"]:
                recordings[row["category"]][row["src_file"]].append(row["filename"])
        held_back: set[str] = set()
        for number, category in enumerate(sorted(recordings)):
            sources = recordings[category]
            wanted = self.val_fraction * sum(len(names) for names in sources.values())
            chosen: list[str] = []
            for source in np.random.default_rng([0, number]).permutation(sorted(sources)):
                if len(chosen) + len(sources[source]) <= max(wanted, 1):
                    chosen += sources[source]
            held_back.update(chosen)
        return held_back

    def make_clip(self, row: dict[str, str]) -> Clip:
        label = row["category"].replace("_", " ")
        captions = tuple(template.format(label) for template in self.templates)
        return Clip(row["filename"], captions, self.root / "audio" / row["filename"], label)
