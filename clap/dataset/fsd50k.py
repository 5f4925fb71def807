"""FSD50K (Fonseca et al. 2022) in the layout of its unpacked archives."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from clap.corpus import Clip, Corpus, check_split
from clap.dataset.index import (
    check_has_letters,
    check_name_length,
    check_number,
    check_unique,
    find_index,
    require_root,
    shorten_repr,
)
from clap.dataset.index_file import read_csv
from clap.dataset.keywords import fill_keyword_templates
from clap.prompts import TEMPLATES, check_templates

DEV_SPLITS = ("train", "val")  # values of the split column of dev.csv


class FSD50K(Corpus):
    """Clips of 0.3 to 30 seconds from Freesound with one or more of 200 labels, all of which are in the captions.

    A clip also has the ancestors of its labels in the AudioSet ontology (Electric_guitar: Guitar and Music), so most
    clips have several correct labels, `Clip.labels`, for multi-label classification. Only a clip with a single label
    has `Clip.label`; the others are skipped by zero-shot classification, which counts one class as correct.

    Layout of root: FSD50K.dev_audio/, FSD50K.eval_audio/ and FSD50K.ground_truth/ with dev.csv and eval.csv.

    Args:
        templates: one caption each, with `{}` in place of the labels.
        max_duration: seconds; training reads only this much of a longer clip.

    Raises:
        FileNotFoundError: root or an index is missing.
        ValueError: a row or template is invalid.
    """

    name, title = "fsd50k", "FSD50K"
    source = "zenodo.org/records/4060432"
    licence = "CC BY 4.0; audio: Creative Commons, by clip"
    citation = (
        "E. Fonseca, X. Favory, J. Pons, F. Font, X. Serra. FSD50K: An open dataset of human-labeled sound events. "
        "TASLP 2022."
    )
    counts = {"train": 36_796, "val": 4_170, "test": 10_231}

    def __init__(self, root: str | Path, *, templates: Sequence[str] = TEMPLATES, max_duration: float = 30.0) -> None:
        self.root, self.max_duration = Path(root), max_duration
        self.templates = check_templates(templates, what="label", key="dataset.templates")
        require_root(self)

    def clips(self, split: str) -> list[Clip]:
        check_split(split)
        part = "eval" if split == "test" else "dev"
        path = find_index(self, f"FSD50K.ground_truth/{part}.csv")
        columns = ("fname", "labels", *(("split",) if part == "dev" else ()))
        seen: dict[str, str] = {}
        clips = []
        for where, row in read_csv(path, columns):
            clip = self.make_clip(row, part, where)
            check_unique(seen, clip.id, "fname", where)
            if part == "eval" or row["split"].strip() == split:
                clips.append(clip)
        return clips

    def make_clip(self, row: Mapping[str, str], part: str, where: str) -> Clip:
        number = check_number(row["fname"].strip(), "fname", where)
        check_name_length(number, "fname", where)
        if part == "dev" and row["split"].strip() not in DEV_SPLITS:
            raise ValueError(f"{where}: split={shorten_repr(row['split'])} is not one of {', '.join(DEV_SPLITS)}")
        labels = tuple(label.strip() for label in row["labels"].split(","))
        for label in labels:
            check_has_letters({"labels": label}, "labels", where)
        words = tuple(label.replace("_", " ").lower() for label in labels)
        path = self.root / f"FSD50K.{part}_audio" / f"{number}.wav"
        label = words[0] if len(words) == 1 else None
        captions = fill_keyword_templates(words, self.templates)
        source = f"freesound:{number}"
        known = {"keywords": words, "source": source, "labels": words}
        return Clip(number, captions, path, label, **known, captions_from_labels=True)
