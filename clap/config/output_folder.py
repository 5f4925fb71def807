"""The output folder of a run or sweep, chosen and locked before Hydra writes to it; the command that resumes there."""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_launcher import BasicLauncherConf
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from clap.config.overrides import Configs, find_fixed_keys, list_overrides
from clap.config.values import quote_override
from clap.processes import read_processes
from clap.run_folder import SWEEP_FILE, create_new_folder, describe_results, find_results, own_folder

RUN_FOLDER, SWEEP_FOLDER = "hydra.run.dir", "hydra.sweep.dir"
UNNAMED_KEYS = "hydra.job.config.override_dirname.exclude_keys"  # keys that are not in the folder name of a job


@contextlib.contextmanager
def own_output_folder(argv: Sequence[str], *, config_dir: Path, config_name: str) -> Iterator[list[str]]:
    """Choose the folder of a run or sweep, and lock that of a run; yields the overrides that name it.

    Flags that only print own no folder. Processes that share an explicitly named sweep folder lock it job by job.

    Raises:
        BlockingIOError, FileExistsError: the folder belongs to another process, or holds other results.
    """
    if prints_only(argv):
        yield []
        return
    args, _ = get_args_parser().parse_known_args(argv)
    configs = Configs.open(args, config_dir=config_dir, config_name=config_name)
    JobRuntime.instance().set("name", Path(sys.argv[0]).stem)
    config = configs.compose_all(args.overrides)
    HydraConfig.instance().set_config(config)
    if args.multirun or config.hydra.mode == RunMode.MULTIRUN:
        check_launcher(config.hydra.launcher._target_, read_processes().world_size)
        folder = choose_folder(config, SWEEP_FOLDER)
        check_sweep_folder(folder)
        params = OmegaConf.to_container(config.hydra.sweeper).get("params") or {}
        fixed = find_fixed_keys(configs, params, args.overrides)
        yield [quote_override(SWEEP_FOLDER, folder), f"{UNNAMED_KEYS}=[{','.join(map(json.dumps, fixed))}]"]
        return
    folder = choose_folder(config, RUN_FOLDER)
    with own_folder(folder, resume=config.get("resume"), advice=advise_folder(config, RUN_FOLDER)):
        yield [quote_override(RUN_FOLDER, folder)]


def prints_only(argv: Sequence[str]) -> bool:
    """Whether flags of Hydra such as --help or --cfg print something instead of running a task."""
    args, _ = get_args_parser().parse_known_args(argv)
    flags = (args.cfg, args.help, args.hydra_help, args.info, args.shell_completion, args.experimental_rerun)
    return any(flags)


def check_launcher(launcher: str, world_size: int) -> None:
    """ValueError if the jobs of a sweep would leave the processes that run them together."""
    if world_size > 1 and launcher != BasicLauncherConf._target_:
        raise ValueError(
            f"{launcher} starts the jobs of a sweep in other processes than the {world_size} of this command; remove "
            "hydra/launcher, or start this command as one process"
        )


def choose_folder(config: DictConfig, key: str) -> Path:
    """Create the folder that a key of Hydra names; one named by the time is NAME-2, NAME-3, ... if it exists.

    Raises:
        OSError: it cannot be created.
    """
    parent, _, name = key.rpartition(".")
    folder = Path(OmegaConf.select(config, key))
    is_timed = "${now:" in OmegaConf.to_container(OmegaConf.select(config, parent))[name]
    try:
        if is_timed:
            return create_new_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder}: cannot be created ({error.strerror}); set {key}=FOLDER to another folder") from error
    return folder


def check_sweep_folder(folder: Path) -> None:
    """FileExistsError if a folder holds results, except those of a sweep, which its `Sweep` compares."""
    if (found := find_results(folder)) and SWEEP_FILE not in found:
        what = f"{describe_results(found)} ({', '.join(found)})"
        raise FileExistsError(f"{folder} holds {what}; {SWEEP_FOLDER}=FOLDER sets another folder")


def advise_folder(config: DictConfig, key: str) -> str:
    """What to do about a folder that holds a run; `key` sets another."""
    resume = "resume=auto resumes it, " if "resume" in config else ""
    return f"{resume}{key}=FOLDER sets another folder"


def insert_overrides(argv: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The arguments of a command with additional overrides, which replace those of the same keys."""
    given = list_overrides(argv)
    starts = [i for i in range(len(argv) - len(given) + 1) if list(argv[i : i + len(given)]) == given]
    first = starts[-1] if starts else len(argv)  # flags are before or after all overrides
    keys = tuple(f"{override.partition('=')[0]}=" for override in overrides)
    kept = [override for override in given if not override.lstrip("+").startswith(keys)]
    return [*argv[:first], *overrides, *kept, *argv[first + len(given) :]]


def resume_command(argv: Sequence[str], overrides: Sequence[str]) -> str:
    """The command of `argv` with additional overrides `key=text`, which replace those of the same keys.

    It begins with the launcher of this process, and can be pasted into a shell: the texts, such as folders, are
    quoted for Hydra and for the shell.
    """
    script, *arguments = argv
    overrides = [quote_override(*override.split("=", 1)) for override in overrides]
    arguments = [argument for argument in arguments if not argument.startswith(f"{UNNAMED_KEYS}=")]  # from `launch`
    return shlex.join([*read_processes().command(), script, *insert_overrides(arguments, overrides)])
