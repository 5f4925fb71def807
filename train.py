"""Train a model and evaluate it: python train.py [key=value ...], the keys are in conf/config.yaml."""

import logging
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from clap.config import read_config
from clap.config.build import build
from clap.config.launch import launch
from clap.study.run_job import run_job

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float:
    """One run, from config to metrics; returns the metric that chose the best checkpoint, for a sweeper to use."""
    config, choices = read_config(cfg), HydraConfig.get().runtime.choices
    run_dir = Path(HydraConfig.get().runtime.output_dir)

    # Imports take seconds: each stands behind the checks that need less.
    from clap.corpus import SPLITS
    from clap.dataset.clips import ClapDataset
    from clap.dataset.dataset_settings import read_dataset_settings
    from clap.dataset.loader import make_loader
    from clap.dataset.registry import open_corpus

    corpus = open_corpus(config["dataset"])
    sizes = {kind: len(corpus.clips(kind)) for kind in SPLITS}
    log.info("%s: %s", corpus.name, ", ".join(f"{size} {kind}" for kind, size in sizes.items()))

    from clap.atomic import read_json
    from clap.run_folder import COST, METRICS, find_count, read_counts, read_history, resume_command
    from clap.tracking.store import open_store, resolve_uri
    from clap.tracking.tracker import Tracker, git_commit, recorded_run

    if uri := resolve_uri(cfg.tracking.uri):
        open_store(uri)

    import torch

    from clap.device import choose_device
    from clap.evaluation.evaluator import Evaluator, name_metrics
    from clap.evaluation.run_plots import plot_run
    from clap.model import Clap
    from clap.study.factors import check_metrics
    from clap.study.job import job_tags
    from clap.training.cost import describe_machine
    from clap.training.state import find_resume, read_run_id
    from clap.training.trainer import ClapTrainer
    from clap.training.trainer_settings import TrainerSettings

    torch.manual_seed(cfg.seed)
    resume_from = find_resume(cfg.resume, run_dir)
    if cfg.init_from is None:
        clap = Clap.from_config(config)
    else:
        clap = Clap.init_from(cfg.init_from, config, overrides=HydraConfig.get().overrides.task)
    clap.freeze(cfg.freeze)
    clap.to(choose_device(cfg.device))

    loaders = {}
    for kind in SPLITS:
        if kind == "train" or sizes[kind]:
            dataset = ClapDataset(
                corpus,
                kind,
                sample_rate=clap.sample_rate,
                window=clap.window,
                seed=cfg.seed,
                settings=read_dataset_settings(config["dataset"]),
            )
            loaders[kind] = make_loader(
                dataset,
                clap.collate,
                batch_size=cfg.dataset.batch_size,
                num_workers=cfg.dataset.num_workers,
                shuffle=kind == "train",
                seed=cfg.seed,
            )

    criterion = build(config["loss"], torch.nn.Module).to(clap.device)
    steps = cfg.trainer.max_epochs * len(loaders["train"])
    total_steps = min(steps, cfg.trainer.max_steps or steps)
    optimizer, scheduler = instantiate(cfg.optimizer)(clap, criterion, total_steps=total_steps)
    evaluators = {name: build(node, Evaluator) for name, node in config["evaluation"].items()}
    settings = TrainerSettings(**{key: value for key, value in config["trainer"].items() if key != "max_epochs"})
    if config["study"]:
        held_out = [loader.dataset for kind, loader in loaders.items() if kind != "train"]
        known = [name for dataset in held_out for name in name_metrics(dataset, evaluators)]
        check_metrics(config["study"].get("metrics") or [], known)

    run_id = recorded_run(run_dir, uri) if cfg.resume == "auto" else None
    run_id = run_id or read_run_id(resume_from)
    job_name, tags = job_tags()
    tags |= {group: choices[group] for group in ("audio_encoder", "text_encoder", "fusion", "dataset")}
    tags |= {"role": "train", "seed": cfg.seed, "git_commit": git_commit(Path(__file__).parent)}
    tags["machine"] = describe_machine(clap.device)
    tracker = Tracker(
        **cfg.tracking,
        run_name=job_name or f"{choices.audio_encoder}-{choices.text_encoder}-{choices.fusion}-s{cfg.seed}",
        tags=tags,
        run_id=run_id,
        run_dir=run_dir,
    )
    with tracker:
        tracker.log_params(config)
        for kind, loader in loaders.items():
            data = loader.dataset
            tracker.log_dataset(data.name, digest=data.digest, split=kind, num_clips=len(data.clips))
        tracker.start_system_metrics()
        trainer = ClapTrainer(
            loaders["train"],
            loaders.get("val"),
            loaders.get("test"),
            clap,
            optimizer,
            criterion,
            config["trainer"]["max_epochs"],
            scheduler=scheduler,
            evaluators=evaluators,
            settings=settings,
            tracker=tracker,
            saved_config={"dataset": config["dataset"], "evaluation": config["evaluation"]},
        )
        if resume_from:
            trainer.resume(resume_from)
        try:
            metrics = trainer.train_and_eval(run_dir)
        except KeyboardInterrupt:
            if job_name is None:  # a sweep says itself how to go on
                command = resume_command(sys.argv, [f"hydra.run.dir={run_dir}", "resume=auto"])
                log.warning("stopped at step %d; to go on: %s", trainer.step, command)
            raise
        cost = {f"cost/{name}": value for name, value in read_json(run_dir / COST).items()}
        tracker.log_metrics(cost, step=trainer.step)
        shown = loaders.get("test") or loaders["train"]
        plot_run(run_dir / "plots", clap, shown.dataset, history=read_history(tracker.history_path))
        for name in (".hydra", METRICS, COST, "evaluation", "plots"):
            tracker.log_artifact(run_dir / name)
    counts = read_counts(run_dir)
    for name, value in metrics.items():
        log.info("%-60s %.4f  %s", name, value, find_count(name, counts))
    log.info("run folder %s; to see it: %s", run_dir, tracker.url_hint)
    return trainer.best_metric


if __name__ == "__main__":
    launch(train, config_name="config", run_job=run_job)
