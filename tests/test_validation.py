"""Validation in training: all processes choose the same best checkpoint."""

from collections.abc import Callable

from ranks import run_ranks

from clap.evaluation.evaluator import Evaluator
from clap.evaluation.results import Evaluation
from clap.evaluation.retrieval import Retrieval


def test_ranks_with_other_metrics_decide_as_rank_0(make_trainer: Callable):
    def update(rank: int) -> tuple[bool, float]:
        validation = make_trainer().validation
        protocol = {"split": "val", "dataset": "synthetic", "clips": "6 of 6"}
        metrics = dict.fromkeys(validation.monitors, 0.5 - 1e-6 * rank)
        validation.best_metric = 0.5 - 1e-7
        is_best = validation.update_best({"retrieval": Evaluation(metrics, [], protocol=protocol)})
        return is_best, validation.metric

    assert run_ranks(update) == [(True, 0.5), (True, 0.5)]


class Probe(Evaluator):
    """An evaluator whose metrics have names of its own."""

    metric_names = ("probe/score", "probe/other")


def evaluate_by_chance(names: tuple[str, ...], *, evaluator: str, corpus: str) -> Evaluation:
    """An evaluation with a chance level for all metrics but the last."""
    protocol = {"split": "val", "dataset": corpus, "evaluator": evaluator}
    metrics = {f"val/{corpus}/{name}": 0.5 for name in sorted(names)}
    chance = {f"val/{corpus}/{name}": 0.1 for name in names[:-1]}
    return Evaluation(metrics, [], protocol=protocol, chance=chance)


def test_short_line_shows_the_monitor_then_other_evaluators_then_other_tasks(make_trainer: Callable):
    validation = make_trainer(evaluators={"retrieval": Retrieval(), "own": Probe()}).validation
    results = {
        name: evaluate_by_chance(evaluator.metric_names, evaluator=name, corpus="synthetic")
        for name, evaluator in validation.evaluators.items()
    }
    shown = validation.choose_shown(results, count=4)
    assert [name.removeprefix("val/synthetic/") for name in shown] == [
        "text_to_audio/mean_average_precision_at_10",
        "probe/score",
        "audio_to_text/mean_average_precision_at_10",
        "text_to_audio/recall_at_1",
    ]


def test_short_line_shows_each_corpus(make_trainer: Callable):
    validation = make_trainer().validation
    results = {
        f"{corpus}/retrieval": evaluate_by_chance(Retrieval.metric_names, evaluator="retrieval", corpus=corpus)
        for corpus in ("synthetic", "clotho")
    }
    shown = validation.choose_shown(results, count=2)
    assert shown == [f"val/{c}/text_to_audio/mean_average_precision_at_10" for c in ("synthetic", "clotho")]
