"""Mistakes in a run's settings are found before torch and Hydra's plugins are imported."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CONF
from hydra import compose, initialize_config_dir

from clap.config import read_config
from clap.config.overrides import VERSION_BASE, check_overrides
from clap.study.check_run import check_run

ROOT = Path(__file__).resolve().parents[1]


def check(*overrides: str) -> None:
    with initialize_config_dir(str(CONF), version_base=VERSION_BASE):
        config = read_config(compose("config", list(overrides)))
    check_run(config)


WRONG = {
    "metric": ("trainer.monitor=x", ValueError, "trainer.monitor=x is not one of val/synthetic/text_to_audio/"),
    "study": ("experiment=loss_ablation study.metrics=[x]", ValueError, "study.metrics: the runs do not log x"),
    "shots": ("evaluation=[linear_probe] evaluation.linear_probe.shots=[0]", ValueError, "shots: 0 must be a whole"),
    "template": ("evaluation=[zero_shot] evaluation.zero_shot.templates=[x]", ValueError, "'x'.: each needs {} for"),
    "count": ("trainer.max_epochs=0", ValueError, "trainer.max_epochs=0 must be at least 1"),
    "norm": ("trainer.max_grad_norm=0", ValueError, "trainer.max_grad_norm=0 must be above 0"),
    "scaled": ("trainer.precision=fp16 trainer.parallel=fsdp", ValueError, "which trainer.parallel=fsdp does not"),
    "workers": ("dataset.num_workers=-1", ValueError, "dataset.num_workers=-1"),
    "fraction": ("dataset.max_bad_fraction=2", ValueError, "dataset.max_bad_fraction=2 must be between 0 and 1"),
    "adapters": ("lora.text_encoder={rank:4}", ValueError, "lora.text_encoder.rank: there is no such key"),
    "frozen adapters": (
        "lora.text_encoder={r:4} freeze=[text_encoder]",
        ValueError,
        "adapters freeze the encoder already",
    ),
    "nothing to cache": ("trainer.cache_frozen=true", ValueError, "but no encoder is frozen; set freeze="),
    "part": ("freeze=[nothing]", ValueError, "freeze=.*'nothing' is not one of audio_encoder, text_encoder"),
    "checkpoint": ("init_from=/nowhere", FileNotFoundError, "init_from: /nowhere: no such checkpoint folder"),
    "audio weights": ("audio_encoder.pretrained=/nowhere", FileNotFoundError, "audio_encoder.pretrained: /nowhere"),
    "text weights": ("text_encoder.pretrained=/nowhere", FileNotFoundError, "text_encoder.pretrained=/nowhere: no"),
    "tokenizer": ("text_encoder.tokenizer=./nowhere", FileNotFoundError, "text_encoder.tokenizer=./nowhere: no"),
    "exclusions": ("dataset.exclude=nowhere.txt", FileNotFoundError, "dataset.exclude=nowhere.txt is missing"),
    "loss": ("loss=cross_entropy", ValueError, "CrossEntropyLoss does not train a model without a classifier"),
    "classifier": (
        "experiment=fine_tune_classifier dataset=synthetic evaluation=[retrieval]",
        ValueError,
        "evaluation retrieval compares clips with text, and a classifier has no text encoder",
    ),
    "resume": ("resume=/nowhere", FileNotFoundError, "/nowhere: no such checkpoint folder"),
    "name": ("dataset=csv dataset.root=. dataset.metadata=m.csv dataset.name=x/y", ValueError, "dataset.name: 'x/y'"),
}


@pytest.mark.parametrize(("overrides", "error", "message"), WRONG.values(), ids=WRONG)
def test_mistake_is_found(overrides: str, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        check(*overrides.split())


def test_right_config_passes(tmp_path: Path):
    check()
    check("init_from=laion/clap-htsat-unfused", "text_encoder=roberta", "freeze=[text_encoder,audio_projection]")
    check("init_from=/nowhere", "resume=auto")  # the checkpoint of the run replaces it


def test_batch_is_divided_by_the_processes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    check("dataset.batch_size=12")
    with pytest.raises(ValueError, match="batch_size=16 is the batch of all 3 processes .* set it to 15 or 18"):
        check("dataset.batch_size=16")


def test_train_imports_nothing_slow_before_its_checks():
    code = (
        "import sys, train;"
        "print(*({'torch', 'mlflow', 'transformers', 'huggingface_hub', 'matplotlib'} & sys.modules.keys()));"
        "import clap.evaluation.retrieval, clap.evaluation.zero_shot;"  # for the names of metrics
        "print(*({'mlflow', 'transformers'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_no_job_starts_with_a_wrong_checkpoint(tmp_path: Path):
    command = [sys.executable, str(ROOT / "train.py"), "-m", "seed=0,1", "init_from=null,/nowhere"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: init_from: /nowhere: no such checkpoint folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.min_lr=1.0", "optimizer.min_lr=1.0 must be at most optimizer.lr=0.0005"),
        ("optimizer.warmup_steps=1.5", "must be a whole number of steps, or a share below 1"),
        ("trainer.parallel=fsdp", "over several processes, and this is one"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_imports(tiny_config: Callable, override: str, words: str):
    with pytest.raises(ValueError, match=words):
        check_run(tiny_config(override))


def test_every_fold_of_a_sweep_is_checked(tmp_path: Path):
    (tmp_path / "meta").mkdir()
    rows = [f"{fold}.wav,{fold},dog,{fold}\n" for fold in (1, 2, 3)]
    (tmp_path / "meta" / "esc50.csv").write_text("filename,fold,category,src_file\n" + "".join(rows))
    command = ["-m", "dataset=esc50", f"dataset.root={tmp_path}", "dataset.test_fold=1,2,5,3"]
    configs = check_overrides(command, config_dir=CONF, config_name="config")
    with pytest.raises(ValueError, match="test_fold=5 is not in the index of .* one of 1, 2, 3"):
        for config in configs:
            check_run(config)
