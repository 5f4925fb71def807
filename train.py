"""Train a model and evaluate it: python train.py [key=value ...], the keys are in conf/config.yaml."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from clap.config import read_config
from clap.config.augmentation_settings import AugmentationSettings
from clap.config.build import build_module
from clap.config.launch import launch
from clap.corpus import SPLITS
from clap.dataset.dataset_settings import read_dataset_settings
from clap.dataset.registry import find_splits, open_corpus
from clap.log_lines import route_libraries
from clap.study.check_run import check_run, open_evaluators
from clap.study.run_job import run_job
from clap.training.trainer_settings import TrainerSettings


def train(cfg: DictConfig) -> float:
    """One run, from config to metrics; returns the metric that chose the best checkpoint, for a sweeper to use."""
    config, run_dir = read_config(cfg), Path(HydraConfig.get().runtime.output_dir)
    corpus, settings = open_corpus(config["dataset"]), TrainerSettings(**config["trainer"])
    corpora, data = find_splits(corpus), read_dataset_settings(config["dataset"])
    evaluators, others = open_evaluators(config, corpora)
    augmentation = AugmentationSettings(**config["augmentation"])

    # These imports take seconds; mistakes in the command line and in index files are reported before them.
    from clap import ClapTrainer, open_loader, process_group
    from clap.device import choose_device, describe_machine, set_seed
    from clap.study.tracked_run import log_results, track_run
    from clap.study.trained_model import open_model
    from clap.training.sharding import distribute_model
    from clap.training.state import extend_origin, find_resumable_run

    route_libraries()
    resume_from, run_id = process_group.on_main(lambda: find_resumable_run(cfg.resume, run_dir, uri=cfg.tracking.uri))
    set_seed(cfg.seed)
    clap = open_model(config, corpus, resume_from=resume_from, overrides=HydraConfig.get().overrides.task)
    clap = clap.freeze(cfg.freeze).augment(augmentation).to(choose_device(cfg.device))
    distribute_model(clap, settings)
    options = {"settings": data, "seed": cfg.seed, "evaluated": [other.plan.corpus for other in others.values()]}
    loaders = {kind: open_loader(corpus, kind, **options, **clap.input_format) for kind in corpora}
    evaluated = {name: other.open(**clap.input_format) for name, other in others.items()}
    criterion = build_module(config["loss"]).to(clap.device)
    optimizer, scheduler = instantiate(cfg.optimizer)(clap, criterion, total_steps=settings.num_steps(loaders["train"]))
    trainer = ClapTrainer(
        *map(loaders.get, SPLITS),
        clap,
        optimizer,
        criterion,
        scheduler=scheduler,
        evaluators=evaluators | evaluated,
        settings=settings,
        config=config,
    )
    if resume_from is not None:
        trainer.resume(resume_from)
    trainer.origin = extend_origin(trainer.origin, machine=describe_machine(clap.device))
    with track_run(cfg, trainer, run_id=run_id, run_dir=run_dir):
        metrics = trainer.train_and_eval(run_dir)
        log_results(trainer, metrics, run_dir)
    return trainer.validation.best_metric


if __name__ == "__main__":
    launch(train, config_name="config", run_job=run_job, check=check_run)
