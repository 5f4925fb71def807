"""The MLflow run of a training, which rank 0 writes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from clap.atomic import read_json
from clap.evaluation.example_clips import write_example_clips
from clap.evaluation.retrieved_clips import retrieve_clips
from clap.evaluation.run_plots import plot_run
from clap.process_group import is_main, share_failure
from clap.run_folder import COST, HISTORY, METRICS, read_chance
from clap.study.job import PRUNED, Pruned
from clap.study.result_config import read_result_config
from clap.study.run_description import describe_run
from clap.study.trained_model import name_options, record_config
from clap.study.trial import follow_trial
from clap.tracking.description import NOTE, format_metrics
from clap.tracking.tracker import Tracker, to_params
from clap.training.trainer import ClapTrainer


@contextmanager
def track_run(cfg: DictConfig, trainer: ClapTrainer, *, run_id: str | None, run_dir: Path) -> Iterator[None]:
    """Set the tracker of a trainer on rank 0, and log its config and datasets; in a search, report its validations.

    Args:
        run_id: of the MLflow run that is resumed; None starts a new one.

    Raises:
        PeerError: another rank has failed; the MLflow run has its error.
    """
    trainer.after_validation = follow_trial(run_dir)
    if not is_main():
        with share_failure():
            yield
        return
    options = name_options(cfg, trainer.clap)
    run = describe_run(read_result_config(cfg), options=options, origin=trainer.origin)
    tracker = Tracker(**cfg.tracking, run_name=run.name, tags=run.tags, run_id=run_id, run_dir=run_dir)
    with tracker as trainer.tracker, share_failure():
        params = to_params(record_config(cfg, trainer.clap, run_dir))
        tracker.log_inputs(run.factors | params, trainer.validation.datasets.values())
        tracker.start_system_metrics()
        try:
            yield
        except Pruned as error:
            tracker.set_tags({PRUNED: error, NOTE: run.note(f"pruned {error}")})
            tracker.finish("KILLED")  # as MLflow's own integration of Optuna records it
            raise
        finally:
            if (log := run_dir / f"{HydraConfig.get().job.name}.log").is_file():
                tracker.log_artifact(log)
        result = format_metrics(read_json(run_dir / METRICS), read_chance(run_dir))
        tracker.set_tags({NOTE: run.note(result)})


def log_results(trainer: ClapTrainer, metrics: Mapping[str, float], run_dir: Path) -> None:
    """Send the files of a run to MLflow, and plot its results; on rank 0.

    The parts of a sharded model run on all ranks at once: the others plot too, and discard the plots.
    """
    loader = trainer.loaders["test"] or trainer.loaders["train"]
    if trainer.tracker is not None:  # before the pictures, in which errors must not lose them
        trainer.tracker.log_artifacts(run_dir, (".hydra", METRICS, COST, "evaluation"))
    with nullcontext(run_dir) if is_main() else TemporaryDirectory() as folder:
        if is_main() or trainer.settings.parallel == "fsdp":
            Path(folder, HISTORY).touch()  # which rank 0 writes
            found = retrieve_clips(trainer.clap, loader.dataset)
            plot_run(Path(folder), trainer.clap, found)
            write_example_clips(Path(folder, "clips"), found, sample_rate=trainer.clap.sample_rate)
    if trainer.tracker is not None:
        trainer.tracker.log_artifacts(run_dir, ("plots", "clips"))
