"""The configs with which a run trained are kept next to what Hydra writes at every start."""

from pathlib import Path

from clap.config.history import keep_config, restore_config


def start(run_dir: Path, config: str, *, accepted: bool = True) -> None:
    """A start of a run: Hydra writes .hydra, and the run keeps it if it trains."""
    (run_dir / ".hydra").mkdir(exist_ok=True)
    (run_dir / ".hydra" / "config.yaml").write_text(config)
    (run_dir / ".hydra" / "overrides.yaml").write_text(f"- {config}")
    if accepted:
        keep_config(run_dir)
    restore_config(run_dir)


def read(run_dir: Path, folder: str = "") -> str:
    return (run_dir / ".hydra" / folder / "config.yaml").read_text()


def test_config_of_a_refused_resume_is_undone(tmp_path: Path):
    start(tmp_path, "lr: 1\n")
    start(tmp_path, "lr: 2\n", accepted=False)
    assert read(tmp_path) == "lr: 1\n"
    assert (tmp_path / ".hydra" / "overrides.yaml").read_text() == "- lr: 1\n"


def test_every_config_that_trained_is_kept(tmp_path: Path):
    start(tmp_path, "epochs: 1\nresume: null\n")
    start(tmp_path, "epochs: 1\nresume: auto\n")
    assert read(tmp_path) == "epochs: 1\nresume: auto\n"
    start(tmp_path, "epochs: 2\nresume: auto\n")
    assert [path.name for path in sorted(tmp_path.glob(".hydra/[0-9]*"))] == ["1", "2"]
    assert read(tmp_path, "1").startswith("epochs: 1") and read(tmp_path, "2") == read(tmp_path)


def test_folder_without_a_kept_config_is_left_alone(tmp_path: Path):
    restore_config(tmp_path)
    start(tmp_path, "lr: 1\n", accepted=False)
    assert read(tmp_path) == "lr: 1\n"
