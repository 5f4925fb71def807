"""Validation in training: all processes choose the same best checkpoint."""

from collections.abc import Callable

from ranks import run_ranks

from clap.evaluation.results import Evaluation


def test_ranks_with_other_metrics_decide_as_rank_0(make_trainer: Callable):
    def update(rank: int) -> tuple[bool, float]:
        validation = make_trainer().validation
        protocol = {"split": "val", "dataset": "synthetic", "clips": "6 of 6"}
        metrics = dict.fromkeys(validation.monitors, 0.5 - 1e-6 * rank)
        validation.best_metric = 0.5 - 1e-7
        is_best = validation.update_best({"retrieval": Evaluation(metrics, [], protocol=protocol)}, where="step 1")
        return is_best, validation.metric

    assert run_ranks(update) == [(True, 0.5), (True, 0.5)]
