"""The linear probe against plain fits of scikit-learn, its folds and draws by recording, and what it refuses."""

import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import CONF
from numpy.testing import assert_array_equal
from ranks import run_ranks
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from clap.corpus import Clip, Corpus
from clap.dataset.clips import ClapDataset
from clap.dataset.loader import make_loader
from clap.evaluation.embedded_split import EmbeddedSplit, Splits
from clap.evaluation.evaluator import check_evaluators, evaluate_split
from clap.evaluation.linear_probe import LinearProbe, assign_folds, draw_clips
from clap.evaluation.results import Evaluation
from clap.study.scores import combine_protocols

CLASSES = ("dog", "rain", "siren")
NOISE = 3.0  # of recordings, next to means of classes with a standard deviation of 1


class Labelled(Corpus):
    """Clips without files, by split."""

    name = "labelled"

    def __init__(self, **splits: list[Clip]) -> None:
        self.splits = splits

    def clips(self, split: str) -> list[Clip]:
        return self.splits[split]


def make_clips(count: int, *, per_recording: int = 2, first: int = 0) -> list[Clip]:
    """Clips of the classes in turn; consecutive clips of a class share a recording."""
    clips = []
    for number in range(first, first + count):
        recording = f"freesound:{number % 3}{number // 3 // per_recording:03d}"
        clips.append(Clip(f"{number:03d}", ("a sound",), label=CLASSES[number % 3], source=recording))
    return clips


def embed(clips: list[Clip], kind: str, *, noise: float, seed: int = 0) -> EmbeddedSplit:
    """Unit-norm embeddings (clips, 16) around the mean of their class, nearly equal within a recording."""
    means = np.random.default_rng(9).normal(size=(3, 16))
    rows = []
    for clip in clips:
        own = np.random.default_rng([seed, *(clip.source or clip.id).encode()]).normal(size=16)
        jitter = 0.1 * np.random.default_rng([seed, *clip.id.encode()]).normal(size=16)
        rows.append((means[CLASSES.index(clip.label)] if clip.label in CLASSES else 0) + noise * (own + jitter))
    dataset = ClapDataset(Labelled(**{kind: clips}), kind, sample_rate=16_000, window=None)
    embedding = torch.nn.functional.normalize(torch.tensor(np.array(rows)).float(), dim=1)
    return EmbeddedSplit(dataset, embedding, list(range(len(clips))), {})


@pytest.fixture(scope="module")
def splits() -> Splits:
    train = embed(make_clips(72), "train", noise=NOISE)
    return Splits(embed(make_clips(30, first=900), "test", noise=NOISE), {"train": lambda: train})


def shuffle(split: EmbeddedSplit) -> EmbeddedSplit:
    order = np.random.default_rng(1).permutation(len(split.index))
    return EmbeddedSplit(split.dataset, split.audio_embedding[order], [split.index[i] for i in order], {})


# The numbers


def fit_plainly(splits: Splits, rows: list[int], c: float) -> np.ndarray:
    """Whether plain scikit-learn, fitted to some rows of the train split, finds the class of each test clip."""
    train, test = splits["train"], splits.evaluated
    scaler = StandardScaler().fit(train.audio_embedding[rows].double())
    labels = [train.clips[row].label for row in rows]
    probe = LogisticRegression(C=c, max_iter=1000).fit(scaler.transform(train.audio_embedding[rows].double()), labels)
    return probe.predict(scaler.transform(test.audio_embedding.double())) == [clip.label for clip in test.clips]


def test_accuracy_is_that_of_a_plain_fit_with_the_chosen_c(splits: Splits):
    result = LinearProbe()(None, splits)
    hits = fit_plainly(splits, list(range(72)), float(result.per_query["c"]))
    assert_array_equal(result.per_query["hit"], hits)
    assert result.metrics == {"linear_probe/accuracy": pytest.approx(hits.mean())}
    assert 0.4 < hits.mean() < 1
    assert result.chance == {"linear_probe/accuracy": pytest.approx(1 / 3)}


def test_c_is_chosen_within_the_training_clips(splits: Splits):
    """An extremely strong regularisation finds one class only; the labels of the test split change nothing."""
    probe = LinearProbe(c_grid=[1e-9, 0.1])
    assert probe(None, splits).per_query["c"] == 0.1
    moved = [Clip(clip.id, clip.captions, label="dog", source=clip.source) for clip in splits.evaluated.clips]
    relabelled = Splits(embed(moved, "test", noise=NOISE), splits.others)
    assert probe(None, relabelled).per_query["c"] == 0.1


def test_of_equal_cs_the_strongest_is_chosen():
    train = embed(make_clips(36), "train", noise=0.01)
    result = LinearProbe(c_grid=[1.0, 0.1, 0.01])(
        None, Splits(embed(make_clips(6), "test", noise=0.01), {"train": lambda: train})
    )
    assert result.per_query["c"] == 0.01
    assert result.metrics["linear_probe/accuracy"] == 1.0


def test_few_shot_is_the_mean_over_draws(splits: Splits):
    result = LinearProbe(shots=[1, 4], draws=3, few_shot_c=0.5)(None, splits)
    clips = splits["train"].clips
    labels = np.array([CLASSES.index(clip.label) for clip in clips])
    recordings = np.unique([clip.source for clip in clips], return_inverse=True)[1]
    for shots in (1, 4):
        drawn = [draw_clips(labels, recordings, shots, np.random.default_rng([0, draw])) for draw in range(3)]
        hits = np.mean([fit_plainly(splits, rows.tolist(), 0.5) for rows in drawn], axis=0)
        name = f"linear_probe/accuracy_{shots}_shot"
        assert_array_equal(result.scores[name].values, hits)
        assert result.metrics[name] == pytest.approx(hits.mean())
        assert result.chance[name] == pytest.approx(1 / 3)


def test_order_of_the_clips_changes_nothing(splits: Splits):
    train, test = shuffle(splits["train"]), shuffle(splits.evaluated)
    evaluations = [LinearProbe(shots=[1])(None, given) for given in (splits, Splits(test, {"train": lambda: train}))]
    assert evaluations[0].clip_ids == evaluations[1].clip_ids
    assert evaluations[0].metrics == evaluations[1].metrics
    assert evaluations[0].protocol == evaluations[1].protocol


def test_every_rank_has_the_numbers_of_rank_0(splits: Splits):
    def probe(rank: int) -> Evaluation:
        if rank:  # what a rank without a fit of its own would notice
            splits["train"].audio_embedding.mul_(-1)
        return LinearProbe(shots=[1])(None, splits).metrics

    alone = LinearProbe(shots=[1])(None, splits).metrics
    assert run_ranks(probe) == [alone, alone]


def test_clips_without_a_label_are_neither_fitted_nor_queries(splits: Splits):
    extra = [Clip(f"x{number}", ("a sound",)) for number in range(3)]
    train = embed([*make_clips(72), *extra], "train", noise=NOISE)
    test = embed([*make_clips(30, first=900), *extra], "test", noise=NOISE)
    result = LinearProbe()(None, Splits(test, {"train": lambda: train}))
    assert result.metrics == LinearProbe()(None, splits).metrics
    assert result.protocol["clips_with_label"] == 30
    assert result.protocol["training_clips_with_label"] == 72


def test_clip_of_a_class_that_could_not_be_read_in_training_is_wrong(splits: Splits):
    train = splits["train"]
    rows = [row for row, clip in enumerate(train.clips) if clip.label != "siren"]
    kept = EmbeddedSplit(train.dataset, train.audio_embedding[rows], rows, {})
    result = LinearProbe()(None, Splits(splits.evaluated, {"train": lambda: kept}))
    assert result.per_query["class_names"].tolist() == list(CLASSES)
    assert not result.per_query["hit"][result.per_query["label"] == 2].any()


def test_report_counts_the_clips_by_predicted_class(splits: Splits, tmp_path: Path):
    probe = LinearProbe()
    result = probe(None, splits)
    result.protocol |= {"dataset": "labelled", "split": "test"}  # as run_evaluator adds them
    probe.write_report(result, tmp_path / "report")
    lines = (tmp_path / "report" / "confusion.csv").read_text().splitlines()
    assert lines[0].split(",")[1:] == list(CLASSES)
    right = sum(int(line.split(",")[1 + row]) for row, line in enumerate(lines[1:]))
    assert right == result.per_query["hit"].sum()
    assert (tmp_path / "report" / "confusion.png").is_file()


def test_folds_with_other_numbers_of_training_clips_are_one_number(splits: Splits):
    protocols = {}
    for fold, count in (("1", 72), ("2", 66)):
        train = embed(make_clips(count), "train", noise=NOISE)
        protocol = LinearProbe()(None, Splits(splits.evaluated, {"train": lambda train=train: train})).protocol
        protocols[fold] = {"hash": fold, "clips": "30 of 30", "clip_manifest": fold, **protocol}
    combined = combine_protocols("linear_probe/accuracy", protocols)
    assert (combined["clips"], combined["clips_with_label"]) == ("60 of 60", 60)


def test_embedding_that_is_not_finite_is_named(splits: Splits):
    train = splits["train"]
    embedding = train.audio_embedding.clone()
    embedding[5, 3] = float("nan")
    broken = EmbeddedSplit(train.dataset, embedding, train.index, {})
    with pytest.raises(ValueError, match="embedding of 005 is not finite"):
        LinearProbe()(None, Splits(splits.evaluated, {"train": lambda: broken}))


# Folds and draws


def test_folds_keep_recordings_together_and_spread_each_class():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 50)
    recordings = np.concatenate([100 * label + np.sort(rng.integers(0, 25, 50)) for label in range(4)])
    folds = assign_folds(labels, recordings, 5, np.random.default_rng(0))
    for recording in np.unique(recordings):
        assert len(set(folds[recordings == recording])) == 1
    for label in range(4):
        assert max(abs(np.bincount(folds[labels == label], minlength=5) - 10)) <= 2


def test_classes_of_one_recording_each_are_in_several_folds():
    folds = assign_folds(np.arange(10), np.arange(10), 5, np.random.default_rng(0))
    assert_array_equal(np.bincount(folds), [2] * 5)


def test_draws_take_different_recordings_first_and_grow_with_the_shots():
    labels, recordings = np.repeat([0, 1], 6), np.repeat([0, 1, 2, 3], 3)
    for seed in range(5):
        two, four = (draw_clips(labels, recordings, k, np.random.default_rng(seed)) for k in (2, 4))
        assert sorted(recordings[two]) == [0, 1, 2, 3]
        assert set(two) < set(four)
        assert sorted(recordings[four]) == [0, 0, 1, 1, 2, 2, 3, 3]
        assert len(set(four)) == 8


# What is refused


def open_splits(train: list[Clip], test: list[Clip]) -> list[ClapDataset]:
    corpus = Labelled(train=train, test=test)
    return [ClapDataset(corpus, kind, sample_rate=16_000, window=None) for kind in ("train", "test")]


def relabel(clips: list[Clip], label: str | None) -> list[Clip]:
    return [Clip(clip.id, clip.captions, label=label, source="freesound:1") for clip in clips]


ONE_RECORDING = [Clip(f"{i}", ("a sound",), label=CLASSES[i % 3], source="freesound:1") for i in range(9)]


@pytest.mark.parametrize(
    ("train", "test", "options", "message"),
    [
        (make_clips(9), relabel(make_clips(3), None), {}, "no clip of labelled \\(test\\) has a label"),
        (relabel(make_clips(9), None), make_clips(3), {}, "no clip of labelled \\(train\\) has a label"),
        (relabel(make_clips(9), "dog"), make_clips(3), {}, "have the class 'dog'; a linear probe needs two"),
        (
            make_clips(2),
            make_clips(3),
            {},
            "no clip of the train split .* 'siren' of its test split .of 1 such classes.; add",
        ),
        (make_clips(11), make_clips(3), {"shots": [1, 4]}, "draws 4 clips .* has 3 of 'siren'; set shots of at most 3"),
        (ONE_RECORDING, make_clips(3), {}, "are from one recording.*c_grid.*set a single value"),
    ],
)
def test_split_that_cannot_be_probed_is_refused(train: list[Clip], test: list[Clip], options: dict, message: str):
    datasets = open_splits(train, test)
    with pytest.raises(ValueError, match=message):
        check_evaluators(datasets[1], {"linear_probe": LinearProbe(**options)}, {"train": datasets[0]})


def test_one_recording_and_one_c_are_enough():
    datasets = open_splits(ONE_RECORDING, make_clips(3))
    check_evaluators(datasets[1], {"linear_probe": LinearProbe(c_grid=[1])}, {"train": datasets[0]})


def test_training_split_is_not_evaluated():
    train, _ = open_splits(make_clips(9), make_clips(3))
    with pytest.raises(ValueError, match="other clips than it is fitted to; set split=val or split=test"):
        check_evaluators(train, {"linear_probe": LinearProbe()}, {"train": train})


@pytest.mark.parametrize(
    "options",
    [
        {"shots": [0]},
        {"shots": [1.5]},
        {"shots": [True]},
        {"shots": [4, 4]},
        {"c_grid": []},
        {"c_grid": [0.1, -1]},
        {"few_shot_c": float("inf")},
        {"folds": 1},
        {"draws": 0},
        {"seed": -1},
    ],
)
def test_argument_out_of_range_is_named_by_its_key(options: dict):
    with pytest.raises(ValueError, match=f"evaluation.linear_probe.{next(iter(options))}"):
        LinearProbe(**options)


def test_yaml_has_the_defaults_of_the_class():
    node = yaml.safe_load((CONF / "evaluation" / "linear_probe.yaml").read_text())
    defaults = {name: found.default for name, found in inspect.signature(LinearProbe).parameters.items()}
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()} == {
        key: value for key, value in node.items() if key != "_target_"
    }


# As a part of an evaluation


def test_evaluation_embeds_the_train_split_and_names_it_in_the_protocol(tiny_clap: Callable, tones: list):
    clap = tiny_clap()
    clips = [Clip(f"{i}", ("a sound",), tones[i], CLASSES[i % 2]) for i in range(8)]
    corpus = Labelled(train=clips[:6], test=clips[6:])
    loaders = {}
    for kind in ("train", "test"):
        dataset = ClapDataset(corpus, kind, sample_rate=clap.sample_rate, window=clap.window, training=False)
        loaders[kind] = make_loader(dataset, clap.collate, batch_size=4, num_workers=0, shuffle=False)
    evaluators = {"probe": LinearProbe(shots=[1, 2])}
    result = evaluate_split(clap, loaders["test"], evaluators, other_loaders=loaders)["probe"]
    names = ("accuracy", "accuracy_1_shot", "accuracy_2_shot")
    assert set(result.metrics) == {f"test/labelled/linear_probe/{name}" for name in names}
    assert result.protocol["other_splits"]["train"]["clips"] == "6 of 6"
    assert result.protocol["chance"]["test/labelled/linear_probe/accuracy_1_shot"] == 0.5
