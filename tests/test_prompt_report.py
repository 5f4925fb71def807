"""Accuracies of many prompts against a loop of zero-shot evaluations with one prompt each."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import CAPTIONS

from clap.config.compose import find_conf_dir
from clap.corpus import Clip, Corpus
from clap.dataset.clips import ClapDataset
from clap.evaluation.embedded_split import EmbeddedSplit, Splits
from clap.evaluation.prompt_report import ENSEMBLE, PromptReport
from clap.evaluation.results import Evaluation
from clap.evaluation.zero_shot import ZeroShot

TEMPLATES = ["the sound of {}", "{}", "a dog barks near {}", "{} is heard in the distance"]


class Labelled(Corpus):
    name = "labelled"

    def clips(self, split: str) -> list[Clip]:
        return [Clip(str(i), (CAPTIONS[i],), label=["dog", "rain", "siren", None][i % 4]) for i in range(8)]


@pytest.fixture(scope="module")
def clap(tiny_clap):
    return tiny_clap()


@pytest.fixture(scope="module")
def splits(clap) -> Splits:
    dataset = ClapDataset(Labelled(), "test", sample_rate=16_000)
    return Splits(EmbeddedSplit(dataset, clap.get_text_embeddings(list(CAPTIONS)), list(range(8)), {}))


@pytest.fixture(scope="module")
def result(clap, splits) -> Evaluation:
    return PromptReport(templates=TEMPLATES)(clap, splits)


def test_accuracies_are_those_of_zero_shot_with_one_prompt(clap, splits, result):
    single = [ZeroShot(templates=[text])(clap, splits).metrics["zero_shot/accuracy"] for text in TEMPLATES]
    assert len(set(single)) > 1
    np.testing.assert_allclose(result.per_query["hit"].mean(axis=0)[:-1], single)
    expected = {"best": max(single), "mean": np.mean(single), "worst": min(single)}
    for name, value in expected.items():
        assert result.metrics[f"prompt_report/{name}_accuracy"] == pytest.approx(value)


def test_ensemble_is_zero_shot_with_all_prompts(clap, splits, result):
    together = ZeroShot(templates=TEMPLATES)(clap, splits)
    np.testing.assert_array_equal(result.per_query["hit"][:, -1], together.per_query["hit"])
    assert result.metrics["prompt_report/ensemble_accuracy"] == together.metrics["zero_shot/accuracy"]
    assert result.chance == {f"prompt_report/{name}_accuracy": 1 / 3 for name in ("mean", "ensemble")}


def test_prompts_are_embedded_once(clap, splits, monkeypatch):
    calls, embed = [], clap.get_text_embeddings
    monkeypatch.setattr(clap, "get_text_embeddings", lambda texts: calls.append(texts) or embed(texts))
    PromptReport(templates=TEMPLATES)(clap, splits)
    assert [len(texts) for texts in calls] == [3 * len(TEMPLATES)]


def test_report_lists_the_prompts_best_first(result, tmp_path: Path):
    result.protocol |= {"dataset": "labelled", "split": "test"}
    PromptReport(templates=TEMPLATES).write_report(result, tmp_path / "report")
    with (tmp_path / "report" / "prompts.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    accuracies = {line["prompt"]: float(line["accuracy"]) for line in lines}
    assert accuracies.keys() == {*TEMPLATES, ENSEMBLE}
    assert list(accuracies.values()) == sorted(accuracies.values(), reverse=True)
    assert min(accuracies[text] for text in TEMPLATES) == result.metrics["prompt_report/worst_accuracy"]
    assert all(float(line["ci_low"]) <= float(line["accuracy"]) <= float(line["ci_high"]) for line in lines)
    assert (tmp_path / "report" / "prompts.png").stat().st_size


def test_bank_has_different_prompts():
    bank = yaml.safe_load((find_conf_dir() / "evaluation" / "prompt_report.yaml").read_text())["templates"]
    assert 20 <= len(bank) == len({text.format("x") for text in bank})


@pytest.mark.parametrize(
    ("templates", "message"), [(["a dog"], "each needs {} for the class"), (["{}", "{}"], "has '{}' twice")]
)
def test_wrong_templates_are_refused(templates: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        PromptReport(templates=templates)
