"""Evaluate a checkpoint: python evaluate.py checkpoint=FOLDER [key=value ...], the keys are in conf/evaluate.yaml."""

import logging
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from clap.atomic import write_json
from clap.config import read_config
from clap.config.launch import launch
from clap.config.secrets import hide_secrets
from clap.dataset.dataset_settings import read_dataset_settings
from clap.dataset.evaluation_options import open_evaluation_datasets
from clap.dataset.mixture import without_exclusions
from clap.dataset.registry import open_corpus
from clap.evaluation.recorded import read_recorded, store_recorded_options
from clap.log_lines import align_rows, route_libraries
from clap.run_folder import METRICS, git_commit, log_summary, read_chance, read_counts, show_path
from clap.tracking.description import NOTE, format_metrics

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Write metrics, per-query scores and protocol of a checkpoint on one split; returns the metrics.

    Of several processes each embeds a part of the clips, and rank 0 writes.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    config = read_recorded(cfg.checkpoint) | read_config(cfg)
    if absent := [group for group in ("dataset", "evaluation") if group not in config]:
        raise ValueError(
            f"checkpoint={cfg.checkpoint} is not a run or checkpoint folder that records a dataset and evaluation; "
            f"correct the path, or for published weights give {' and '.join(f'{group}=...' for group in absent)}, "
            "such as dataset=esc50 'evaluation=[zero_shot]'"
        )
    corpus, settings = open_corpus(config["dataset"]), read_dataset_settings(config["dataset"])
    others = open_evaluation_datasets(config, trained=[part.corpus.name for part in corpus.parts], split=cfg.split)

    # These imports take seconds; mistakes in the command line and in the dataset are reported before them.
    from clap import Tracker, load_model, open_loader, process_group
    from clap.device import choose_device, describe_machine
    from clap.evaluation import evaluation_set, evaluator, leak_check
    from clap.evaluation.results import merge_metrics, write_results
    from clap.study.run_description import describe_evaluation

    route_libraries()
    clap = load_model(cfg.checkpoint).to(choose_device(cfg.device))
    clap.set_windows(cfg.windows)
    evaluators = evaluator.build_evaluators(config)
    loaders = {}
    for kind in dict.fromkeys([cfg.split, *evaluator.find_needs(evaluators)]):
        evaluated = (without_exclusions(corpus), replace(settings, exclude=None, exclude_evaluated=False))
        own, chosen = evaluated if kind == cfg.split else (corpus, settings)  # all clips are evaluated
        loaders[kind] = open_loader(own, kind, settings=chosen, training=False, **clap.input_format)
    sets = {
        name: evaluation_set.EvaluationDataset.build(plan).open(**clap.input_format) for name, plan in others.items()
    }
    opened = [*loaders.values(), *(other.loaders[cfg.split] for other in sets.values())]
    datasets = [loader.dataset for loader in opened]
    leak_check.check_leaks(cfg.checkpoint, datasets, split=cfg.split, allow=cfg.allow_leaks)

    run = describe_evaluation(cfg.checkpoint, corpus=corpus.name, split=cfg.split)
    tags = run.tags | {"git_commit": git_commit(Path(__file__).parent)}
    options = {"run_name": run.name, "tags": tags, "run_dir": run_dir}
    tracking = Tracker(**cfg.tracking, **options) if process_group.is_main() else nullcontext()
    with tracking as tracker, process_group.share_failure():
        if tracker is not None:
            rows = {
                "run": run.name,
                "checkpoint": hide_secrets(str(cfg.checkpoint)),
                "device": describe_machine(clap.device),
                "data": ", ".join(f"{item.name}, {len(item.clips)} {item.kind} clips" for item in datasets),
                "evaluation": ", ".join(evaluators),
                "window": clap.audio_encoder.describe_window(),
            }
            log.info("%s", align_rows(rows))
            tracker.log_inputs(read_config(cfg) | config, datasets)
            tracker.log_params(run.factors)
        own = evaluator.evaluate_split(clap, loaders[cfg.split], evaluators, other_loaders=loaders)
        results = own | evaluation_set.evaluate_sets(clap, sets, cfg.split)
        metrics = merge_metrics(results)
        if tracker is not None:
            write_results(run_dir / "evaluation", results)
            write_json(run_dir / METRICS, metrics)
            evaluator.write_reports(run_dir / "evaluation", own, evaluators)
            for other in sets.values():
                other.write_reports(run_dir / "evaluation", results)
            tracker.set_tags(read_counts(run_dir) | {NOTE: run.note(format_metrics(metrics, read_chance(run_dir)))})
            tracker.log_metrics(metrics, step=0)
            tracker.log_artifacts(run_dir, (METRICS, "evaluation"))
            log_summary(run_dir, metrics, {"folder": show_path(run_dir), "MLflow": tracker.url_hint})
    return metrics


if __name__ == "__main__":
    launch(evaluate, config_name="evaluate", store_options=store_recorded_options)
