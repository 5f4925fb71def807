"""The folder of a run or sweep is chosen and locked before Hydra writes to it."""

from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest
from config_yamls import write_yamls
from hydra.core.hydra_config import HydraConfig

from clap.config.output_folder import own_output_folder, resume_command
from clap.run_folder import is_running


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """`own("seed=1", ...)` -> the overrides that name the folder of a command, in tmp_path, after it has ended."""
    write_yamls(tmp_path)
    monkeypatch.chdir(tmp_path)

    def enter(*argv: str) -> list[str]:
        with own_output_folder(argv, config_dir=tmp_path / "conf", config_name="config") as overrides:
            return overrides

    yield enter
    HydraConfig.instance().cfg = None


def find_folder(overrides: list[str]) -> Path:
    return Path(overrides[0].partition("=")[2].strip('"'))


def test_commands_of_the_same_time_have_folders_of_their_own(own: Callable[..., list[str]]):
    year = date.today().year
    timed = ["hydra.run.dir=timed/${now:%Y}", "hydra.sweep.dir=timed/${now:%Y}"]
    found = [find_folder(own(*flags, *timed)) for flags in ([], [], ["-m"])]
    assert found == [Path("timed") / name for name in (f"{year}", f"{year}-2", f"{year}-3")]
    assert all(folder.is_dir() for folder in found)


def test_sweep_names_its_jobs_by_what_is_swept(own: Callable[..., list[str]]):
    _, unnamed = own("-m", "seed=1,2", "embed_dim=4", "optimizer=adam", "hydra.sweep.dir=out")
    assert unnamed == 'hydra.job.config.override_dirname.exclude_keys=["embed_dim","optimizer"]'


@pytest.mark.parametrize("flag", ["--help", "--cfg=job", "--info=all"])
def test_command_that_only_prints_owns_no_folder(own: Callable[..., list[str]], flag: str):
    assert own(flag, "hydra.run.dir=printed") == [] and not Path("printed").exists()


@pytest.mark.parametrize("arguments", [["hydra.run.dir=held"], ["-m", "seed=1,2", "hydra.sweep.dir=held"]])
def test_folder_that_holds_a_run_is_left_alone(own: Callable[..., list[str]], arguments: list[str]):
    Path("held", "checkpoints").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"held holds a run \(checkpoints\); .*=FOLDER sets another folder"):
        own(*arguments)
    assert [path.name for path in Path("held").iterdir() if path.name != ".lock"] == ["checkpoints"]


@pytest.mark.parametrize("arguments", [["hydra.run.dir=file/run"], ["-m", "seed=1,2", "hydra.sweep.dir=file/sweep"]])
def test_folder_that_cannot_be_created_is_named_with_its_key(own: Callable[..., list[str]], arguments: list[str]):
    Path("file").touch()
    key, _, folder = arguments[-1].partition("=")
    with pytest.raises(OSError, match=f"{folder}: cannot be created \\(Not a directory\\); set {key}=FOLDER"):
        own(*arguments)


def test_run_that_resumes_locks_its_folder(own: Callable[..., list[str]], tmp_path: Path):
    Path("held", "checkpoints").mkdir(parents=True)
    argv = ["hydra.run.dir=held", "resume=auto"]
    with own_output_folder(argv, config_dir=tmp_path / "conf", config_name="config") as overrides:
        assert overrides == ["hydra.run.dir=held"] and is_running(Path("held"))
    assert not is_running(Path("held"))


COMMANDS = {
    "flag first": (["-m", "lr=1,2"], "python train.py -m hydra.sweep.dir=out resume=auto lr=1,2"),
    "flag last": (["lr=1,2", "-m"], "python train.py hydra.sweep.dir=out resume=auto lr=1,2 -m"),
    "no override": (["-m"], "python train.py -m hydra.sweep.dir=out resume=auto"),
    "in their place": (["resume=a", "hydra.sweep.dir=${now:%H}"], "python train.py hydra.sweep.dir=out resume=auto"),
    "naming of jobs": (
        ["hydra.job.config.override_dirname.exclude_keys=[]", "lr=1,2", "-m"],
        "python train.py hydra.sweep.dir=out resume=auto lr=1,2 -m",
    ),
    "folder with =": (
        ["--config-dir", "/d/a=b", "lr=1"],
        "python train.py --config-dir /d/a=b hydra.sweep.dir=out resume=auto lr=1",
    ),
    "quoted": (["evaluation=[a,b]"], "python train.py hydra.sweep.dir=out resume=auto 'evaluation=[a,b]'"),
}


@pytest.mark.parametrize(("arguments", "command"), COMMANDS.values(), ids=COMMANDS)
def test_resume_command(arguments: list[str], command: str):
    assert resume_command(["train.py", *arguments], ["hydra.sweep.dir=out", "resume=auto"]) == command


def test_resume_command_repeats_the_launcher(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    assert (
        resume_command(["train.py"], ["resume=auto"]) == "torchrun --standalone --nproc-per-node=2 train.py resume=auto"
    )


def test_sweep_of_several_processes_runs_its_jobs_in_them(
    own: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="JoblibLauncher starts the jobs of a sweep in other processes than the 2"):
        own("-m", "seed=0,1", "hydra/launcher=joblib")
