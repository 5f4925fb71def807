"""Keys that a checkpoint records are overridden and checked as those of a yaml."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hydra.core.config_store import ConfigStore

from clap.config.compose import compose_yamls, find_conf_dir
from clap.config.recorded_options import read_values
from clap.evaluation.recorded import store_recorded_options

DATASET = {"_target_": "clap.dataset.csv.CSV", "root": "clips", "metadata": "clips.csv", "batch_size": 32}
EVALUATION = {"zero_shot": {"_target_": "clap.evaluation.zero_shot.ZeroShot", "templates": ["the sound of {}"]}}


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., str]:
    """`record("a", batch_size=8)` -> folder of a checkpoint with only its config."""

    def write(name: str, **changes: object) -> str:
        folder = tmp_path / name / "checkpoints" / "best"
        folder.mkdir(parents=True)
        config = {"dataset": DATASET | changes, "evaluation": EVALUATION}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return str(tmp_path / name)

    return write


@pytest.fixture(autouse=True)
def options() -> Iterator[None]:
    """Removes the stored options."""
    yield
    repository = ConfigStore.instance().repo
    for group in ("dataset", "evaluation"):
        repository.pop(group, None)


def compose(*overrides: str) -> dict:
    store_recorded_options(overrides)
    return compose_yamls(overrides, folder=find_conf_dir(), name="evaluate")


def test_keys_of_the_recorded_dataset_and_evaluators_are_overridden(record: Callable[..., str]):
    config = compose(f"checkpoint={record('a')}", "dataset.batch_size=8", "evaluation.zero_shot.templates=['{}']")
    assert (config.dataset.batch_size, config.dataset.root) == (8, "clips")
    assert config.evaluation.zero_shot.templates == ["{}"]


def test_keys_that_an_earlier_version_did_not_have_are_overridden(record: Callable[..., str]):
    assert compose(f"checkpoint={record('a')}", "dataset.cache=cache").dataset.cache == "cache"


def test_options_that_an_evaluator_did_not_have_are_overridden(record: Callable[..., str], monkeypatch):
    earlier = {"retrieval": {"_target_": "clap.evaluation.retrieval.Retrieval"}, "own": {"_target_": "own.Evaluator"}}
    monkeypatch.setitem(globals(), "EVALUATION", earlier)
    config = compose(f"checkpoint={record('a')}", "evaluation.retrieval.metrics=[recall_at_50]")
    retrieval = earlier["retrieval"] | {"metrics": ["recall_at_50"], "relevance": None}
    assert config.evaluation == {"retrieval": retrieval, "own": earlier["own"]}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "dataset.batchsize=8",
            r"there is no key dataset.batchsize with dataset=recorded; did you mean dataset.batch_s",
        ),
        ("dataset.batch_size=many", "dataset.batch_size must be an integer"),
        ("dataset.captions=some", "dataset.captions must be one of sample, all, keywords"),
        ("evaluation.retrieval.k=3", "there is no key evaluation.retrieval.k with evaluation=recorded"),
    ],
)
def test_wrong_key_or_value_is_refused(record: Callable[..., str], override: str, message: str):
    with pytest.raises(ValueError, match=message):
        compose(f"checkpoint={record('a')}", override)


def test_another_dataset_replaces_the_recorded_one_with_its_evaluators(record: Callable[..., str]):
    config = compose(f"checkpoint={record('a')}", "dataset=clotho", "dataset.root=x", "dataset.batch_size=8")
    assert config.dataset["_target_"].endswith("Clotho") and list(config.evaluation) == ["retrieval"]


def test_checkpoints_of_a_sweep_share_keys_if_they_record_the_same(record: Callable[..., str]):
    first, same, other = record("a"), record("b"), record("c", root="elsewhere")
    store_recorded_options(["-m", f"checkpoint={first},{same}", "dataset.batch_size=8,16"])
    job = [f"checkpoint={same}", "dataset.batch_size=16"]
    assert compose_yamls(job, folder=find_conf_dir(), name="evaluate").dataset.root == "clips"
    with pytest.raises(
        ValueError, match=r"dataset.batch_size=8: the 2 checkpoints do not record the same dataset; give"
    ):
        store_recorded_options(["-m", f"checkpoint={first},{other}", "dataset.batch_size=8"])


def test_key_without_a_recorded_dataset_is_refused(tmp_path: Path):
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"dataset.root=x: checkpoint=.*model.pt records no dataset; give dataset=OPTION"
    ):
        store_recorded_options([f"checkpoint={tmp_path / 'model.pt'}", "dataset.root=x"])
    with pytest.raises(
        ValueError, match="dataset.root=x: no checkpoint is set; give dataset=OPTION or checkpoint=PATH"
    ):
        store_recorded_options(["dataset.root=x"])


def test_recorded_interpolation_is_refused(record: Callable[..., str]):
    with pytest.raises(ValueError, match="interpolation"):
        store_recorded_options([f"checkpoint={record('a', root='${oc.env:HOME}')}"])


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        (["checkpoint=a/b", "split=val"], ["a/b"]),
        (["-m", "checkpoint=a,b"], ["a", "b"]),
        (["'checkpoint=\"a b\"'".strip("'")], ["a b"]),
        (["split=val"], []),
        (["checkpoint=[a"], []),
    ],
)
def test_values_of_a_key_are_read_from_a_command_line(argv: list[str], values: list[str]):
    assert read_values(argv, "checkpoint") == values
