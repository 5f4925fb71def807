"""A metric on distorted clips: against the evaluator of the metric, with and without workers, and its report."""

import copy
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CAPTIONS

from clap.atomic import write_json
from clap.classifier import ClapAudioClassifier
from clap.config import find_conf_dir, read_config
from clap.config.overrides import check_overrides
from clap.corpus import Clip, Corpus
from clap.dataset.clips import ClapDataset
from clap.dataset.loader import make_loader
from clap.evaluation.classification import Classification
from clap.evaluation.distortions import DISTORTIONS, Condition
from clap.evaluation.embedded_split import embed_distorted, embed_split
from clap.evaluation.evaluator import check_training, evaluate_split, write_reports
from clap.evaluation.results import Evaluation, read_results, write_results
from clap.evaluation.retrieval import Retrieval
from clap.evaluation.robustness import Robustness
from clap.evaluation.zero_shot import ZeroShot
from clap.run_folder import METRICS
from experiments import robustness as average_seeds

LEVELS = {"white_noise": [20.0, -20.0], "gain": [-20.0], "middle": [0.25], "windows": ["mean"]}
NAMES = [f"test/tones/robustness/{name}" for name in (
    "clean", "white_noise_20_db", "white_noise_-20_db", "gain_-20_db", "middle_0.25_s", "windows_mean",
)]  # fmt: skip


class Tones(Corpus):
    """Clips of 0.5 to 4 seconds; the windows of the model have one second."""

    name = "tones"

    def __init__(self, paths: list[Path], *, labels: tuple[str | None, ...] = ("dog", "rain")) -> None:
        self.paths, self.labels = paths, labels

    def clips(self, split: str) -> list[Clip]:
        labels = [self.labels[i % len(self.labels)] for i in range(8)]
        return [Clip(f"clip {i}", (CAPTIONS[i],), self.paths[i], labels[i]) for i in range(8)]


@pytest.fixture(scope="module")
def clap(tiny_clap):
    return tiny_clap()


def open_split(clap, corpus: Corpus, *, num_workers: int = 0, batch_size: int = 3):
    dataset = ClapDataset(corpus, "test", sample_rate=clap.sample_rate, window=clap.window)
    return make_loader(dataset, clap.collate, batch_size=batch_size, num_workers=num_workers, shuffle=False)


def make_evaluator(**options) -> Robustness:
    return Robustness(**{"levels": LEVELS, "distortions": list(LEVELS), **options})


def run(clap, tones: list[Path], evaluators: dict, **options) -> dict[str, Evaluation]:
    return evaluate_split(clap, open_split(clap, Tones(tones), **options), evaluators)


@pytest.fixture(scope="module")
def results(clap, tones) -> dict[str, Evaluation]:
    return run(clap, tones, {"zero_shot": ZeroShot(), "robustness": make_evaluator()})


def test_names_and_clean_value_are_those_of_the_metric(results):
    result, plain = results["robustness"], results["zero_shot"]
    accuracy = "test/tones/zero_shot/accuracy"
    assert list(result.metrics) == NAMES
    assert result.metrics[NAMES[0]] == plain.metrics[accuracy]
    np.testing.assert_array_equal(result.scores[NAMES[0]].values, plain.scores[accuracy].values)
    assert result.chance == dict.fromkeys(NAMES, 0.5)


def test_protocol_is_of_its_own(results):
    protocol = results["robustness"].protocol
    assert protocol["metric"] == "zero_shot/accuracy"
    assert protocol["templates"] == results["zero_shot"].protocol["templates"]
    assert protocol["distortions"].keys() == DISTORTIONS.keys()
    assert protocol["hash"] != results["zero_shot"].protocol["hash"]


def test_protocol_does_not_depend_on_the_chosen_levels(clap, tones, results):
    other = run(clap, tones, {"robustness": make_evaluator(distortions=["gain"])})["robustness"]
    assert other.protocol["hash"] == results["robustness"].protocol["hash"]
    assert other.metrics[NAMES[3]] == results["robustness"].metrics[NAMES[3]]


def test_numbers_do_not_depend_on_workers(clap, tones):
    embedded = []
    for workers in (0, 2):
        loader = open_split(clap, Tones(tones), num_workers=workers)
        condition = Condition("white_noise", 0.0)
        embedded.append(embed_distorted(clap, embed_split(clap, loader), loader, condition).audio_embedding)
    torch.testing.assert_close(embedded[0], embedded[1], rtol=0, atol=0)


def test_embeddings_are_those_of_the_whole_clip_distorted_and_then_cut(clap, tones):
    loader = open_split(clap, Tones(tones))
    split, condition = embed_split(clap, loader), Condition("time_shift", 1.0)
    found = embed_distorted(clap, split, loader, condition)
    whole = ClapDataset(Tones(tones), "test", sample_rate=clap.sample_rate)
    waveforms = [condition(whole[i].waveform, clap.sample_rate, f"clip {i}") for i in split.index]
    cut = []
    for waveform in waveforms:
        start = max(0, len(waveform) - clap.sample_rate) // 2
        cut.append(waveform[start : start + clap.sample_rate])
    expected = torch.cat([clap.get_audio_embeddings(waveform, clap.sample_rate) for waveform in cut])
    torch.testing.assert_close(found.audio_embedding, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found.audio_embedding, split.audio_embedding, atol=1e-3)


def test_windows_are_those_of_the_model_again(clap, tones):
    evaluator = make_evaluator(distortions=["windows"])
    mean = run(clap, tones, {"robustness": evaluator})["robustness"]
    assert clap.windows is None
    clap.set_windows("mean")
    try:
        plain = run(clap, tones, {"zero_shot": ZeroShot()})["zero_shot"]
    finally:
        clap.set_windows(None)
    np.testing.assert_array_equal(mean.scores[NAMES[-1]].values, plain.per_query["hit"])


def test_texts_are_embedded_once(clap, tones, monkeypatch):
    calls, embed = [], clap.get_text_embeddings
    monkeypatch.setattr(type(clap), "get_text_embeddings", lambda self, texts: calls.append(texts) or embed(texts))
    run(clap, tones, {"robustness": make_evaluator(distortions=["gain"])})
    assert len(calls) == 1


def test_captions_are_evaluated_by_retrieval(clap, tones):
    loader = open_split(clap, Tones(tones, labels=("dog", None)))
    evaluators = {"retrieval": Retrieval(), "robustness": make_evaluator(distortions=["gain"])}
    results = evaluate_split(clap, loader, evaluators)
    assert results["robustness"].protocol["metric"] == "text_to_audio/recall_at_1"
    recall = results["retrieval"].metrics["test/tones/text_to_audio/recall_at_1"]
    assert results["robustness"].metrics[NAMES[0]] == recall


def test_metric_and_options_of_its_evaluator_are_chosen():
    evaluator = make_evaluator(metric="linear_probe/accuracy_2_shot", options={"shots": [2]})
    assert evaluator.needs == ("train",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "zero_shot/acuracy"}, "did you mean zero_shot/accuracy"),
        ({"metric": "zero_shot/accuracy", "options": {"prompts": []}}, "with the options prompts"),
        ({"distortions": ["mp4"]}, "'mp4' is not one of"),
        ({"distortions": []}, "must name one distortion or more"),
        ({"levels": {"gain": ["loud"]}}, "evaluation.robustness.levels.gain: 'loud'"),
        ({"levels": {"gain": [900]}}, "evaluation.robustness.levels.gain: 900 must be a number from -120 to 120"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make_evaluator(**options)


def test_split_that_the_metric_cannot_use_is_refused(clap, tones):
    loader = open_split(clap, Tones(tones, labels=(None,)))
    with pytest.raises(ValueError, match="robustness.metric=zero_shot/accuracy: no clip of tones"):
        evaluate_split(clap, loader, {"robustness": make_evaluator(metric="zero_shot/accuracy")})


def test_training_refuses_it():
    with pytest.raises(ValueError, match="robustness is too slow for each validation"):
        check_training({"robustness": make_evaluator()})


def test_yaml_has_every_distortion():
    node = read_config(find_conf_dir() / "evaluation" / "robustness.yaml")
    assert list(node["levels"]) == node["distortions"] == list(DISTORTIONS)


def test_report_has_a_figure_of_each_distortion(results, tmp_path: Path):
    write_results(tmp_path, results)
    write_reports(tmp_path, {"robustness": results["robustness"]}, {"robustness": make_evaluator()})
    folder = tmp_path / "test-tones-robustness"
    assert {path.stem for path in folder.glob("*.png")} == {*LEVELS, "overview"}
    with (folder / "robustness.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["distortion"], row["level"]) for row in rows][:3] == [
        ("clean", ""), ("white_noise", "20"), ("white_noise", "-20"),
    ]  # fmt: skip
    assert all(float(row["ci_low"]) <= float(row["value"]) <= float(row["ci_high"]) for row in rows)
    stored = next(found for found in read_results(tmp_path) if found.protocol["evaluator"] == "robustness")
    assert set(stored.scores) == set(NAMES)


def write_run(folder: Path, result: Evaluation, *, shift: int) -> Path:
    """A folder of evaluate.py whose scores are those of a result, moved to other clips."""
    result = copy.deepcopy(result)
    for name, scores in result.scores.items():
        scores.values = np.roll(scores.values, shift)
        scores.values[0] = shift == 2
        result.metrics[name] = scores.mean
    write_results(folder / "evaluation", {"robustness": result})
    write_json(folder / METRICS, result.metrics)
    return folder


def test_curves_of_three_seeds_are_their_means_with_intervals(results, tmp_path: Path, capsys):
    runs = [write_run(tmp_path / str(i), results["robustness"], shift=i) for i in range(3)]
    average_seeds.main([str(tmp_path / "report"), *map(str, runs)])
    folder = tmp_path / "report" / "test-tones"
    assert {path.stem for path in folder.glob("*.png")} == {*LEVELS, "overview"}
    with (folder / "robustness.csv").open(newline="") as file:
        clean = next(csv.DictReader(file))
    values = [json.loads((run / METRICS).read_text())[NAMES[0]] for run in runs]
    assert len(set(values)) > 1
    assert float(clean["value"]) == pytest.approx(np.mean(values))
    assert float(clean["ci_low"]) < min(values) < max(values) < float(clean["ci_high"])
    assert "`white_noise`" in capsys.readouterr().out


def test_evaluation_without_robustness_is_refused(results, tmp_path: Path):
    write_results(tmp_path / "evaluation", {"zero_shot": results["zero_shot"]})
    with pytest.raises(SystemExit):
        average_seeds.main([str(tmp_path / "report"), str(tmp_path)])


def test_metric_without_scores_has_no_intervals(clap, tones, tmp_path: Path):
    evaluator = make_evaluator(metric="zero_shot/log_likelihood", distortions=["gain"])
    results = run(clap, tones, {"robustness": evaluator})
    assert not results["robustness"].scores
    write_reports(tmp_path, results, {"robustness": evaluator})
    with (tmp_path / "test-tones-robustness" / "robustness.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["ci_low"] for row in rows] == ["", ""]
    assert float(rows[1]["value"]) < 0
    assert (tmp_path / "test-tones-robustness" / "gain.png").stat().st_size


def test_classifiers_are_evaluated_by_their_own_metric(tiny_clap, tones):
    classifier = ClapAudioClassifier(tiny_clap(), ["dog", "rain"]).eval()
    torch.nn.init.normal_(classifier.head.weight)
    evaluator = make_evaluator(metric="classification/accuracy", distortions=["gain"])
    results = run(classifier, tones, {"classification": Classification(), "robustness": evaluator})
    plain = results["classification"].metrics["test/tones/classification/accuracy"]
    assert results["robustness"].metrics[NAMES[0]] == plain
    with pytest.raises(ValueError, match="has no text encoder; set evaluation.robustness.metric=classification/acc"):
        run(classifier, tones, {"robustness": make_evaluator()})


def test_options_of_the_metric_are_set_on_the_command_line():
    overrides = ["checkpoint=x", "evaluation=[robustness]", 'evaluation.robustness.options={templates: ["{}"]}']
    assert check_overrides(overrides, config_dir=find_conf_dir(), config_name="evaluate")
