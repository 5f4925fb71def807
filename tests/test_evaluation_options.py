"""The key evaluation_datasets: its options are checked before a file is read, its index before torch is imported."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from clap.commands.check import compose_datasets
from clap.commands.synthesize import synthesize
from clap.config.compose import compose_config
from clap.config.result_settings import find_changes, read_result_settings
from clap.dataset.evaluation_options import open_evaluation_datasets, plan_evaluation_datasets
from clap.dataset.registry import open_corpus
from clap.study.downloads import list_missing
from clap.study.estimate import count_steps
from clap.study.result_config import digest_data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty labelled clips in the layout of ESC-50."""
    folder = tmp_path_factory.mktemp("data") / "ESC-50"
    synthesize(folder, layout="esc50", num_clips=20, sample_rate=8_000, min_duration=3.0, max_duration=3.0)
    return folder


def compose(options: str, *others: str) -> dict:
    return compose_config([f"evaluation_datasets={options}", *others])


def test_evaluators_are_those_of_the_option_or_the_yaml_or_the_run():
    config = compose(
        "{esc50: {root: a}, mine: {corpus: csv, root: b, metadata: c.csv}, "
        "both: {corpus: esc50, root: a, evaluation: [zero_shot, linear_probe]}, "
        "own: {corpus: esc50, root: a, evaluation: {zero_shot: {templates: ['{}']}}}}"
    )
    plans = plan_evaluation_datasets(config)
    assert {name: list(plan.evaluation) for name, plan in plans.items()} == {
        "esc50": ["zero_shot"],
        "mine": ["retrieval"],
        "both": ["zero_shot", "linear_probe"],
        "own": ["zero_shot"],
    }
    assert plans["own"].evaluation["zero_shot"]["templates"] == ["{}"]
    assert plans["both"].evaluation["linear_probe"]["folds"] == 5


def test_settings_are_those_of_training_and_its_own():
    config = compose("{esc50: {root: a, batch_size: 4}}", "dataset.num_workers=0", "dataset.captions=all")
    settings = plan_evaluation_datasets(config)["esc50"].settings
    assert (settings.batch_size, settings.num_workers, settings.captions) == (4, 0, "sample")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{esc5: {root: a}}", "evaluation_datasets.esc5: 'esc5' is not one of .*; did you mean esc50"),
        ("{esc50: {rot: a}}", "evaluation_datasets.esc50 has no option rot; did you mean root"),
        ("{esc50: {}}", "evaluation_datasets.esc50 needs root; set evaluation_datasets.esc50.root"),
        ("{esc50: {root: a, weight: 2}}", "evaluation_datasets.esc50 has no option weight"),
        ("{esc50: {root: a, evaluation: [zero]}}", "evaluation: 'zero' is not one of .*; did you mean zero_shot"),
        ("{esc50: {root: a, evaluation: []}}", "evaluation_datasets.esc50.evaluation is empty"),
        ("{esc50: {root: a, evaluation: {zero_shot: {template: []}}}}", "no option template; did you mean templates"),
        ("{esc50: 3}", "evaluation_datasets.esc50=3 is not a mapping"),
    ],
)
def test_invalid_option_is_named_with_its_key(options: str, message: str):
    with pytest.raises(ValueError, match=message):
        plan_evaluation_datasets(compose(options))


def test_name_of_a_training_corpus_is_refused():
    config = compose("{esc50: {root: a}}")
    with pytest.raises(ValueError, match="evaluation_datasets.esc50 is also a corpus of dataset"):
        open_evaluation_datasets(config, trained=["clotho", "esc50"])


def test_missing_root_and_empty_splits_are_named(root: Path):
    with pytest.raises(FileNotFoundError, match=r"evaluation_datasets.esc50: .*; set evaluation_datasets.esc50.root"):
        open_evaluation_datasets(compose("{esc50: {root: absent}}"), trained=[])
    with pytest.raises(ValueError, match="evaluation_datasets.esc50 has clips neither in val nor in test"):
        open_evaluation_datasets(compose(f"{{esc50: {{root: {root}, splits: [train]}}}}"), trained=[])


def test_split_that_is_evaluated_must_have_clips(root: Path):
    config = compose(f"{{esc50: {{root: {root}}}}}")
    with pytest.raises(ValueError, match="evaluation_datasets.esc50 has clips in val and test, not in train; set"):
        open_evaluation_datasets(config, trained=[], split="train")


def test_plan_counts_its_validation_and_lists_a_missing_root(root: Path):
    config = compose(f"{{esc50: {{root: {root}, splits: {{val: [train, val, test]}}}}}}", "dataset.num_val=0")
    assert count_validation(config) == pytest.approx(4 * 20 / 32 / 3)
    (missing,) = list_missing(compose("{esc50: {root: absent}}"))
    assert missing.startswith("evaluation dataset evaluation_datasets.esc50: ")


def count_validation(config: dict) -> float:
    """Steps that validation adds to a training of 4 epochs of one step."""

    class Trained:
        parts = open_corpus(config["dataset"]).parts

        def __len__(self) -> int:
            return 32

    return count_steps(config, Trained()) - 4


def test_check_compares_training_with_it(root: Path):
    own, other = compose_datasets([f"evaluation_datasets={{clips: {{corpus: esc50, root: {root}, splits: [test]}}}}"])
    corpus = open_corpus(other)
    assert own["num_val"] == 128 and corpus.name == "clips"
    assert [len(corpus.clips(split)) for split in ("train", "val", "test")] == [0, 0, 4]


def test_a_changed_evaluation_dataset_changes_settings_and_data(root: Path):
    without, with_one = (compose(text) for text in ("{}", f"{{esc50: {{root: {root}}}}}"))
    settings = [read_result_settings(config) for config in (without, with_one)]
    assert "evaluation_datasets" in find_changes(*settings)
    moved = compose("{esc50: {root: elsewhere}}")
    assert not find_changes(settings[1], read_result_settings(moved))
    digests = [digest_data(OmegaConf.create(config)) for config in (without, with_one)]
    assert digests[1].keys() - digests[0].keys() == {"esc50 val", "esc50 test"}
