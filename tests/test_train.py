"""train.py and evaluate.py from the command line, as a user runs them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from conftest import CAPTIONS
from mlflow import MlflowClient
from script import ROOT, Script, run_script
from test_published_export import ALIKE, ROBERTA

from clap import Clap
from clap.commands.synthesize import synthesize
from clap.config import read_config
from clap.parts import PARTS
from clap.study.job import read_jobs
from clap.tracking.tracker import to_params

TINY = [  # a model and a task that take seconds
    "audio_encoder=cnn14_nano",
    "audio_encoder.width=2",
    "audio_encoder.frontend.window=2.0",
    "text_encoder=gpt2_nano",
    "text_encoder.model.n_embd=16",
    "text_encoder.model.n_head=2",
    "text_encoder.model.n_layer=1",
    "embed_dim=16",
    "dataset.num_train=48",
    "dataset.num_val=12",
    "dataset.num_test=12",
    "dataset.batch_size=8",
    "dataset.num_workers=0",
    "trainer.max_epochs=2",
]


def run(script: str, *arguments: str, cwd: Path = ROOT, ok: bool = True) -> subprocess.CompletedProcess:
    result = run_script(ROOT / script, *arguments, cwd=cwd)
    if ok:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


def train(folder: Path, *arguments: str, tracking: str | None = None, ok: bool = True) -> subprocess.CompletedProcess:
    uri = f"tracking.uri={tracking or 'null'}"
    return run("train.py", *TINY, uri, f"hydra.run.dir={folder}", *arguments, ok=ok)


@pytest.fixture(scope="module")
def finished(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended, with its MLflow store next to it; the program imports its own modules, unlike a fork."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copy(empty_store, folder)
    arguments = [*TINY, f"tracking.uri={folder / 'mlflow.db'}", f"hydra.run.dir={folder / 'run'}"]
    subprocess.run([sys.executable, str(ROOT / "train.py"), *arguments], cwd=ROOT, check=True, capture_output=True)
    return folder / "run"


def read_metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


def test_run_folder_holds_what_the_design_promises(finished: Path):
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    promised = {
        ".hydra/config.yaml", ".hydra/overrides.yaml", "train.log", "metrics.json", "cost.json",
        "checkpoints/best/config.yaml", "checkpoints/best/model.safetensors",
        "checkpoints/best/tokenizer/tokenizer.json", "checkpoints/last/trainer.pt",
        "checkpoints/best/train_clips.npy", "checkpoints/last/train_clips.npy",
        "evaluation/protocol.json", "evaluation/test-synthetic-retrieval.npz", "evaluation/val-synthetic-retrieval.npz",
        "plots/training.png", "plots/quality.png", "plots/similarity.png",
        "plots/retrieved.png",
    }  # fmt: skip
    assert promised <= names
    assert "checkpoints/best/trainer.pt" not in names


def test_metrics_have_the_names_of_the_design(finished: Path):
    metrics = read_metrics(finished)
    for split in ("val", "test"):
        for direction in ("text_to_audio", "audio_to_text"):
            for name in ("recall_at_1", "recall_at_5", "recall_at_10", "mean_average_precision_at_10", "median_rank"):
                assert f"{split}/synthetic/{direction}/{name}" in metrics


def test_mlflow_holds_the_same_numbers_and_says_what_ran(finished: Path):
    client = MlflowClient(f"sqlite:///{finished.parent / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("clap").experiment_id])
    metrics = read_metrics(finished)
    logged = {name: value for name, value in found.data.metrics.items() if name.startswith("test/")}
    assert logged == {name: value for name, value in metrics.items() if name.startswith("test/")}
    assert found.data.tags["audio_encoder"] == "cnn14_nano"
    assert found.data.tags["seed"] == "0"
    assert found.data.params["optimizer.lr"]
    assert found.info.status == "FINISHED"
    assert {item.dataset.name for item in found.inputs.dataset_inputs} == {"synthetic"}
    assert {"metrics.json", "plots", "evaluation"} <= {item.path for item in client.list_artifacts(found.info.run_id)}


def test_killed_and_resumed_run_ends_as_one_never_interrupted(finished: Path, tmp_path: Path):
    folder = tmp_path / "killed"
    arguments = [*TINY, "tracking.uri=null", f"hydra.run.dir={folder}", "trainer.save_every=2"]
    process = Script(ROOT / "train.py", *arguments)
    while not (folder / "checkpoints" / "last").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.kill()
    process.wait()
    train(folder, "trainer.save_every=2", "resume=auto")
    assert (folder / "metrics.json").read_bytes() == (finished / "metrics.json").read_bytes()
    best = (folder / "checkpoints" / "best" / "model.safetensors").read_bytes()
    assert best == (finished / "checkpoints" / "best" / "model.safetensors").read_bytes()


def test_ctrl_c_saves_and_prints_how_to_resume(finished: Path, tmp_path: Path):
    folder = tmp_path / "stopped"
    arguments = [*TINY, "tracking.uri=null", f"hydra.run.dir={folder}", "trainer.log_every=1"]
    process = Script(ROOT / "train.py", *arguments)
    while not (folder / "metrics.jsonl").exists():
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 130, output + errors
    assert "Traceback" not in output + errors
    assert f"hydra.run.dir={folder} resume=auto" in errors
    train(folder, "resume=auto", "trainer.log_every=1")
    assert (folder / "metrics.json").read_bytes() == (finished / "metrics.json").read_bytes()


def test_evaluate_gives_the_same_numbers_from_the_checkpoint_alone(finished: Path, tmp_path: Path):
    arguments = [f"checkpoint={finished / 'checkpoints' / 'best'}", "tracking.uri=null", f"hydra.run.dir={tmp_path}"]
    run("evaluate.py", *arguments, cwd=tmp_path)
    expected = {name: value for name, value in read_metrics(finished).items() if name.startswith("test/")}
    assert read_metrics(tmp_path) == expected
    protocols = json.loads((tmp_path / "evaluation" / "protocol.json").read_text())
    assert protocols["test-synthetic-retrieval"]["leak_check"] == "complete"


def test_evaluate_on_another_dataset(finished: Path, tmp_path: Path):
    synthesize(tmp_path / "esc", layout="esc50", num_clips=110, sample_rate=16000)
    run(
        "evaluate.py", f"checkpoint={finished / 'checkpoints' / 'best'}", "dataset=esc50",
        f"dataset.root={tmp_path / 'esc'}", "dataset.test_folds=[4]", "dataset.train_folds=[1]",
        "tracking.uri=null", f"hydra.run.dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert "test/esc50/zero_shot/accuracy" in read_metrics(tmp_path / "out")
    protocol = json.loads((tmp_path / "out" / "evaluation" / "protocol.json").read_text())
    assert protocol["test-esc50-zero_shot"]["clips"] == "22 of 22"


def test_init_from_keeps_the_encoders_and_trains_on_other_data(finished: Path, tmp_path: Path):
    synthesize(tmp_path / "own", layout="csv", num_clips=24, sample_rate=16000)
    result = run(
        "train.py", "experiment=debug", f"init_from={finished / 'checkpoints' / 'best'}", "dataset=csv",
        f"dataset.root={tmp_path / 'own'}", f"dataset.metadata={tmp_path / 'own' / 'metadata.csv'}",
        "tracking.uri=null", f"hydra.run.dir={tmp_path / 'out'}", "text_encoder=roberta_nano",
    )  # fmt: skip
    assert re.search(r"audio_encoder: from .*best", result.stdout)
    assert "text_encoder: new" in result.stdout
    clap = Clap.from_ckpt(tmp_path / "out" / "checkpoints" / "best")
    assert clap.audio_encoder.output_dim == 64
    assert clap.text_encoder.transformer.config.model_type == "roberta"
    assert read_recorded_model(tmp_path / "out") == [
        {"audio_encoder": "Cnn14-0.078M", "text_encoder": "roberta_nano", "fusion": "none"},
        "Cnn14-0.078M-roberta_nano-csv-from-run-s0",
    ]


def read_recorded_model(folder: Path) -> list:
    """Tags and name of a run, after checking that its config and parameters are those of its checkpoint."""
    record = json.loads((folder / "mlflow.json").read_text())
    composed = read_config(folder / ".hydra" / "config.yaml")
    saved = read_config(folder / "checkpoints" / "best" / "config.yaml")
    assert {key: composed[key] for key in PARTS if key != "text_encoder"} == {
        key: saved[key] for key in PARTS if key != "text_encoder"
    }
    assert record["params"].items() >= to_params({key: composed[key] for key in PARTS}).items()
    assert record["tags"]["init_from"] == composed["init_from"]
    return [{key: record["tags"][key] for key in ("audio_encoder", "text_encoder", "fusion")}, record["run_name"]]


@pytest.fixture(scope="module")
def published(tiny_config: Callable[..., dict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face ClapModel folder with its tokenizer."""
    clap = Clap.from_config(tiny_config(*ALIKE) | {"text_encoder": ROBERTA})
    clap.tokenizer.train(list(CAPTIONS))
    folder = tmp_path_factory.mktemp("published") / "clap"
    clap.save_pretrained(folder)
    return folder / "huggingface"


SYNTHETIC = ["dataset=synthetic", "dataset.num_train=8", "dataset.num_val=8", "dataset.num_test=8", "tracking.uri=null"]


def test_published_folder_is_evaluated(published: Path, tmp_path: Path):
    arguments = [*SYNTHETIC, "dataset.num_workers=0", "evaluation=[retrieval]", f"hydra.run.dir={tmp_path}"]
    run("evaluate.py", f"checkpoint={published}", *arguments)
    assert "test/synthetic/text_to_audio/recall_at_1" in read_metrics(tmp_path)


def test_published_folder_needs_a_dataset_to_be_evaluated_on(published: Path, tmp_path: Path):
    result = run("evaluate.py", f"checkpoint={published}", f"hydra.run.dir={tmp_path}", ok=False)
    assert result.returncode == 1
    assert "give dataset=... and evaluation=..., such as dataset=esc50" in result.stderr


def test_published_folder_starts_a_training(published: Path, tmp_path: Path):
    result = run("train.py", "experiment=debug", f"init_from={published}", *SYNTHETIC, f"hydra.run.dir={tmp_path}")
    assert re.search(r"text_encoder: from .*huggingface", result.stdout)
    assert read_recorded_model(tmp_path)[1].endswith("-from-clap-s0")
    before, after = Clap.from_ckpt(published), Clap.from_ckpt(tmp_path)
    assert before.state_dict().keys() == after.state_dict().keys()
    assert after.get_text_embeddings(["a dog barks"]).shape == (1, 16)


def test_sweep_repeats_a_seed_exactly_and_another_seed_not(finished: Path, sweep_store: Path, tmp_path: Path):
    run("train.py", "-m", *TINY, "seed=0,1", f"hydra.sweep.dir={tmp_path}", f"tracking.uri={sweep_store}")
    jobs = read_jobs(tmp_path)
    assert [job.name for job in jobs] == ["s0", "s1"]
    metrics = [(job.folder / "metrics.json").read_bytes() for job in jobs]
    assert metrics[0] == (finished / "metrics.json").read_bytes()
    assert metrics[1] != metrics[0]
    client = MlflowClient(f"sqlite:///{sweep_store}")
    runs = client.search_runs([client.get_experiment_by_name("clap").experiment_id])
    assert [found.info.status for found in runs] == ["FINISHED"] * 3  # the sweep's own too


def test_composed_config_builds_a_model_in_python(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(run("train.py", "--cfg", "job", "--resolve", *TINY).stdout)
    clap = Clap.from_config(tmp_path / "run.yaml")
    config = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert clap.sample_rate == config["audio_encoder"]["frontend"]["sample_rate"]


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    """Forty clips; one for training and one for testing are not audio."""
    rng = np.random.default_rng(0)
    lines = ["path,caption,split"]
    for number in range(40):
        soundfile.write(tmp_path / f"{number}.wav", rng.normal(size=16000) / 8, 16000)
        lines.append(f"{number}.wav,sound number {number},{('train', 'train', 'val', 'test')[number % 4]}")
    for number in (0, 3):
        (tmp_path / f"{number}.wav").write_text("not audio")
    (tmp_path / "clips.csv").write_text("\n".join(lines))
    return tmp_path


def train_odd(folder: Path, *arguments: str, ok: bool) -> subprocess.CompletedProcess:
    tiny = [line for line in TINY if "dataset.num_t" not in line and "num_val" not in line]
    return run(
        "train.py", *tiny, "dataset=csv", f"dataset.root={folder}",
        f"dataset.metadata={folder / 'clips.csv'}", "tracking.uri=null",
        f"hydra.run.dir={folder / 'out'}", "trainer.max_epochs=1", *arguments, ok=ok,
    )  # fmt: skip


def test_bad_clips_are_named_and_counted_beside_every_number(odd_folder: Path):
    index = (odd_folder / "clips.csv").read_bytes()
    result = train_odd(odd_folder, "dataset.max_bad_fraction=0.1", ok=True)
    assert result.stdout.count("/0.wav: cannot be decoded") == 1
    assert result.stdout.count("/3.wav: cannot be decoded") == 2  # before training, and at the test
    assert result.stdout.index("test split: ") < result.stdout.index("skipped in training: ")
    assert "1 of 20 training clips were skipped" in result.stdout
    numbers = [line for line in result.stdout.splitlines() if re.search(r" (val|test)/csv/\S+ +\d", line)]
    assert [line.rpartition("  ")[2] for line in numbers] == [*["10 of 10"] * 14, *["9 of 10"] * 14]
    assert (odd_folder / "clips.csv").read_bytes() == index


def test_too_many_bad_clips_stop_the_run_in_one_line(odd_folder: Path):
    result = train_odd(odd_folder, ok=False)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "1 of 10 clips of csv (test) cannot be used" in line
    assert "dataset.max_bad_fraction" in line
    assert "Traceback" not in result.stderr


def test_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path):
    exploding = ["optimizer.lr=1e30", "trainer.max_grad_norm=1e30", "optimizer.warmup_steps=0"]
    result = train(tmp_path / "run", *exploding, ok=False)
    assert result.returncode == 1
    assert re.search(r"error: the loss is nan at step \d+", result.stderr)


def test_unreachable_server_is_an_error_before_the_first_step(tmp_path: Path):
    result = train(tmp_path / "run", tracking="http://127.0.0.1:9", ok=False)
    assert result.returncode == 1
    assert "tracking.uri=http://127.0.0.1:9" in result.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_run_killed_at_random_moments_ends_as_one_never_interrupted(finished: Path, tmp_path: Path):
    folder = tmp_path / "killed"
    rng = np.random.default_rng(int(os.environ.get("KILL_SEED", "0")))
    arguments = [*TINY, "tracking.uri=null", f"hydra.run.dir={folder}", "trainer.save_every=1", "resume=auto"]
    for _ in range(8):
        process = Script(ROOT / "train.py", *arguments)
        try:
            process.wait(timeout=rng.uniform(8, 20))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    train(folder, "trainer.save_every=1", "resume=auto")
    assert (folder / "metrics.json").read_bytes() == (finished / "metrics.json").read_bytes()
