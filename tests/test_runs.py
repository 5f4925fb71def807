"""A sweep in a SQLite store is read as cells, scores and curves."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from study_store import FACTORS, LEADING, StudyStore, make_runs, make_study

from clap.study.factors import Repeat
from clap.study.runs import Run, StudyRuns, read_study_runs, split_overrides

FIRST = {factor: levels[0] for factor, levels in FACTORS.items()}
SECOND = FIRST | {"text_encoder": "gpt2_nano"}


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    """One store for all tests; each test adds its own study."""
    return StudyStore(tmp_path_factory.mktemp("store"), empty_store)


@pytest.fixture(scope="module")
def found(store: StudyStore) -> StudyRuns:
    """A sweep with a complete cell, a cell with a failed run, one with a killed run, and one without runs."""
    study = make_study("unfinished")
    sweep_id = store.add_sweep(study, "experiment=unfinished trainer.max_epochs=2")
    for seed in study.seeds:
        store.add_run(sweep_id, FIRST, seed)
    store.add_run(sweep_id, SECOND, "0")
    store.add_run(sweep_id, SECOND, "1", error="ValueError: the loss\nis nan")
    killed = store.add_run(sweep_id, FIRST | {"audio_encoder": "htsat_nano"}, "0")
    MlflowClient(f"sqlite:///{store.uri}").set_terminated(killed, "KILLED")
    store.add_run(sweep_id, FIRST | {"audio_encoder": "timm"}, "0")
    return read_study_runs(study, store.uri)


def test_runs_are_found_by_their_levels_and_seed(found: StudyRuns) -> None:
    assert [len(cell.finished) for cell in found.cells] == [3, 1, 0, 0]
    assert {run.repeat.seed: run.name for run in found.cells[0].finished} == {
        seed: f"cnn14_nano-roberta_nano-s{seed}" for seed in ("0", "1", "2")
    }


def test_seeds_without_a_result_have_a_reason(found: StudyRuns) -> None:
    assert found.cells[0].gaps == {}
    assert found.cells[1].gaps == {
        Repeat("1"): "failed: ValueError: the loss is nan", Repeat("2"): "missing",
    }  # fmt: skip
    assert found.cells[2].gaps == {
        Repeat("0"): "stopped", Repeat("1"): "missing", Repeat("2"): "missing",
    }  # fmt: skip
    assert set(found.cells[3].gaps.values()) == {"missing"}


def test_run_of_no_cell_is_not_counted(found: StudyRuns) -> None:
    assert [run.name for run in found.others] == ["timm-roberta_nano-s0"]


def test_run_has_its_lineage(found: StudyRuns) -> None:
    run = found.cells[0].finished[0]
    assert run.commit == "0123456789abcdef0123456789abcdef01234567-dirty"
    assert run.machine == "2 CPU cores, torch 2.11.0"
    assert run.data == {"train": "synthetic train0123456789", "test": "synthetic test0123456789"}
    assert run.params["optimizer.lr"] == "0.001"
    assert found.fixed == {"experiment": "unfinished", "trainer.max_epochs": "2"}


def test_scores_and_curves_are_read(found: StudyRuns) -> None:
    run = found.cells[0].finished[0]
    assert [column.metric for column in found.columns] == found.study.metrics
    assert found.columns[0].scores[run.id].value == run.metrics[LEADING]
    steps, values = found.curves["train/loss"][run.id]
    assert steps.tolist() == list(range(40)) and values.shape == (40,)
    assert found.curves[LEADING.replace("test", "val")][run.id][0].tolist() == [9, 19, 29, 39]


def test_config_digest_ignores_seed_and_local_settings() -> None:
    params = {"seed": "0", "tracking.uri": "a.db", "dataset.root": "a", "optimizer.lr": "0.1"}
    run = Run("id", "name", "FINISHED", Repeat("0"), {}, params=params)
    same = Run(
        "id",
        "name",
        "FINISHED",
        Repeat("1"),
        {},
        params=params | {"seed": "1", "tracking.uri": "b", "dataset.root": ""},
    )
    other = Run("id", "name", "FINISHED", Repeat("0"), {}, params=params | {"optimizer.lr": "0.2"})
    assert run.config_digest == same.config_digest != other.config_digest


def test_config_digest_is_the_same_for_a_class_that_has_moved() -> None:
    frontend = "audio_encoder.frontend"
    now = {"evaluation.retrieval._target_": "clap.evaluation.retrieval.Retrieval"}
    now |= {f"{frontend}._target_": "clap.audio.LogMelSpectrogram"}
    before = now | {"evaluation.retrieval._target_": "clap.evaluation.Retrieval", f"{frontend}.float64": "False"}
    first, second = (Run("id", "name", "FINISHED", Repeat("0"), {}, params=params) for params in (before, now))
    assert first.config_digest == second.config_digest


def test_newest_finished_run_of_a_seed_is_used(store: StudyStore) -> None:
    study = make_study("twice", seeds=["0"])
    sweep_id = store.add_sweep(study)
    first = store.add_run(sweep_id, FIRST, "0")
    second = store.add_run(sweep_id, FIRST, "0")
    third = store.add_run(sweep_id, FIRST, "0", error="stopped")
    found = read_study_runs(study, store.uri)
    assert found.cells[0].runs[Repeat("0")].id == second
    assert [run.id for run in found.others] == [first, third]


def test_newest_sweep_is_read_by_default(store: StudyStore) -> None:
    study = make_study("again", seeds=["0"])
    sweeps = [store.add_sweep(study) for _ in range(2)]
    for sweep_id in sweeps:
        store.add_run(sweep_id, FIRST, "0")
    assert read_study_runs(study, store.uri).sweep_id == sweeps[1]
    assert read_study_runs(study, store.uri, sweep_id=sweeps[0]).sweep_id == sweeps[0]
    with pytest.raises(
        ValueError, match=f"--sweep xyz is not a sweep of again in .*; its sweeps: {sweeps[0]}, {sweeps[1]}"
    ):
        read_study_runs(study, store.uri, sweep_id="xyz")


def test_fixed_factor_and_seed_are_read_from_the_sweep(store: StudyStore) -> None:
    study = make_study("fixed", seeds=["0", "1"])
    sweep_id = store.add_sweep(study, "text_encoder=gpt2_nano seed=1")
    store.add_run(sweep_id, {"audio_encoder": "htsat_nano"}, "1")
    found = read_study_runs(study, store.uri)
    assert found.cells[3].complete == ["1"] and not found.others


def test_seed_that_is_not_in_the_yaml_is_used(store: StudyStore) -> None:
    study = make_study("more", seeds=["0"])
    sweep_id = store.add_sweep(study)
    for seed in ("0", "10", "9"):
        store.add_run(sweep_id, FIRST, seed)
    assert read_study_runs(study, store.uri).cells[0].complete == ["0", "9", "10"]


def test_folds_of_a_seed_are_one_replicate(store: StudyStore) -> None:
    study = make_study("folds", seeds=["0"], folds=["1", "2"])
    sweep_id = store.add_sweep(study)
    ids = [store.add_run(sweep_id, FIRST, "0", fold=fold) for fold in ("2", "1")]
    store.add_run(sweep_id, SECOND, "0", fold="1")
    found = read_study_runs(study, store.uri)
    assert found.num_folds == 2 and found.cells[0].replicates() == [ids[::-1]]
    assert found.cells[1].complete == [] and found.cells[1].gaps == {Repeat("0", "2"): "missing"}
    assert len(found.columns[0].protocol["test_folds"]) == 2
    store.add_run(sweep_id, FIRST, "0", fold="3")  # added on the command line
    with pytest.raises(ValueError, match="has no configuration with a finished run of every fold"):
        read_study_runs(make_study("folds", seeds=["0"], folds=["1", "2", "4"]), store.uri)


def test_folds_of_the_command_line_replace_those_of_the_yaml(store: StudyStore) -> None:
    study = make_study("own_folds", seeds=["0"], folds=["1", "2", "3"])
    sweep_id = store.add_sweep(study)
    MlflowClient(f"sqlite:///{store.uri}").set_tag(sweep_id, "folds", "1, 2")
    for fold in ("1", "2"):
        store.add_run(sweep_id, FIRST, "0", fold=fold)
    assert read_study_runs(study, store.uri).cells[0].complete == ["0"]


def test_runs_of_two_protocols_are_rejected(store: StudyStore) -> None:
    study = make_study("mixed", seeds=["0"])
    sweep_id = store.add_sweep(study)
    store.add_run(sweep_id, FIRST, "0")
    store.add_run(sweep_id, SECOND, "0", protocol={"windows": "mean"})
    with pytest.raises(ValueError, match="windows is .* in cnn14_nano-roberta_nano-s0, .* in cnn14_nano-gpt2_nano-s0"):
        read_study_runs(study, store.uri)


def test_missing_metric_is_rejected(store: StudyStore) -> None:
    study = make_study("wrong_metric", seeds=["0"], metrics=["test/synthetic/zero_shot/accuracy"])
    store.add_run(store.add_sweep(study), FIRST, "0")
    with pytest.raises(
        ValueError, match="has no metric test/synthetic/zero_shot/accuracy; choose study.metrics from test/"
    ):
        read_study_runs(study, store.uri)


def test_run_without_artifacts_is_rejected(store: StudyStore) -> None:
    study = make_study("lost", seeds=["0"])
    run_id = store.add_run(store.add_sweep(study), FIRST, "0")
    (path,) = Path(store.folder, "mlartifacts").glob(f"{run_id}/artifacts/evaluation/*.npz")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="lacks its artifacts evaluation/protocol.json"):
        read_study_runs(study, store.uri)


def test_sweep_without_a_finished_run_is_rejected(store: StudyStore) -> None:
    study = make_study("all_failed")
    store.add_run(store.add_sweep(study), FIRST, "0", error="no memory")
    with pytest.raises(ValueError, match=r"no finished run .* \(1 unfinished, the first failed: no memory"):
        read_study_runs(study, store.uri)


def test_study_without_a_sweep_is_rejected(store: StudyStore) -> None:
    with pytest.raises(ValueError, match="has no sweep of never; run `python train.py -m experiment=never`"):
        read_study_runs(make_study("never"), store.uri)


def test_absent_store_is_rejected_and_not_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"MLflow store {tmp_path / 'mlflow.db'} does not exist; run the study"):
        read_study_runs(make_study("any"), "mlflow.db")
    assert not list(tmp_path.iterdir())


def test_overrides_keep_values_with_spaces() -> None:
    assert split_overrides("a=1 b=[x, y] c.d=z") == {"a": "1", "b": "[x, y]", "c.d": "z"}


def test_unclear_levels_are_named_with_their_factor() -> None:
    factors = {"fusion": ["none", "mean"], "dataset.batch_size": ["16", "32"], "loss": ["symmetric", "sigmoid"]}
    runs = make_runs(make_study("names", factors=factors, seeds=["0"]))
    assert runs.name(runs.cells[-1]) == "fusion=mean, batch_size=32, sigmoid"


def test_one_at_a_time_cell_is_named_by_its_level() -> None:
    runs = make_runs(make_study("names", design="one_at_a_time", seeds=["0"]))
    assert [runs.name(cell) for cell in runs.cells] == ["baseline", "gpt2_nano", "htsat_nano"]
