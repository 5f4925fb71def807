"""Linear probe and few-shot classification on frozen audio embeddings (Radford et al. 2021, section 3)."""

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from clap.corpus import Clip
from clap.dataset.clips import ClapDataset
from clap.evaluation.class_report import write_class_report
from clap.evaluation.embedded_split import EmbeddedSplit, Splits
from clap.evaluation.evaluator import Evaluator
from clap.evaluation.labelled_split import list_class_names, require_labels
from clap.evaluation.metrics import NOT_FINITE
from clap.evaluation.query_scores import QueryScores
from clap.evaluation.results import Evaluation
from clap.process_group import on_main

if TYPE_CHECKING:  # imports transformers
    from clap.model import Clap

KEY = "evaluation.linear_probe"
C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
TOLERANCE, MAX_ITERATIONS = 1e-4, 1000  # of the solver


@dataclass
class ProbeClips:
    """The labelled clips of a split, sorted by id, so that nothing depends on the order of a loader.

    Attributes:
        clips: (clips,).
        embedding: (clips, embed_dim) float64.
        labels: (clips,) position of the label in the class names.
        recordings: (clips,) number of the recording that a clip is cut from; a clip without `source` is one of its own.
    """

    clips: list[Clip]
    embedding: np.ndarray
    labels: np.ndarray
    recordings: np.ndarray


class LinearProbe(Evaluator):
    """Logistic regression on the audio embeddings of the labelled training clips, by scikit-learn.

    Embeddings are standardised by mean and standard deviation of the clips of a fit. The strength of the L2
    regularisation is chosen by cross-validation within the training clips, in folds that keep the clips of a recording
    together; of equal accuracies the strongest. The probe is then fitted to all of them. With `shots`, further probes
    see only a few clips of each class, of different recordings where possible.

    Args:
        c_grid: inverse strengths of the regularisation to choose from; one value: no cross-validation.
        folds: of the cross-validation.
        shots: numbers of training clips per class, each with a metric of its own, such as `accuracy_4_shot`.
        draws: random choices of these clips, over which the accuracy is averaged; 1 shot is a part of 4 shots.
        few_shot_c: inverse strength of the regularisation with `shots`, where there are too few clips to choose it.
        seed: of folds and draws.

    Raises:
        ValueError: an argument is out of range.
    """

    needs = ("train",)
    needs_text = False
    definition = 1

    def __init__(
        self,
        *,
        c_grid: Sequence[float] = C_GRID,
        folds: int = 5,
        shots: Sequence[int] = (),
        draws: int = 10,
        few_shot_c: float = 1.0,
        seed: int = 0,
    ) -> None:
        check_strengths("c_grid", c_grid)
        check_strengths("few_shot_c", [few_shot_c])
        check_whole("shots", shots, least=1)
        if len(set(shots)) < len(shots):
            raise ValueError(f"{KEY}.shots={list(shots)} repeats a number; remove one")
        for name, number, least in (("folds", folds, 2), ("draws", draws, 1), ("seed", seed, 0)):
            check_whole(name, [number], least=least)
        self.c_grid, self.few_shot_c = sorted(map(float, c_grid)), float(few_shot_c)
        self.folds, self.shots, self.draws, self.seed = folds, list(shots), draws, seed
        self.metric_names = ("linear_probe/accuracy", *map(name_few_shot, self.shots))

    def check(self, dataset: ClapDataset) -> None:
        require_labels(dataset, dataset.clips)
        if dataset.kind == "train":
            self.check_training_clips(dataset, [clip for clip in dataset.clips if clip.label is not None])

    def check_training_clips(self, dataset: ClapDataset, labelled: Sequence[Clip]) -> None:
        """ValueError if a probe cannot be fitted to these clips."""
        counts = Counter(clip.label for clip in labelled)
        if len(counts) < 2:
            raise ValueError(
                f"all labelled clips of {dataset.name} (train) have the class {next(iter(counts))!r}; a linear probe "
                "needs two; add clips of another class, or remove linear_probe from evaluation=[...]"
            )
        rarest, count = min(counts.items(), key=lambda item: (item[1], item[0]))
        if self.shots and max(self.shots) > count:
            raise ValueError(
                f"{KEY}.shots={self.shots} draws {max(self.shots)} clips of each class, and the train split of "
                f"{dataset.name} has {count} of {rarest!r}; set shots of at most {count}"
            )
        if len(self.c_grid) > 1 and len(set(map(name_recording, labelled))) < 2:
            raise ValueError(
                f"all labelled clips of {dataset.name} (train) are from one recording, which leaves no second fold to "
                f"choose from {KEY}.c_grid={self.c_grid}; set a single value"
            )

    def check_splits(self, dataset: ClapDataset, others: Mapping[str, ClapDataset]) -> None:
        if dataset.kind == "train":
            raise ValueError(
                "a linear probe is tested on other clips than it is fitted to; set split=val or split=test"
            )
        if unknown := sorted(set(list_class_names(dataset)) - set(list_class_names(others["train"]))):
            raise ValueError(
                f"no clip of the train split of {dataset.name} has the class {unknown[0]!r} of its {dataset.kind} "
                f"split (of {len(unknown)} such classes); add training clips, or remove linear_probe from "
                "evaluation=[...]"
            )

    def __call__(self, clap: "Clap", splits: Splits) -> Evaluation:
        class_names = list_class_names(splits["train"].dataset)
        train, test = (select_labelled(split, class_names) for split in (splits["train"], splits.evaluated))
        require_labels(splits.evaluated.dataset, test.clips)
        self.check_training_clips(splits["train"].dataset, train.clips)
        strength, predicted, few_shot = on_main(lambda: self.classify(train, test))
        hits = {"linear_probe/accuracy": predicted == test.labels}
        hits |= {name_few_shot(shots): shares for shots, shares in zip(self.shots, few_shot, strict=True)}
        scores = {name: QueryScores(values, np.arange(len(values))) for name, values in hits.items()}
        return Evaluation(
            {name: found.mean for name, found in scores.items()},
            [clip.id for clip in test.clips],
            scores=scores,
            per_query={
                "hit": hits["linear_probe/accuracy"],
                "label": test.labels,
                "predicted": predicted,
                "class_names": np.array(class_names),
                "c": np.array(strength),
            },
            protocol=self.describe(class_names, train, test),
            chance=dict.fromkeys(scores, 1 / len(class_names)),
        )

    def write_report(self, result: Evaluation, folder: Path) -> None:
        class_names, targets, predicted = (result.per_query[key] for key in ("class_names", "label", "predicted"))
        title = "Linear probe, {dataset} ({split})".format(**result.protocol)
        write_class_report(folder, class_names.tolist(), targets, predicted, title)

    def classify(self, train: ProbeClips, test: ProbeClips) -> tuple[float, np.ndarray, list[np.ndarray]]:
        """The chosen C, the class of each test clip (clips,), and for each of `shots` the share of draws that hit."""
        strength = self.choose_strength(train)
        predicted = fit_probe(train.embedding, train.labels, strength).predict(test.embedding)
        few_shot = [
            np.mean([self.hit_few(train, test, k, draw) for draw in range(self.draws)], axis=0) for k in self.shots
        ]
        return strength, predicted, few_shot

    def choose_strength(self, train: ProbeClips) -> float:
        """The C of the grid with the most right clips in cross-validation, of equal ones the smallest."""
        if len(self.c_grid) == 1:
            return self.c_grid[0]
        fold_of = assign_folds(train.labels, train.recordings, self.folds, np.random.default_rng(self.seed))
        right = np.zeros(len(self.c_grid), dtype=int)
        for fold in np.unique(fold_of):
            held_out = fold_of == fold
            x, y = train.embedding[~held_out], train.labels[~held_out]
            if len(np.unique(y)) > 1:
                for place, strength in enumerate(self.c_grid):
                    found = fit_probe(x, y, strength).predict(train.embedding[held_out])
                    right[place] += (found == train.labels[held_out]).sum()
        return self.c_grid[int(right.argmax())]

    def hit_few(self, train: ProbeClips, test: ProbeClips, shots: int, draw: int) -> np.ndarray:
        """Whether a probe of one draw of a few clips per class finds the class of each test clip, (clips,) bool."""
        rows = draw_clips(train.labels, train.recordings, shots, np.random.default_rng([self.seed, draw]))
        probe = fit_probe(train.embedding[rows], train.labels[rows], self.few_shot_c)
        return probe.predict(test.embedding) == test.labels

    def describe(self, class_names: list[str], train: ProbeClips, test: ProbeClips) -> dict:
        """The protocol: all that defines the numbers except the weights and the clips."""
        protocol = {
            "class_names": class_names,
            "clips_with_label": len(test.clips),
            "training_clips_with_label": len(train.clips),
            "training_recordings": len(np.unique(train.recordings)),
            "embedding": "of the audio in the joint space, standardised by the clips that a probe is fitted to",
            "probe": "logistic regression with L2 regularisation, C times the sum of the losses of the clips",
            "solver": f"scikit-learn's lbfgs, tolerance {TOLERANCE:g}, at most {MAX_ITERATIONS} iterations",
            "c_grid": self.c_grid,
            "folds": self.folds,
            "seed": self.seed,
            "accuracy": "share of clips whose class a probe of all training clips finds; C has the highest accuracy in "
            "folds of the training clips, which keep those of a recording together",
        }
        few_shot = {
            "shots": self.shots,
            "draws": self.draws,
            "few_shot_c": self.few_shot_c,
            "accuracy_of_shots": "mean over draws of as many training clips per class, of different recordings where "
            "possible",
        }
        return protocol | (few_shot if self.shots else {})


def name_few_shot(shots: int) -> str:
    return f"linear_probe/accuracy_{shots}_shot"


def name_recording(clip: Clip) -> tuple[str, str]:
    return ("clip", clip.id) if clip.source is None else ("source", clip.source)


def select_labelled(split: EmbeddedSplit, class_names: Sequence[str]) -> ProbeClips:
    """The labelled clips of an embedded split.

    Raises:
        ValueError: an embedding is not finite.
    """
    clips = split.clips
    rows = sorted((row for row, clip in enumerate(clips) if clip.label is not None), key=lambda row: clips[row].id)
    embedding = split.audio_embedding[rows].double().cpu().numpy()
    if len(bad := np.flatnonzero(~np.isfinite(embedding).all(axis=1))):
        clip_id = clips[rows[bad[0]]].id
        raise ValueError(f"the embedding of {clip_id} is not finite ({len(bad)} of {len(rows)} are not); {NOT_FINITE}")
    place = {name: number for number, name in enumerate(class_names)}
    chosen = [clips[row] for row in rows]
    labels = np.array([place[clip.label] for clip in chosen], dtype=int)
    numbers: dict[tuple[str, str], int] = {}
    recordings = np.array([numbers.setdefault(name_recording(clip), len(numbers)) for clip in chosen], dtype=int)
    return ProbeClips(chosen, embedding, labels, recordings)


def fit_probe(embedding: np.ndarray, labels: np.ndarray, strength: float) -> Pipeline:
    """Logistic regression on standardised embeddings: (clips, embed_dim), (clips,) -> a fitted classifier."""
    regression = LogisticRegression(C=strength, tol=TOLERANCE, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes")  # of one shot, as many as clips
        return make_pipeline(StandardScaler(), regression).fit(embedding, labels)


def assign_folds(labels: np.ndarray, recordings: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """The fold of each clip (clips,), with whole recordings in one and the clips of each class spread evenly.

    The recordings of a class, the largest first and else in random order, go to the fold with the fewest clips of the
    class, of equal ones that with the fewest clips.

    Args:
        labels, recordings: (clips,) int.
    """
    fold_of: dict[int, int] = {}
    total = np.zeros(folds, dtype=int)
    for label in np.unique(labels):
        own, counts = np.unique(recordings[labels == label], return_counts=True)
        order = rng.permutation(len(own))
        size = np.zeros(folds, dtype=int)
        for place in order[np.argsort(-counts[order], kind="stable")]:
            fold = fold_of.setdefault(int(own[place]), int(np.lexsort((total, size))[0]))
            size[fold] += counts[place]
            total[fold] += counts[place]
    return np.array([fold_of[recording] for recording in recordings.tolist()])


def draw_clips(labels: np.ndarray, recordings: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Rows (classes * shots,) of a few clips of each class, of as many recordings as possible.

    For one state of the generator, fewer shots are a part of more.

    Args:
        labels, recordings: (clips,) int.
    """
    chosen = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        seen: Counter = Counter()
        rounds = []  # 0 for the first clip of a recording, 1 for its second
        for recording in recordings[rows].tolist():
            rounds.append(seen[recording])
            seen[recording] += 1
        chosen.append(rows[np.argsort(rounds, kind="stable")][:shots])
    return np.concatenate(chosen)


def check_strengths(name: str, values: Sequence[float]) -> None:
    """ValueError if inverse strengths of a regularisation are not positive numbers."""
    if not values or not all(type(value) in (int, float) and 0 < value < math.inf for value in values):
        raise ValueError(f"{KEY}.{name}: {list(values)} must be positive numbers, one or more; such as 0.01 or 1.0")


def check_whole(name: str, values: Sequence[int], *, least: int) -> None:
    """ValueError if numbers are not whole, or below `least`."""
    if wrong := [value for value in values if type(value) is not int or value < least]:
        raise ValueError(f"{KEY}.{name}: {wrong[0]!r} must be a whole number from {least}; correct it")
