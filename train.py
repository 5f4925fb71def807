"""Train a model and evaluate it: python train.py [key=value ...], the keys are in conf/config.yaml."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from clap.config import read_config
from clap.config.build import build_module
from clap.config.launch import launch
from clap.corpus import SPLITS
from clap.dataset.dataset_settings import read_dataset_settings
from clap.dataset.registry import find_splits, open_corpus
from clap.run_folder import COST, METRICS, log_summary
from clap.study.check_run import check_run, open_evaluators
from clap.study.job import describe_run
from clap.study.run_job import run_job
from clap.training.trainer_settings import TrainerSettings


def train(cfg: DictConfig) -> float:
    """One run, from config to metrics; returns the metric that chose the best checkpoint, for a sweeper to use."""
    config, run_dir = read_config(cfg), Path(HydraConfig.get().runtime.output_dir)
    corpus, settings = open_corpus(config["dataset"]), TrainerSettings(**config["trainer"])
    corpora, data = find_splits(corpus), read_dataset_settings(config["dataset"])
    evaluators = open_evaluators(config, corpora)

    # These imports take seconds; mistakes in the command line and in index files are reported before them.
    from clap import ClapTrainer, open_loader
    from clap.device import choose_device, describe_machine, set_seed
    from clap.evaluation.run_plots import plot_run
    from clap.study.trained_model import name_options, open_model, record_config
    from clap.tracking.tracker import Tracker, check_store
    from clap.training.sharding import distribute_model
    from clap.training.state import extend_origin, find_resumable_run

    check_store(cfg.tracking.uri)
    resume_from, run_id = find_resumable_run(cfg.resume, run_dir, uri=cfg.tracking.uri)
    set_seed(cfg.seed)
    clap = open_model(config, resume_from=resume_from, overrides=HydraConfig.get().overrides.task)
    clap = clap.freeze(cfg.freeze).to(choose_device(cfg.device))
    distribute_model(clap, settings)
    loaders = {kind: open_loader(corpus, kind, settings=data, seed=cfg.seed, **clap.input_format) for kind in corpora}
    criterion = build_module(config["loss"]).to(clap.device)
    optimizer, scheduler = instantiate(cfg.optimizer)(clap, criterion, total_steps=settings.num_steps(loaders["train"]))
    trainer = ClapTrainer(
        *map(loaders.get, SPLITS),
        clap,
        optimizer,
        criterion,
        scheduler=scheduler,
        evaluators=evaluators,
        settings=settings,
        config=config,
    )
    if resume_from is not None:
        trainer.resume(resume_from)
    trainer.origin = extend_origin(trainer.origin, machine=describe_machine(clap.device))
    name, tags = describe_run(cfg.seed, origin=trainer.origin, options=name_options(cfg, clap), init_from=cfg.init_from)
    with Tracker(**cfg.tracking, run_name=name, tags=tags, run_id=run_id, run_dir=run_dir) as trainer.tracker:
        trainer.tracker.log_inputs(record_config(cfg, clap, run_dir), [loader.dataset for loader in loaders.values()])
        trainer.tracker.start_system_metrics()
        metrics = trainer.train_and_eval(run_dir)
        plot_run(run_dir, clap, loaders.get("test", loaders["train"]).dataset)
        trainer.tracker.log_artifacts(run_dir, (".hydra", METRICS, COST, "evaluation", "plots"))
    log_summary(run_dir, metrics, trainer.tracker.url_hint)
    return trainer.validation.best_metric


if __name__ == "__main__":
    launch(train, config_name="config", run_job=run_job, check=check_run)
