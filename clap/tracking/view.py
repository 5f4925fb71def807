"""The view of a sweep in MLflow's UI: its jobs as a table, best first, and as charts.

MLflow's UI stores a shared view, as made by its button "Share", in a tag of the experiment; the address has its key.
"""

import base64
import json
import zlib
from collections.abc import Sequence

VIEW_TAG = "mlflow.sharedViewState."  # followed by the key
COLUMN_WIDTH = 250  # pixels, for names such as test/synthetic/text_to_audio/recall_at_1
SECTION = {"uuid": "sweep", "name": "sweep", "display": True, "columns": 2, "isReordered": True}


def pack_view(run_id: str, *, swept: Sequence[str], metrics: Sequence[str]) -> str:
    """The view of a sweep, compressed as by the UI because MLflow limits the length of tags.

    Args:
        run_id: of the sweep's parent run.
        swept: tags of the jobs, one column per tag.
        metrics: one column and two charts per metric; rows are sorted by the first.
    """
    text = json.dumps(make_view(run_id, swept=swept, metrics=metrics))
    return "deflate;" + base64.b64encode(zlib.compress(text.encode())).decode()


def view_address(server: str, experiment_id: str, run_id: str) -> str:
    return f"{server}/#/experiments/{experiment_id}/runs?viewStateShareKey={run_id}"


def make_view(run_id: str, *, swept: Sequence[str], metrics: Sequence[str]) -> dict:
    """The state of the runs page of the UI, with the keys of the UI."""
    scores = [f"metrics.`{metric}`" for metric in metrics]
    columns = [*(f"tags.`{key}`" for key in swept), *scores]
    return {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{run_id}'",
        "orderByKey": scores[0] if scores else "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": dict.fromkeys(scores, COLUMN_WIDTH),
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": [chart for metric in metrics for chart in make_charts(metric)],
        "compareRunSections": [SECTION],
        "isAccordionReordered": True,  # otherwise the UI inserts its own sections before this one
    }


def make_charts(metric: str) -> list[dict]:
    """Bars of a test metric, and its validation curves."""
    bars = {"type": "BAR", "metricKey": metric}
    curves = {"type": "LINE", "metricKey": metric.replace("test/", "val/", 1), "useGlobalLineSmoothing": True}
    common = {"metricSectionId": SECTION["uuid"], "runsCountToCompare": 20, "deleted": False, "isGenerated": False}
    return [{"uuid": f"{chart['type']} {metric}", **common, **chart} for chart in (bars, curves)]
