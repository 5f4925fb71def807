"""Mistakes on the command line are refused in one line before a run starts, and right ones pass."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clap.config.overrides import check_overrides, name_folder

ROOT = Path(__file__).resolve().parents[1]

YAMLS = {
    "config": """
        defaults:
          - _self_
          - audio_encoder: tiny
          - dataset: tones
          - optimizer: adam
          - evaluation: [retrieval]
          - experiment: null
        seed: 0
        embed_dim: 8
        freeze: []
        resume: null
        note: null
        run_dir: ${hydra:runtime.output_dir}
        trainer:
          max_epochs: 1
          max_steps: null
          precision: fp32
        tracking:
          experiment: clap
        hydra:
          output_subdir: null
    """,
    "audio_encoder/tiny": "width: ${embed_dim}\ndepths: [2, 2]\npretrained: false\nspec_augment: {time_mask: 1}",
    "audio_encoder/large": "width: 64\npretrained: false\nspec_augment: null",
    "dataset/tones": "root: data\nmax_clips: null",
    "dataset/clips": "root: ???   # folder of recordings\nmax_clips: null",
    "dataset/_loader": "batch_size: 1",
    "optimizer/adam": "lr: 1e-3\nbetas: [0.9, 0.999]",
    "optimizer/sgd": "lr: 0.1\nmomentum: 0.9",
    "evaluation/retrieval": "# @package evaluation.retrieval\nk: 10",
    "evaluation/zero_shot": "# @package evaluation.zero_shot\ntemplates: [a]",
    "experiment/debug": "# @package _global_\ntrainer: {max_steps: 2}",
    "experiment/study": """
        # @package _global_
        hydra:
          mode: MULTIRUN
          sweeper:
            params:
              seed: 0,1
              optimizer: adam,sgd
    """,
    "experiment/misspelt_study": """
        # @package _global_
        hydra: {mode: MULTIRUN, sweeper: {params: {sed: "0,1"}}}
    """,
}


def write_yamls(folder: Path) -> Path:
    """Write the yamls below a folder named conf, without their common indent."""
    for name, text in YAMLS.items():
        file = folder / "conf" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        file.write_text("\n".join(line[indent:] for line in lines) + "\n")
    return folder / "conf"


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yamls(tmp_path_factory.mktemp("project"))


ACCEPTED = {
    "nothing": [],
    "option": ["audio_encoder=large"],
    "list of options": ["evaluation=[retrieval,zero_shot]"],
    "option that was null": ["experiment=debug"],
    "int for int": ["seed=3"],
    "int for float": ["optimizer.lr=1"],
    "list": ["optimizer.betas=[0.9,1]"],
    "list item": ["optimizer.betas.1=0.95"],
    "list for an empty list": ["freeze=[text_encoder]"],
    "mapping": ["trainer={max_epochs: 3}"],
    "forced key that exists": ["++seed=3"],
    "any value for null": ["note={a: [1]}"],
    "value for a nullable key": ["trainer.max_steps=5"],
    "null for a nullable key": ["experiment=debug", "trainer.max_steps=null"],
    "null for a nullable mapping": ["audio_encoder.spec_augment=null"],
    "path for pretrained": ["audio_encoder.pretrained=weights.pt"],
    "quoted number for a text": ["tracking.experiment='2024'"],
    "reference": ["embed_dim=${seed}"],
    "reference to the job": ["tracking.experiment=${hydra:job.name}"],
    "key of the chosen option": ["optimizer=sgd", "optimizer.momentum=0.5"],
    "required value": ["dataset=clips", "dataset.root=3"],
    "hydra's keys": ["hydra.run.dir=elsewhere", "hydra/launcher=basic"],
    "sweep of values": ["-m", "seed=0,1", "optimizer.lr=1,1e-2"],
    "sweep of ranges": ["-m", "seed=range(1,4)", "embed_dim=choice(4,8)", "optimizer.lr=interval(0,1)"],
    "sweep of options": ["-m", "optimizer=adam,sgd", "audio_encoder=glob(*)", "optimizer.lr=1e-3,1e-4"],
    "sweep of lists": ["-m", "freeze=[],[text_encoder]", "evaluation=[retrieval],[zero_shot]"],
    "study": ["experiment=study"],
    "study with a key of its own": ["experiment=study", "seed=0,1,2"],
    "config without its required value": ["--cfg", "job", "dataset=clips"],
    "help": ["--help"],
    "hydra's help": ["--hydra-help"],
}


@pytest.mark.parametrize("argv", ACCEPTED.values(), ids=ACCEPTED)
def test_accepts(argv: list[str], conf: Path) -> None:
    check_overrides(argv, config_dir=conf, config_name="config")


REFUSED = {
    "option": (["audio_encoder=tinny"], "audio_encoder has no option tinny; did you mean tiny? (options: large, tiny)"),
    "option in a list": (["evaluation=[retrieval,zeroshot]"], "no option zeroshot; did you mean zero_shot?"),
    "part of an option": (["dataset=_loader"], "dataset has no option _loader"),
    "group": (["audio_encodr=tiny"], "there is no key audio_encodr; did you mean audio_encoder"),
    "added group": (["+optimizer=adam"], "+ adds no group; write optimizer=adam"),
    "added experiment": (["+experiment=debug"], "+ adds no group; write experiment=debug"),
    "removed group": (["~optimizer"], "a group cannot be removed; write optimizer=OPTION with one of: adam, sgd"),
    "key": (["optimizer.lrr=3"], "there is no key optimizer.lrr with optimizer=adam; did you mean optimizer.lr?"),
    "key without its group": (["lr=3"], "there is no key lr; did you mean optimizer.lr?"),
    "plural": (["trainer.max_epoch=3"], "did you mean trainer.max_epochs"),
    "key like no other": (["trainer.colour=3"], "there are: trainer."),
    "key in a mapping": (["trainer={max_epoch: 3}"], "there is no key trainer.max_epoch;"),
    "key of another option": (["optimizer.momentum=0.5"], "there is no key optimizer.momentum with optimizer=adam"),
    "added key": (["+lr=3"], "there is no key lr; did you mean optimizer.lr?"),
    "forced key": (["++optimizer.lrr=3"], "there is no key optimizer.lrr"),
    "added key that exists": (["+optimizer.lr=3"], "+ adds no key; write optimizer.lr=3"),
    "removed key": (["~optimizer.lr"], "keys are not removed"),
    "list item": (["optimizer.betas.2=0.9"], "there is no key optimizer.betas.2"),
    "text for float": (["optimizer.lr=abc"], "optimizer.lr takes a number, in the yaml 0.001"),
    "float for int": (["trainer.max_epochs=1.5"], "trainer.max_epochs takes a whole number, in the yaml 1"),
    "text for int": (["seed=one"], "seed takes a whole number"),
    "bool for int": (["seed=true"], "seed takes a whole number"),
    "list for int": (["seed=[1]"], "seed takes a whole number"),
    "null": (["seed=null"], "seed takes a whole number"),
    "number for text": (["tracking.experiment=2024"], "takes a text, in the yaml \"clap\"; write 'tracking.exp"),
    "text for list": (["optimizer.betas=x"], "write 'optimizer.betas=[x]'"),
    "list item's type": (["audio_encoder.depths=[2,1.5]"], "takes a list of one kind, in the yaml [2, 2]"),
    "value for mapping": (["trainer=3"], "trainer takes a mapping of keys"),
    "referring value": (["audio_encoder.width=wide"], "audio_encoder.width takes a whole number, in the yaml 8"),
    "nullable key": (["trainer.max_steps=5.0"], "trainer.max_steps takes a whole number or null"),
    "pretrained": (["audio_encoder.pretrained=3"], "audio_encoder.pretrained takes true or false or a text"),
    "choice": (["trainer.precision=fp8"], "trainer.precision is one of fp32, bf16, fp16"),
    "reference to nothing": (["embed_dim=${nothing}"], "the reference does not resolve"),
    "reference to another type": (["seed=${tracking.experiment}"], "seed takes a whole number"),
    "missing value": (["dataset=clips"], "with dataset=clips: add dataset.root=VALUE (folder of recordings)"),
    "null for required value": (["dataset=clips", "dataset.root=null"], "dataset.root must have a value"),
    "no value": (["seed"], "seed: an override is written key=value"),
    "value with a sign": (["note=a=b"], "a value with special characters is quoted: 'note=\"a=b\"'"),
    "flag": (["--sweep"], "--sweep: there is no such flag"),
    "flag between overrides": (["seed=1", "-m", "embed_dim=2"], "embed_dim=2: flags stand before or after all"),
    "sweep without -m": (["seed=0,1"], "which needs -m; a list is written 'seed=[0,1]'"),
    "range without -m": (["seed=range(1,3)"], "several values make a sweep, which needs -m"),
    "last value of a sweep": (["-m", "seed=0,1,one"], "seed takes a whole number"),
    "range of floats": (["-m", "seed=range(0,1,0.5)"], "seed takes a whole number"),
    "option of a sweep": (["-m", "optimizer=adam,sdg"], "optimizer has no option sdg; did you mean sgd?"),
    "pattern of no option": (["-m", "optimizer=glob(x*)"], "no option of optimizer matches (options: adam, sgd)"),
    "key of one option of a sweep": (["-m", "optimizer=adam,sgd", "optimizer.momentum=0.9"], "with optimizer=adam"),
    "missing value of a sweep": (["-m", "dataset=tones,clips"], "dataset.root must be given with dataset=clips"),
    "key of a study": (["experiment=misspelt_study"], "there is no key sed; did you mean seed?"),
    "override of a study": (["experiment=study", "optimizer.lr=x"], "optimizer.lr takes a number"),
    "override beside --cfg": (["--cfg", "job", "lr=3"], "there is no key lr"),
}  # fmt: skip


@pytest.mark.parametrize(("argv", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(argv: list[str], message: str, conf: Path) -> None:
    with pytest.raises(ValueError) as refusal:
        check_overrides(argv, config_dir=conf, config_name="config")
    assert message in str(refusal.value)


@pytest.mark.parametrize("argv", [["lr=3"], ["note=a=b"], ["audio_encoder=x"]], ids=str)
def test_refusal_is_one_line(argv: list[str], conf: Path) -> None:
    with pytest.raises(ValueError) as refusal:
        check_overrides(argv, config_dir=conf, config_name="config")
    assert "\n" not in str(refusal.value)


def test_config_dir_flag_adds_options(conf: Path, tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("speed: 1\n")
    argv = ["--config-dir", str(tmp_path), "optimizer=mine", "optimizer.speed=2"]
    check_overrides(argv, config_dir=conf, config_name="config")


SCRIPT = """
import sys
from clap.config.launch import launch

def main(cfg):
    print("seed", cfg.seed, flush=True)
    if cfg.note == "heavy":
        print([name for name in ("torch", "mlflow", "transformers") if name in sys.modules])
    if cfg.note == "value":
        raise ValueError("first line\\nsecond line")
    if cfg.note == "bug":
        raise TypeError("a bug")
    if cfg.note == "ctrl-c":
        raise KeyboardInterrupt
    if cfg.seed == 1 and cfg.note == "second":
        raise FileNotFoundError("no such file")

if __name__ == "__main__":
    launch(main, config_name="config")
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one program and the yamls."""
    folder = tmp_path_factory.mktemp("script")
    write_yamls(folder)
    (folder / "train.py").write_text(SCRIPT)
    return folder / "train.py"


def run(script: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    command = [sys.executable, str(script), *argv]
    env = clean | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=script.parent, env=env)


def test_launch_runs_the_task_without_heavy_imports(script: Path) -> None:
    assert run(script, "seed=5", "note=heavy").stdout == "seed 5\n[]\n"


def test_launch_answers_a_mistake_in_one_line(script: Path) -> None:
    result = run(script, "lr=3")
    expected = "error: lr=3: there is no key lr; did you mean optimizer.lr?\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", expected)


def test_launch_shortens_what_hydra_says(script: Path) -> None:
    result = run(script, "hydra.nothing=3")
    assert (result.returncode, result.stderr) == (1, "error: Could not override 'hydra.nothing'.\n")


def test_launch_shortens_an_expected_failure(script: Path) -> None:
    result = run(script, "note=value", "hydra.run.dir=value")
    log = "value/train.log"
    expected = f"error: first line second line (traceback: {log})\n"
    assert (result.returncode, result.stderr) == (1, expected)
    assert "Traceback" in (script.parent / log).read_text()


def test_launch_shows_the_traceback_on_request(script: Path) -> None:
    assert "Traceback" in run(script, "note=value", HYDRA_FULL_ERROR="1").stderr


def test_launch_keeps_the_traceback_of_a_bug(script: Path) -> None:
    result = run(script, "note=bug")
    assert result.returncode == 1 and result.stderr.endswith("TypeError: a bug\n")


def test_launch_ends_ctrl_c_with_130(script: Path) -> None:
    result = run(script, "note=ctrl-c")
    assert (result.returncode, result.stderr) == (130, "error: interrupted\n")


def test_launch_goes_on_after_a_failed_job(script: Path) -> None:
    result = run(script, "-m", "seed=0,1,2", "note=second")
    assert [line for line in result.stdout.splitlines() if line.startswith("seed")] == ["seed 0", "seed 1", "seed 2"]


def test_launch_names_a_failed_job(script: Path) -> None:
    result = run(script, "-m", "seed=0,1", "note=second")
    assert "error: job 1 (note=second,seed=1): no such file" in result.stderr
    assert (result.returncode, result.stderr.splitlines()[-1]) == (1, "error: no such file")


def test_folder_of_a_job_is_its_overrides():
    assert name_folder("optimizer.lr=0.001,seed=1") == "optimizer.lr=0.001,seed=1"


def test_folder_of_a_job_has_no_slash_and_a_bounded_name():
    name = name_folder("init_from=/models/best," + "x" * 300)
    assert "/" not in name
    assert len(name) < 140


def test_folders_of_long_overrides_differ():
    assert name_folder("x" * 300 + "1") != name_folder("x" * 300 + "2")
