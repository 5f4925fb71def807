"""Labelled clips in published folds, the base of ESC-50 and UrbanSound8K."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import numpy as np

from clap.corpus import Clip, Corpus
from clap.dataset.csv import check_fractions
from clap.dataset.index import check_has_letters, check_number, check_recording, check_unique, find_index, shorten_repr
from clap.dataset.index_file import read_csv
from clap.dataset.keywords import fill_keyword_templates
from clap.prompts import CLASS_TEMPLATES, check_templates


class Folds(Corpus):
    """Labelled clips in folds, from one CSV; templates turn the labels into captions.

    Layout of root: audio/ and the CSV at `index`.

    Args:
        test_fold: for cross-validation: this fold is the test split, and the others in the index are for training.
        train_folds, val_folds, test_folds: folds of each split, instead of test_fold; by default the last published
            fold is the test split.
        val_fraction: without val_folds, the share of each class's training clips that is held out for validation;
            clips cut from one recording stay in one split.
        templates: one caption each, with `{}` in place of the label.
        max_duration: seconds; by default the duration of the longest published clip.

    Raises:
        FileNotFoundError: the index is missing.
        ValueError: a row, fold, fraction or template is invalid, or test_fold is combined with folds of splits.
    """

    index: str  # relative to the root
    file_column: str
    label_column: str
    recording_column: str  # Freesound id; clips with the same id are cut from one recording
    num_folds: int

    def __init__(
        self,
        root: str | Path,
        *,
        test_fold: int | None = None,
        train_folds: Sequence[int] | None = None,
        val_folds: Sequence[int] = (),
        test_folds: Sequence[int] | None = None,
        val_fraction: float = 0.1,
        templates: Sequence[str] = CLASS_TEMPLATES,
        max_duration: float | None = None,
    ) -> None:
        self.root, self.val_fraction = Path(root), val_fraction
        self.max_duration = self.max_duration if max_duration is None else max_duration
        self.templates = check_templates(templates, what="label", key="dataset.templates")
        check_fractions(val=val_fraction)
        self.rows = self.read_index()
        self.present_folds = sorted({int(row["fold"]) for row in self.rows})
        given = {"train_folds": train_folds, "val_folds": val_folds or None, "test_folds": test_folds}
        if test_fold is None:
            train = range(1, self.num_folds) if train_folds is None else train_folds
            test = [self.num_folds] if test_folds is None else test_folds
            self.folds = {"train": list(train), "val": list(val_folds), "test": list(test)}
        else:
            self.folds = self.split_by_fold(test_fold, given)

    def split_by_fold(self, test_fold: int, given: Mapping[str, Sequence[int] | None]) -> dict[str, list[int]]:
        """Folds of each split in cross-validation.

        Args:
            given: the arguments that choose the folds of splits; None if they are not given.
        """
        if others := {key: list(folds) for key, folds in given.items() if folds is not None}:
            both = ", ".join(f"{key}={folds}" for key, folds in others.items())
            raise ValueError(
                f"test_fold={test_fold} and {both} exclude each other: test_fold trains on all other folds; set "
                "dataset.test_fold=null, or "
                + " ".join(f"dataset.{key}={'[]' if key == 'val_folds' else 'null'}" for key in others)
            )
        if isinstance(test_fold, bool) or test_fold not in self.present_folds:
            raise ValueError(
                f"test_fold={test_fold!r} is not in the index of {self.root}; set dataset.test_fold to one of "
                f"{', '.join(map(str, self.present_folds))}"
            )
        return {"train": [fold for fold in self.present_folds if fold != test_fold], "val": [], "test": [test_fold]}

    @property
    def fold_sizes(self) -> dict[int, int]:
        """Published number of clips of each fold."""
        raise NotImplementedError

    @property
    def counts(self) -> dict[str, int | None]:
        counts = {split: sum(self.fold_sizes.get(fold, 0) for fold in folds) for split, folds in self.folds.items()}
        depends_on_recordings = not self.folds["val"] and self.val_fraction
        return counts | {"train": None, "val": None} if depends_on_recordings else counts

    def find_path(self, row: Mapping[str, str]) -> Path:
        """Path of the recording of a row."""
        raise NotImplementedError

    def read_index(self) -> list[dict[str, str]]:
        """The checked rows of all folds."""
        columns = (self.file_column, "fold", self.label_column, self.recording_column)
        rows = read_csv(find_index(self, self.index), columns)
        folds = {str(fold) for fold in range(1, self.num_folds + 1)}
        seen: dict[str, str] = {}
        for where, row in rows:
            if row["fold"] not in folds:
                raise ValueError(f"{where}: fold={shorten_repr(row['fold'])} is not one of 1 ... {self.num_folds}")
            check_has_letters(row, self.label_column, where)
            check_number(row[self.recording_column], self.recording_column, where)
            name = check_recording(row[self.file_column], self.file_column, where)
            check_unique(seen, name, self.file_column, where)
        return [row for _, row in rows]

    def check_folds(self, split: str) -> None:
        """ValueError if the index does not have the folds of a split."""
        if unknown := [fold for fold in self.folds[split] if fold not in self.present_folds]:
            raise ValueError(
                f"{split}_folds={self.folds[split]}: fold {unknown[0]!r} is not in the index of {self.root}; choose "
                f"from {', '.join(map(str, self.present_folds))}, as the argument {split}_folds or with "
                f"dataset.{split}_folds"
            )

    def check_disjoint(self) -> None:
        """ValueError if two splits share a fold. An evaluation never reads training clips, so it skips this check."""
        for split, other in (("train", "val"), ("train", "test"), ("val", "test")):
            if shared := set(self.folds[split]) & set(self.folds[other]):
                raise ValueError(
                    f"fold {min(shared)} is in {split}_folds and in {other}_folds; remove it from one of them"
                )

    def clips(self, split: str) -> list[Clip]:
        """The clips of a split; the index needs its folds only, for validation those from which it is held out."""
        if split == "train":
            self.check_disjoint()
        if split == "test" or self.folds["val"]:
            rows = self.select_rows(split)
        else:
            held_out, rows = self.find_val_recordings(), self.select_rows("train")
            rows = [row for row in rows if (row[self.recording_column] in held_out) == (split == "val")]
        return [self.make_clip(row) for row in rows]

    def select_rows(self, split: str) -> list[dict[str, str]]:
        self.check_folds(split)
        return [row for row in self.rows if int(row["fold"]) in self.folds[split]]

    def find_val_recordings(self) -> set[str]:
        """Recordings of the training folds that are held out for validation, drawn per class with a fixed seed."""
        sizes: dict[str, Counter] = defaultdict(Counter)  # class -> recording -> clips
        for row in self.select_rows("train"):
            sizes[row[self.label_column]][row[self.recording_column]] += 1
        held_out: set[str] = set()
        for number, category in enumerate(sorted(sizes)):
            order = np.random.default_rng([0, number]).permutation(sorted(sizes[category])).tolist()
            held_out |= choose_val_recordings(sizes[category], order, self.val_fraction, held_out)
        return held_out

    def make_clip(self, row: dict[str, str]) -> Clip:
        label = row[self.label_column].replace("_", " ")
        source = f"freesound:{row[self.recording_column]}"
        captions = fill_keyword_templates((label,), self.templates)
        return Clip(
            row[self.file_column],
            captions,
            self.find_path(row),
            label,
            keywords=(label,),
            source=source,
            captions_from_labels=True,
        )


def choose_val_recordings(
    sizes: Mapping[str, int], order: Sequence[str], fraction: float, held_out: Set[str]
) -> set[str]:
    """Recordings of one class with about `fraction` of its clips, at least one clip if possible.

    Takes the recordings that fit, in order, then one more if the total gets closer to the fraction. At least one
    recording remains for training.

    Args:
        sizes: number of clips of each recording.
        held_out: recordings that are already held out, since another class shares them.
    """
    chosen = {name for name in order if name in held_out}
    count, total = sum(sizes[name] for name in chosen), sum(sizes.values())
    wanted = max(fraction * total, 1) if fraction else 0
    for share in (1.0, 0.5):  # recordings that fit; then one that overshoots by at most half its size, which is closer
        for name in order:
            if name not in chosen and count + share * sizes[name] <= wanted and count + sizes[name] < total:
                chosen.add(name)
                count += sizes[name]
    return chosen
