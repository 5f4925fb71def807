"""The storage of a search, as the sweeper and the jobs of its trials open it. Only searches import Optuna."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import Study
from optuna.trial import Trial

from clap.atomic import write_atomic

JOURNAL = "optuna.journal"  # in the sweep folder
GRACE_SECONDS = 10  # until the lock of a killed process on the journal is released
optuna.logging.disable_default_handler()  # its messages go to the handlers of this program
optuna.logging.enable_propagation()
optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_storage(address: str | None, sweep_dir: Path) -> JournalStorage | str:
    """The journal of a sweep folder, which network file systems support; or another address, as Optuna reads it."""
    if address is not None:
        return address
    path = str(sweep_dir / JOURNAL)
    return JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path, grace_period=GRACE_SECONDS)))


def cut_truncated_line(sweep_dir: Path) -> None:
    """Remove the end of a journal whose writer was killed: Optuna refuses a line that is not complete."""
    path = sweep_dir / JOURNAL
    content = path.read_bytes() if path.is_file() else b""
    if not content.endswith(b"\n") and content:
        write_atomic(path, content[: content.rfind(b"\n") + 1])


def make_pruner(name: str | None) -> BasePruner:
    """The pruner of hydra.sweeper.pruner; it compares validations of the same number."""
    return {None: NopPruner, "median": MedianPruner, "hyperband": HyperbandPruner}[name]()


def open_trial(record: Mapping[str, Any], sweep_dir: Path) -> Trial:
    """The trial that trial.json describes, to report to it."""
    study = optuna.load_study(
        study_name=record["study"],
        storage=open_storage(record["storage"], sweep_dir),
        pruner=make_pruner(record["pruner"]),
    )
    return Trial(study, find_trial_id(study, record["number"]))


def find_trial_id(study: Study, number: int) -> int:
    """The id of a trial in its storage, which has those of other studies too."""
    return study.get_trials(deepcopy=False)[number]._trial_id
