"""Evaluate a checkpoint: python evaluate.py checkpoint=FOLDER [key=value ...], the keys are in conf/evaluate.yaml."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from clap.config import read_config
from clap.config.build import build
from clap.config.launch import launch

log = logging.getLogger(__name__)


def read_recorded(source: str) -> dict[str, Any]:
    """The dataset and evaluation that a checkpoint was trained with; empty for published weights."""
    from clap import checkpoint

    try:
        recorded = read_config(checkpoint.find_file(checkpoint.find_best(Path(source)), checkpoint.CONFIG))
    except FileNotFoundError:
        from clap.published.load import is_published

        if not is_published(source):
            raise
        recorded = {}
    return {group: recorded[group] for group in ("dataset", "evaluation") if recorded.get(group) is not None}


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Write metrics, per-query scores and protocol of a checkpoint on one split; returns the metrics."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)

    config = read_recorded(cfg.checkpoint)
    config |= {key: value for key, value in read_config(cfg).items() if value is not None}
    if absent := [group for group in ("dataset", "evaluation") if group not in config]:
        raise ValueError(
            f"checkpoint={cfg.checkpoint} does not record a dataset and evaluation; give "
            f"{' and '.join(f'{group}=...' for group in absent)}, such as dataset=esc50 'evaluation=[zero_shot]'"
        )

    from clap.dataset.clips import ClapDataset
    from clap.dataset.dataset_settings import read_dataset_settings
    from clap.dataset.loader import make_loader
    from clap.dataset.registry import open_corpus

    corpus = open_corpus(config["dataset"])

    from clap.atomic import write_json
    from clap.device import choose_device
    from clap.evaluation.evaluator import Evaluator, find_needs
    from clap.evaluation.evaluator import evaluate as run_evaluators
    from clap.evaluation.results import merge_metrics, write_results
    from clap.model import Clap
    from clap.run_folder import METRICS, find_count, read_counts
    from clap.tracking.tracker import Tracker, git_commit

    clap = Clap.from_ckpt(cfg.checkpoint).to(choose_device(cfg.device))
    clap.set_windows(cfg.windows)
    settings = config["dataset"]
    evaluators = {name: build(node, Evaluator) for name, node in config["evaluation"].items()}
    loaders = {}
    for kind in dict.fromkeys([cfg.split, *find_needs(evaluators)]):
        dataset = ClapDataset(
            corpus,
            kind,
            sample_rate=clap.sample_rate,
            window=clap.window,
            settings=replace(
                read_dataset_settings(settings), exclude=None if kind == cfg.split else settings.get("exclude")
            ),
            training=False,
        )
        loaders[kind] = make_loader(
            dataset, clap.collate, batch_size=settings["batch_size"], num_workers=settings["num_workers"], shuffle=False
        )
    name = f"{corpus.name}-{cfg.split}"
    with Tracker(cfg.tracking.uri, cfg.tracking.experiment, run_name=name, run_dir=run_dir) as tracker:
        tracker.log_params({**read_config(cfg), **config})
        commit = git_commit(Path(__file__).parent)
        tracker.set_tags(
            {"role": "evaluate", "dataset": corpus.name, "checkpoint": cfg.checkpoint, "git_commit": commit}
        )
        for kind, loader in loaders.items():
            dataset = loader.dataset
            tracker.log_dataset(dataset.name, digest=dataset.digest, split=kind, num_clips=len(dataset))
        results = run_evaluators(clap, loaders.pop(cfg.split), evaluators, other_loaders=loaders)
        metrics = merge_metrics(results)
        write_results(run_dir / "evaluation", results)
        write_json(run_dir / METRICS, metrics)
        counts = read_counts(run_dir)
        tracker.set_tags(counts)
        tracker.log_metrics(metrics, step=0)
        for name in (METRICS, "evaluation"):
            tracker.log_artifact(run_dir / name)
    for name, value in metrics.items():
        log.info("%-60s %.4f  %s", name, value, find_count(name, counts))
    log.info("run folder %s; to see it: %s", run_dir, tracker.url_hint)
    return metrics


if __name__ == "__main__":
    launch(evaluate, config_name="evaluate")
