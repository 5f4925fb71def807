"""Sweeps of a train.py that takes milliseconds, and their results in MLflow and in the sweep folder."""

import csv
import shutil
import time
from pathlib import Path

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from script import ROOT, Script, run_script

TASK = """
import json, os, time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from clap.config.launch import launch
from clap.study.run_job import run_job


def train(cfg):
    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.lr == 3 and not Path("data").exists():
        raise FileNotFoundError("no data")
    from clap.study.run_description import describe_run
    from clap.tracking.tracker import Tracker, recorded_run

    run = describe_run({"seed": cfg.seed})
    name = run.tags["job"]
    run_id = recorded_run(folder, cfg.tracking.uri)
    with Tracker(**cfg.tracking, run_name=run.name, tags=run.tags, run_id=run_id, run_dir=folder) as tracker:
        tracker.log_params(run.factors)
        with open(folder.parent / "starts.txt", "a") as file:
            file.write(f"{name}\\n")
        time.sleep(float(os.environ.get("PAUSE", "0")))
        score = cfg.lr + cfg.audio_encoder.width + cfg.text_encoder.width
        metrics = {"test/x/text_to_audio/recall_at_1": (score + cfg.seed / 10) / 10}
        for step in (1, 2):
            tracker.log_metrics({"val/x/text_to_audio/recall_at_1": score * step / 20}, step)
        tracker.log_metrics(metrics, step=2)
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return cfg.lr / 10


if __name__ == "__main__":
    launch(train, config_name="config", run_job=run_job)
"""


ENCODERS = {  # option: width, which is added to the score
    "audio_encoder": {"cnn14_nano": 0, "htsat_nano": 4},
    "text_encoder": {"gpt2_nano": 0, "roberta_nano": 2},
}


def write_project(folder: Path) -> Path:
    """A train.py that trains in milliseconds, with the sweep settings of conf/config.yaml."""
    (folder / "train.py").write_text(TASK)
    shutil.copytree(ROOT / "conf" / "hydra", folder / "conf" / "hydra")
    for group, options in ENCODERS.items():
        (folder / "conf" / group).mkdir(parents=True)
        for option, width in options.items():
            (folder / "conf" / group / f"{option}.yaml").write_text(f"width: {width}\n")
    hydra = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())["hydra"]
    defaults = ["_self_", *({group: next(iter(options))} for group, options in ENCODERS.items())]
    config = {
        "defaults": defaults, "lr": 1, "seed": 0, "resume": None, "study": None,
        "tracking": {"uri": None, "experiment": "clap"}, "hydra": hydra,
    }  # fmt: skip
    (folder / "conf" / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def wait_for(path: Path, process: Script) -> None:
    while not path.exists():
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()


def run(script: str | Path, *arguments: str, code: int = 0) -> tuple[str, str]:
    done = run_script(Path(script), *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def read_runs(store: Path) -> tuple[Run, dict[str, Run]]:
    """The parent run and its children by job name; the store has no other run, and no job twice."""
    client = MlflowClient(f"sqlite:///{store}")
    runs = client.search_runs([client.get_experiment_by_name("clap").experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("role") == "sweep"]
    children = {run.data.tags["job"]: run for run in runs if run is not parent}
    assert len(children) == len(runs) - 1
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    return parent, children


def statuses(store: Path) -> dict[str, str]:
    parent, children = read_runs(store)
    return {"sweep": parent.info.status} | {name: run.info.status for name, run in children.items()}


def read_board(sweep: Path) -> list[dict[str, str]]:
    """The rows of leaderboard.csv without the columns that differ between repetitions."""
    with open(sweep / "leaderboard.csv") as file:
        rows = list(csv.DictReader(file))
    return [
        {key: row[key] for key in row if key not in ("seconds", "clips_per_second", "peak_memory_bytes")}
        for row in rows
    ]
