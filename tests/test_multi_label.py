"""Mean average precision of several labels a clip, against a loop over the ranked clips."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CAPTIONS

from clap.corpus import Clip, Corpus
from clap.dataset.clips import ClapDataset
from clap.evaluation.embedded_split import EmbeddedSplit, Splits
from clap.evaluation.multi_label import METRIC, MultiLabel
from clap.evaluation.results import Evaluation

pytestmark = pytest.mark.filterwarnings("error::UserWarning")

LABELS = [("dog", "bark"), ("rain",), ("dog",), ("siren", "rain", "dog"), ("rain",), ("siren",), (), ("bark", "dog")]


class Listed(Corpus):
    name = "listed"

    def __init__(self, clips: list[Clip]) -> None:
        self.listed = clips

    def clips(self, split: str) -> list[Clip]:
        return self.listed


class FixedClasses:
    """A model whose class embeddings are given: (classes, embed_dim) for the class names in order."""

    def __init__(self, embedding: torch.Tensor) -> None:
        self.embedding = embedding

    def embed_classes(self, class_names: list[str], templates: list[str]) -> torch.Tensor:
        return self.embedding[: len(class_names)]


def make_clips(labels: list[tuple[str, ...]] = LABELS) -> list[Clip]:
    return [Clip(str(i), (CAPTIONS[i % 8],), labels=own) for i, own in enumerate(labels)]


def make_splits(clips: list[Clip], audio: torch.Tensor) -> Splits:
    dataset = ClapDataset(Listed(clips), "test", sample_rate=16_000)
    return Splits(EmbeddedSplit(dataset, audio, list(range(len(clips))), {}))


def draw(count: int, *, seed: int, levels: int | None = None) -> torch.Tensor:
    """Embeddings (count, 4); with `levels` of few values, so that many cosines are equal."""
    generator = torch.Generator().manual_seed(seed)
    if levels:
        return torch.randint(levels, (count, 4), generator=generator).float()
    return torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1)


def rank_by_loop(scores: list[float], is_positive: list[bool]) -> float:
    """Average precision of one class; of equal scores the clips without the label come first."""
    order = sorted(range(len(scores)), key=lambda clip: (-scores[clip], is_positive[clip]))
    precisions, found = [], 0
    for rank, clip in enumerate(order, start=1):
        if is_positive[clip]:
            found += 1
            precisions.append(found / rank)
    return sum(precisions) / len(precisions)


def evaluate(clips: list[Clip], audio: torch.Tensor, classes: torch.Tensor) -> Evaluation:
    return MultiLabel()(FixedClasses(classes), make_splits(clips, audio))


@pytest.mark.parametrize("levels", [None, 2, 3], ids=["no ties", "many ties", "some ties"])
def test_metric_is_that_of_a_loop(levels: int | None):
    generator = np.random.default_rng(0)
    names = ["bark", "dog", "rain", "siren", "wind"]
    labels = [tuple(name for name in names if generator.random() < 0.3) for _ in range(60)]
    clips, audio, classes = make_clips(labels), draw(60, seed=1, levels=levels), draw(5, seed=2, levels=levels)
    result = evaluate(clips, audio, classes)
    kept = [row for row, own in enumerate(labels) if own]
    expected = [
        rank_by_loop((audio[kept] @ classes[place]).tolist(), [name in labels[row] for row in kept])
        for place, name in enumerate(names)
    ]
    assert result.metrics[METRIC] == pytest.approx(np.mean(expected))
    np.testing.assert_allclose(result.per_query["average_precision"], expected)
    assert result.protocol["clips_with_label"] == len(kept) == len(result.clip_ids) < 60


def test_equal_embeddings_score_below_chance():
    result = evaluate(make_clips(), torch.ones(8, 4), torch.ones(4, 4))
    assert result.metrics[METRIC] < result.chance[METRIC]


def test_chance_is_the_mean_over_random_orders():
    drawn = [evaluate(make_clips(), draw(8, seed=seed), draw(4, seed=seed + 1000)) for seed in range(300)]
    assert np.mean([result.metrics[METRIC] for result in drawn]) == pytest.approx(drawn[0].chance[METRIC], abs=0.02)


def test_class_without_a_clip_is_skipped_and_named(tmp_path: Path):
    clips = make_clips()
    gone = Clip("gone", ("wind",), tmp_path / "gone.wav", labels=("wind", "dog"))
    splits = make_splits(clips, draw(8, seed=1))
    splits.evaluated.dataset.missing = [gone]
    result = MultiLabel()(FixedClasses(draw(4, seed=2)), splits)
    assert result.protocol["classes_without_clips"] == ["wind"]
    assert result.protocol["class_names"] == ["bark", "dog", "rain", "siren"]
    assert result.metrics[METRIC] == evaluate(clips, draw(8, seed=1), draw(4, seed=2)).metrics[METRIC]


def test_protocol_identifies_the_labels():
    clips = make_clips()
    audio, classes = draw(8, seed=1), draw(4, seed=2)
    manifest = evaluate(clips, audio, classes).protocol["label_manifest"]
    reordered = [replace(clips[0], labels=("bark", "dog")), *clips[1:]]
    other = [replace(clips[0], labels=("bark", "rain")), *clips[1:]]
    assert evaluate(reordered, audio, classes).protocol["label_manifest"] == manifest
    assert evaluate(other, audio, classes).protocol["label_manifest"] != manifest


def test_single_label_counts_as_one():
    single = [Clip(str(i), (CAPTIONS[i],), label=own[0]) for i, own in enumerate([("dog",), ("rain",)] * 4)]
    several = make_clips([("dog",), ("rain",)] * 4)
    audio, classes = draw(8, seed=1), draw(2, seed=2)
    assert evaluate(single, audio, classes).metrics == evaluate(several, audio, classes).metrics


def test_dataset_without_labels_is_refused():
    dataset = ClapDataset(Listed(make_clips([()] * 3)), "test", sample_rate=16_000)
    with pytest.raises(ValueError, match=r"no clip of listed \(test\) has a label; choose evaluation=\[retrieval\]"):
        MultiLabel().check(dataset)


def test_report_lists_the_classes(tmp_path: Path):
    result = evaluate(make_clips(), draw(8, seed=1), draw(4, seed=2))
    result.protocol |= {"dataset": "listed", "split": "test"}
    MultiLabel().write_report(result, tmp_path / "report")
    with (tmp_path / "report" / "classes.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["class"], line["clips"]) for line in lines] == [
        ("bark", "2"),
        ("dog", "4"),
        ("rain", "3"),
        ("siren", "2"),
    ]
    assert np.mean([float(line["average_precision"]) for line in lines]) == pytest.approx(result.metrics[METRIC])
    assert np.mean([float(line["chance"]) for line in lines]) == pytest.approx(result.chance[METRIC])
    assert (tmp_path / "report" / "average_precision.png").stat().st_size


def test_model_ranks_the_clips_of_its_prompts_first(tiny_clap):
    clap, clips = tiny_clap(), make_clips([("dog",), ("rain",), ("siren",), ("dog",), ("rain",)])
    audio = clap.get_text_embeddings([f"the sound of {clip.labels[0]}" for clip in clips])
    assert MultiLabel()(clap, make_splits(clips, audio)).metrics[METRIC] == 1.0
