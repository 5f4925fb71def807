"""The scores of each clip behind a number, and which numbers are comparable in one column."""

from dataclasses import replace

import numpy as np
import pytest
from study_store import LEADING, make_results, record

from clap.evaluation.query_scores import QueryScores
from clap.evaluation.retrieval_metrics import RETRIEVAL_METRICS
from clap.proportion import Interval
from clap.study.scores import RunScores, check_protocols, describe_chance, make_column, sum_by_clip
from clap.study.statistics import compare_folds, fold_interval, seed_interval

RESULT = make_results(0.5, seed=0)["retrieval"]
ORDER = {clip_id: row for row, clip_id in enumerate(RESULT.clip_ids)}


def make_scores(name: str, seed: int, **protocol: object) -> RunScores:
    found = make_results(0.5, seed=seed, protocol=protocol)["retrieval"]
    return RunScores(name, found.metrics[LEADING], [record(found)])


@pytest.mark.parametrize("name", [name for name in RETRIEVAL_METRICS if not name.endswith("median_rank")])
def test_clips_add_up_to_the_metric(name: str) -> None:
    metric = f"test/synthetic/{name}"
    score = sum_by_clip(metric, RunScores("a-s0", RESULT.metrics[metric], []), record(RESULT), ORDER)
    assert score.totals.shape == score.counts.shape == (20,)
    assert score.totals.sum() / score.counts.sum() == pytest.approx(RESULT.metrics[metric])


def test_clips_without_queries_are_not_counted() -> None:
    scores = {"test/esc50/zero_shot/accuracy": QueryScores(np.array([1.0, 0.0, 1.0]), np.array([0, 2, 2]))}
    evaluation = replace(record(RESULT), scores=scores)
    score = sum_by_clip("test/esc50/zero_shot/accuracy", RunScores("a-s0", 2 / 3, []), evaluation, ORDER)
    assert score.totals.tolist() == [1, 1] and score.counts.tolist() == [1, 2]


@pytest.mark.parametrize("name", ["text_to_audio/median_rank", "audio_to_text/median_rank"])
def test_metric_that_is_not_a_mean_over_queries_has_no_value_a_clip(name: str) -> None:
    metric = f"test/synthetic/{name}"
    score = sum_by_clip(metric, RunScores("a-s0", RESULT.metrics[metric], []), record(RESULT), ORDER)
    assert score.totals is None and score.counts is None


def test_column_has_no_values_a_clip_where_one_run_lacks_them() -> None:
    runs = {"id0": make_scores("a-s0", 0), "id1": make_scores("a-s1", 1)}
    runs["id1"].evaluations[0].scores = {}
    column = make_column(LEADING, runs)
    assert not column.has_clips
    assert column.matrix([["id0"], ["id1"]]).tolist() == [run.value for run in runs.values()]


def test_column_has_a_row_for_each_run() -> None:
    column = make_column(LEADING, {"id0": make_scores("a-s0", 0), "id1": make_scores("a-s1", 1)})
    assert column.matrix([["id1"], ["id0"]]).shape == (2, 20)
    assert column.matrix([["id1"]]).mean() == pytest.approx(column.scores["id1"].value)
    assert column.weights(["id0"]).tolist() == [3] * 20


def test_column_of_a_metric_without_values_a_clip_has_one_number_a_run() -> None:
    metric = "test/synthetic/text_to_audio/median_rank"
    runs = {"id0": replace(make_scores("a-s0", 0), value=4.0), "id1": replace(make_scores("a-s1", 1), value=5.0)}
    column = make_column(metric, runs)
    assert column.matrix([["id0"], ["id1"]]).tolist() == [4.0, 5.0]
    assert not column.has_clips


def test_metric_that_no_evaluator_made_needs_no_protocol() -> None:
    assert make_column("train/loss", {"id0": RunScores("a-s0", 0.3, [])}).protocol is None


def test_different_protocols_are_refused_by_field_value_and_run() -> None:
    runs = {"id0": make_scores("a-s0", 0), "id1": make_scores("b-s0", 1, definition=2)}
    message = f"{LEADING}: .* definition is 1 in a-s0, 2 in b-s0; .*--sweep RUN_ID"
    with pytest.raises(ValueError, match=message):
        make_column(LEADING, runs)


def test_protocol_of_an_earlier_version_is_not_mixed_with_a_new_one() -> None:
    earlier = make_scores("a-s0", 0, code_version="0.1.0")
    del earlier.evaluations[0].protocol["audio_manifest"]
    assert make_column(LEADING, {"id0": earlier}).protocol["code_version"] == "0.1.0"
    with pytest.raises(ValueError, match="an earlier version, which did not record the audio, evaluated a-s0; "):
        make_column(LEADING, {"id0": earlier, "id1": make_scores("b-s0", 1)})


def test_of_long_lists_a_refusal_shows_what_differs() -> None:
    names = [f"class {i}" for i in range(50)]
    protocols = {"a-s0": {"hash": "1", "class_names": names}, "b-s0": {"hash": "2", "class_names": [*names, "dog"]}}
    with pytest.raises(ValueError, match=r'class_names is \[\] in a-s0, \["dog"\] in b-s0;'):
        check_protocols(LEADING, protocols)


def test_field_that_one_protocol_lacks_is_named() -> None:
    protocols = {f"a-s{i}": {"hash": "1"} for i in range(5)} | {"b-s0": {"hash": "2", "windows": "mean"}}
    with pytest.raises(ValueError, match='windows is "absent" in a-s0 a-s1 a-s2 and 2 more, "mean" in b-s0;'):
        check_protocols(LEADING, protocols)


def test_clips_in_another_order_are_paired_by_id() -> None:
    """Two machines list an index in other orders; the numbers of a clip and its queries are the same."""
    runs = {"id0": make_scores("a-s0", 0), "id1": make_scores("b-s0", 1)}
    expected = make_column(LEADING, runs).matrix([["id0"], ["id1"]])
    moved = runs["id1"].evaluations[0]
    order = np.random.default_rng(0).permutation(len(moved.clip_ids))
    moved.clip_ids = moved.clip_ids[order]
    moved.scores = {
        name: QueryScores(scores.values[::-1], order.argsort()[scores.clips][::-1])
        for name, scores in moved.scores.items()
    }
    np.testing.assert_allclose(make_column(LEADING, runs).matrix([["id0"], ["id1"]]), expected)


def test_other_clips_are_refused() -> None:
    other = make_scores("b-s0", 1)
    other.evaluations[0].clip_ids = np.array([f"other {name}" for name in other.evaluations[0].clip_ids])
    with pytest.raises(ValueError, match="a-s0 and b-s0 have one protocol but differ in clip_id"):
        make_column(LEADING, {"id0": make_scores("a-s0", 0), "id1": other})


def test_queries_of_other_clips_are_refused() -> None:
    other = make_scores("b-s0", 1)
    scores = other.evaluations[0].scores[LEADING]
    other.evaluations[0].scores = {LEADING: QueryScores(scores.values, [*scores.clips[1:], 7])}
    with pytest.raises(ValueError, match="a-s0 and b-s0 have one protocol but differ in the clips of their queries"):
        make_column(LEADING, {"id0": make_scores("a-s0", 0), "id1": other})


def test_metric_of_another_evaluation_than_its_file_is_refused() -> None:
    run = make_scores("a-s0", 0)
    with pytest.raises(ValueError, match="run a-s0 has .* its artifacts belong to another evaluation"):
        make_column(LEADING, {"id0": replace(run, value=run.value + 0.01)})


def test_metric_without_queries_is_refused() -> None:
    with pytest.raises(ValueError, match="run a-s0 has the metric test/esc50/zero_shot/accuracy, but none of its"):
        make_column("test/esc50/zero_shot/accuracy", {"id0": make_scores("a-s0", 0)})


def make_folds(seed: int = 0, folds: str = "123", **protocol: object) -> dict[str, RunScores]:
    found = {fold: make_results(0.5, seed=10 * seed + int(fold), protocol=protocol, fold=fold) for fold in folds}
    return {
        f"id{seed}{fold}": RunScores(
            f"a-fold{fold}-s{seed}", own["retrieval"].metrics[LEADING], [record(own["retrieval"])], fold
        )
        for fold, own in found.items()
    }


def test_value_of_folds_is_their_unweighted_mean() -> None:
    runs = make_folds()
    runs["id03"].evaluations[0].scores[LEADING] = QueryScores([1.0] * 4, [0, 0, 1, 1])  # fewer queries than the others
    runs["id03"] = replace(runs["id03"], value=1.0)
    column = make_column(LEADING, runs)
    replicate = list(runs)
    expected = np.mean([run.value for run in runs.values()])
    assert column.value(replicate) == pytest.approx(expected)
    matrix, weights = column.matrix([replicate]), column.weights(replicate)
    assert matrix.shape == (1, 42) and weights.shape == (42,)
    assert matrix[0] @ weights / weights.sum() == pytest.approx(expected)


def test_three_seeds_with_all_folds_use_the_statistics_of_seeds() -> None:
    runs = {run_id: run for seed in range(3) for run_id, run in make_folds(seed).items()}
    column = make_column(LEADING, runs)
    replicates = [[f"id{seed}{fold}" for fold in "123"] for seed in range(3)]
    estimate = column.estimate(replicates)
    assert estimate.interval == seed_interval(column.matrix(replicates), column.weights(replicates[0]))
    assert estimate.deviation == pytest.approx(column.fold_values(replicates).mean(axis=0).std(ddof=1))
    few = column.estimate(replicates[:2])
    assert few.interval == fold_interval(column.fold_values(replicates[:2]).mean(axis=0))
    assert column.compare(replicates[:1], replicates[1:2]) == compare_folds(
        *(column.fold_values([own])[0] for own in replicates[:2])
    )


def test_protocol_of_folds_has_a_hash_of_its_own() -> None:
    runs = make_folds()
    protocol = make_column(LEADING, runs).protocol
    own = {run.fold: run.evaluations[0].protocol["hash"] for run in runs.values()}
    assert (
        protocol["clips"] == "60 of 60" and {fold: one["hash"] for fold, one in protocol["test_folds"].items()} == own
    )
    assert protocol["hash"] not in own.values()
    reordered = make_column(LEADING, dict(reversed(runs.items()))).protocol
    assert reordered["hash"] == protocol["hash"]
    assert make_column(LEADING, {"id01": runs["id01"]}).protocol["hash"] == own["1"]


def test_configurations_are_compared_fold_by_fold() -> None:
    other = {run_id.replace("id0", "id1"): replace(run, name=f"b{run.name}") for run_id, run in make_folds().items()}
    other["id12"].evaluations[0].protocol |= {"hash": "other", "windows": "mean"}
    with pytest.raises(ValueError, match='windows is "absent" in a-fold2-s0, "mean" in ba-fold2-s0'):
        make_column(LEADING, make_folds() | other)


def test_folds_differ_in_nothing_but_their_clips() -> None:
    runs = make_folds(folds="12") | make_folds(folds="3", windows="mean")
    with pytest.raises(
        ValueError,
        match='must differ in nothing but their clips, but windows is "absent" in fold 1 fold 2, "mean" in fold 3',
    ):
        make_column(LEADING, runs)


def test_counts_of_an_evaluator_may_differ_between_folds() -> None:
    """A linear probe has the number of its training recordings in its protocol."""
    runs = make_folds(folds="12", training_recordings=170) | make_folds(folds="3", training_recordings=168)
    assert "training_recordings" not in make_column(LEADING, runs).protocol
    with pytest.raises(ValueError, match="definition is 1 in fold 1 fold 2, 2 in fold 3"):
        make_column(LEADING, make_folds(folds="12") | make_folds(folds="3", definition=2))


def test_chance_of_folds_is_their_mean() -> None:
    runs = make_folds()
    for fold, run in enumerate(runs.values()):
        run.evaluations[0].protocol["chance"] = {LEADING: 0.1 * fold}
    assert make_column(LEADING, runs).chance == pytest.approx(0.1)
    runs["id01"].evaluations[0].protocol["chance"] = {}
    assert make_column(LEADING, runs).chance is None


def test_interval_of_a_proportion_ends_at_one() -> None:
    runs = {f"id{seed}": make_scores(f"a-s{seed}", seed) for seed in range(3)}
    for run, share in zip(runs.values(), (0.7, 1.0, 1.0), strict=True):
        run.evaluations[0].scores[LEADING] = QueryScores(np.arange(20) < 20 * share, np.arange(20))
    runs = {run_id: replace(run, value=run.evaluations[0].scores[LEADING].mean) for run_id, run in runs.items()}
    column = make_column(LEADING, runs)
    replicates = [[run_id] for run_id in runs]
    free = seed_interval(column.matrix(replicates), column.weights(["id0"]))
    assert free.high > 1 and column.estimate(replicates).interval == Interval(free.low, 1.0)
    column.is_proportion = False
    assert column.estimate(replicates).interval == free


def test_metric_with_a_score_above_one_is_no_proportion() -> None:
    runs = {"id0": make_scores("a-s0", 0)}
    assert make_column(LEADING, runs).is_proportion
    runs["id0"].evaluations[0].scores[LEADING].values[0] = 2.0
    runs = {"id0": replace(runs["id0"], value=runs["id0"].evaluations[0].scores[LEADING].mean)}
    assert not make_column(LEADING, runs).is_proportion


@pytest.mark.parametrize(("chance", "is_above"), [(0.05, True), (0.95, False), (None, None)])
def test_one_run_is_compared_with_chance_over_its_clips(chance: float | None, is_above: bool | None) -> None:
    runs = {"id0": make_scores("a-s0", 0)}
    runs["id0"].evaluations[0].protocol["chance"] = {} if chance is None else {LEADING: chance}
    column = make_column(LEADING, runs)
    assert column.is_above_chance([["id0"]]) is is_above
    assert bool(describe_chance([(column, [["id0"]])])) == (is_above is False)


@pytest.mark.parametrize(("chance", "is_better"), [(15.0, True), (2.0, False)])
def test_mean_rank_is_better_than_chance_where_it_is_lower(chance: float, is_better: bool) -> None:
    metric = "test/synthetic/text_to_audio/mean_rank"
    found = make_results(0.5, seed=0)["retrieval"]
    found.protocol["chance"] = {metric: chance}
    column = make_column(metric, {"id0": RunScores("a-s0", found.metrics[metric], [record(found)])})
    assert column.is_above_chance([["id0"]]) is is_better
    warning = "is not below chance in text-to-audio mean rank: every 95 % interval ends at or above the chance level"
    assert (warning in describe_chance([(column, [["id0"]])])) is not is_better


def test_runs_of_one_name_are_compared() -> None:
    same, other = make_scores("from-model-s0", 0), make_scores("from-model-s0", 1)
    assert len(make_column(LEADING, {"id0": same, "id1": other}).scores) == 2
    with pytest.raises(ValueError, match=r'"en" in from-model-s0 \(id0\), "de" in from-model-s0 \(id1\)'):
        make_column(
            LEADING, {"id0": make_scores("from-model-s0", 0, l="en"), "id1": make_scores("from-model-s0", 1, l="de")}
        )


def test_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="is nan in a-s1, which has no mean"):
        make_column(LEADING, {"id0": make_scores("a-s0", 0), "id1": replace(make_scores("a-s1", 1), value=np.nan)})
