"""`python -m clap report` on a synthetic store, from its arguments to its files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from study_store import LEADING, StudyStore, make_study

from clap.__main__ import main

STUDY = make_study("encoder_ablation")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    """A sweep with two of four cells, three seeds each."""
    store = StudyStore(tmp_path_factory.mktemp("store"), empty_store)
    sweep_id = store.add_sweep(STUDY, "experiment=encoder_ablation")
    for place, levels in enumerate(STUDY.cells()[:2]):
        for seed in STUDY.seeds:
            store.add_run(sweep_id, levels, seed, quality=0.4 + 0.3 * place)
    return store


@pytest.fixture(autouse=True)
def _known_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clap.commands.report.load_study", lambda name: STUDY)


def write(store: StudyStore, output: Path, *more: str) -> None:
    main(["report", STUDY.name, "--uri", store.uri, "--output", str(output), *more])


def test_report_writes_note_tables_figures_and_lineage(
    store: StudyStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(store, tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    figures = {
        f"{figure}.{kind}" for figure in ("main_effects", "learning_curves", "cost_quality") for kind in ("png", "svg")
    }
    files = {"table.tex", "table.csv", "runs.csv", "protocols.json", "lineage.md", *figures}
    assert names == {"encoder_ablation.md", *(f"encoder_ablation/{file}" for file in files)}
    printed = capsys.readouterr().out
    assert re.search(r"\| cnn14_nano +\| gpt2_nano +\| 0\.\d+ ± ", printed) and re.search(r"\| missing +\|", printed)
    assert printed.splitlines()[0] in (tmp_path / "encoder_ablation.md").read_text()


def test_second_report_is_identical_and_keeps_the_text_of_the_author(store: StudyStore, tmp_path: Path) -> None:
    write(store, tmp_path)
    note = tmp_path / "encoder_ablation.md"
    note.write_text(note.read_text().replace("**Answer.**", "**Answer.** The text encoder."))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write(store, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_note_without_a_report_block_is_not_changed(store: StudyStore, tmp_path: Path) -> None:
    note = tmp_path / "encoder_ablation.md"
    note.write_text("# Mine\n")
    with pytest.raises(SystemExit, match="error: .*encoder_ablation.md does not have exactly one line <!-- report -->"):
        write(store, tmp_path)
    assert list(tmp_path.iterdir()) == [note] and note.read_text() == "# Mine\n"


def test_report_contains_no_local_paths(store: StudyStore, tmp_path: Path) -> None:
    write(store, tmp_path)
    for path in tmp_path.rglob("*.*"):
        if path.suffix != ".png":
            assert str(store.folder) not in path.read_text() and str(tmp_path) not in path.read_text()


def test_unknown_sweep_is_rejected(store: StudyStore, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: --sweep xyz is not a sweep of encoder_ablation"):
        write(store, tmp_path, "--sweep", "xyz")


def test_mixed_protocols_are_one_line(empty_store: Path, tmp_path: Path) -> None:
    store = StudyStore(tmp_path / "store", empty_store)
    sweep_id = store.add_sweep(STUDY)
    store.add_run(sweep_id, STUDY.cells()[0], "0")
    store.add_run(sweep_id, STUDY.cells()[1], "0", protocol={"definition": 2})
    with pytest.raises(SystemExit) as stop:
        write(store, tmp_path / "out")
    message = str(stop.value)
    assert message.startswith(f"error: {LEADING}: ") and "definition is 1" in message and "\n" not in message
    assert not (tmp_path / "out").exists()


def test_absent_store_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: MLflow store .*none.db does not exist; run the study first"):
        main(["report", STUDY.name, "--uri", str(tmp_path / "none.db"), "--output", str(tmp_path)])


def test_file_that_is_not_a_store_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("not a database, " * 100)
    with pytest.raises(SystemExit) as stop:
        main(["report", STUDY.name, "--uri", str(path), "--output", str(tmp_path)])
    assert str(stop.value).startswith("error: ") and "\n" not in str(stop.value)


def test_misspelt_study_is_one_line_that_lists_the_studies() -> None:
    command = [sys.executable, "experiments/report.py", "encoder_ablations"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: 'encoder_ablations' is not a study")
    assert "encoder_ablation" in result.stderr and result.stderr.count("\n") == 1
