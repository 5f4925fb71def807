"""The prepared views of a sweep in MLflow's UI, and the description of its experiment, which links to them.

MLflow's UI keeps a saved view, as made by its menu "Views", in a tag of the experiment; the address has its key. A
sweep has two. The first shows every run, as a table of groups, best first, and as charts with parallel coordinates.
The charts of the second show the mean of each group, with the band from its lowest to its highest run; it has no
parallel coordinates, because the UI does not draw those of groups by names.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from clap.tracking.grouping import choose_grouping

VIEW_TAG = "mlflow.sharedViewState."  # followed by the key
WORKFLOW = "workflowType=machine_learning"  # the UI's menu for training, not for language models
MEANS = "-means"  # after the id of the sweep's run in the key of the second view
ENCODERS = ("audio_encoder", "text_encoder")  # the first axes
NAMES = "attributes.`Run Name`"
COLUMN_WIDTH, NAME_WIDTH = 250, 430  # pixels, for test/synthetic/text_to_audio/recall_at_1 and the levels of a group
SECTION = {"uuid": "sweep", "name": "sweep", "display": True, "columns": 2, "isReordered": True}
CLOSED = ("cost", "System metrics")  # sections of the UI's own charts that are closed
SUMMARY = "**Newest sweep:**"  # begins a description of the experiment that this package wrote, and may replace


def pack_view(name: str, view: Mapping[str, Any], *, created: int) -> str:
    """A saved view with its name in the menu, compressed as by the UI because MLflow limits the length of tags.

    Args:
        created: milliseconds since 1970, by which the menu is sorted.
    """
    state = "deflate;" + base64.b64encode(zlib.compress(json.dumps(view).encode())).decode()
    return json.dumps({"name": name, "createdAt": created, "updatedAt": created, "state": state})


def unpack_view(state: str) -> dict[str, Any]:
    """The `state` of a saved view as data."""
    return json.loads(zlib.decompress(base64.b64decode(state.removeprefix("deflate;"))))


def list_pages(server: str, experiment_id: str, run_id: str, *, means: bool) -> dict[str, str]:
    """Name -> address of the prepared pages of a sweep: table, charts and, if it has that view, means."""
    runs = f"{server}#/experiments/{experiment_id}/runs?{WORKFLOW}&viewStateShareKey={run_id}"
    charts = "&compareRunsMode=CHART"
    return {"table": runs, "charts": f"{runs}{charts}"} | ({"means": f"{runs}{MEANS}{charts}"} if means else {})


def has_repeats(swept: Sequence[str], configurations: Sequence[Mapping[str, str]]) -> bool:
    """Whether seeds or folds are swept too, so that a configuration has several runs."""
    return bool(configurations) and len(configurations[0]) < len(swept)


def summarize(name: str, pages: Mapping[str, str], summary: str) -> str:
    """The description of an experiment: links to the pages of its newest sweep, and a summary of its results.

    Args:
        summary: its first line is visible before the description is opened.
    """
    links = " · ".join(f"[{page}]({address})" for page, address in pages.items())
    return f"{SUMMARY} {name} ({links}). {summary}"


def make_view(
    run_id: str,
    *,
    swept: Sequence[str],
    metrics: Sequence[str],
    counts: Sequence[str] = (),
    configurations: Sequence[Mapping[str, str]] = (),
    constants: Mapping[str, str] = {},
    means: bool = False,
) -> dict[str, Any]:
    """The state of the runs page of the UI, with the keys of the UI.

    Args:
        run_id: of the sweep's parent run.
        swept: parameters of the jobs, one column per parameter; encoders are put first.
        metrics: one column and two charts per metric; rows are sorted by the first.
        counts: tags with further columns.
        configurations: levels of each group without seed and fold.
        constants: options that all runs share.
        means: whether the charts show groups, with mean and band, instead of runs.
    """
    swept = [*(key for key in ENCODERS if key in swept), *(key for key in swept if key not in ENCODERS)]
    scores = [f"metrics.`{metric}`" for metric in metrics]
    columns = [*(f"params.`{key}`" for key in swept), *scores, *(f"tags.`{key}`" for key in counts)]
    keys = choose_grouping(configurations, constants) if has_repeats(swept, configurations) else []
    axes = [key for key in swept if key in configurations[0]] if configurations else swept
    parallel = {"type": "PARALLEL", "selectedParams": axes, "selectedMetrics": list(metrics[:1]), "showAllRuns": False}
    charts = [parallel] if axes and metrics and not means else []
    charts += [chart for metric in metrics for chart in make_charts(metric)]
    group_by = [{"mode": mode, "groupByData": key} for mode, key in keys]
    return {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{run_id}'",
        "orderByKey": scores[0] if scores else "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": [NAMES, *columns],
        "columnWidths": {NAMES: NAME_WIDTH, **dict.fromkeys(scores, COLUMN_WIDTH)},
        "runsHiddenMode": "FIRST_20_RUNS",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": group_by} if keys else None,
        "useGroupedValuesInCharts": means,
        "compareRunCharts": [complete_chart(number, chart) for number, chart in enumerate(charts)],
        "compareRunSections": [SECTION, *({"uuid": name, "name": name, "display": False} for name in CLOSED)],
        "isAccordionReordered": True,  # otherwise the UI inserts its own sections before this one
    }


def make_charts(metric: str) -> list[dict[str, Any]]:
    """Bars of a test metric, and its validation curves."""
    bars = {"type": "BAR", "metricKey": metric}
    curves = {"type": "LINE", "metricKey": metric.replace("test/", "val/", 1), "useGlobalLineSmoothing": True}
    return [bars, curves]


def complete_chart(number: int, chart: Mapping[str, Any]) -> dict[str, Any]:
    common = {"metricSectionId": SECTION["uuid"], "runsCountToCompare": 20, "deleted": False, "isGenerated": False}
    return {"uuid": f"sweep {number}", **common, **chart}
