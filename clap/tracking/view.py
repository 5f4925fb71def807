"""The page that MLflow's UI shows for a sweep: its jobs as a table, best first, and the same as charts.

MLflow's UI keeps a shared view, as its button "Share" makes one, in a tag of the experiment; the address names the tag.
"""

import base64
import json
import zlib
from collections.abc import Sequence

VIEW_TAG = "mlflow.sharedViewState."  # and then the key in the address
COLUMN_WIDTH = 250  # pixels, for names as test/synthetic/text_to_audio/recall_at_1
SECTION = {"uuid": "sweep", "name": "sweep", "display": True, "columns": 2, "isReordered": True}


def pack_view(run_id: str, *, swept: Sequence[str], metrics: Sequence[str]) -> str:
    """The page of a sweep as the UI packs it, since MLflow limits the length of a tag.

    Args:
        run_id: of the sweep's parent run.
        swept: tags of the jobs, one column each.
        metrics: one column and two charts each; the first gives the order.
    """
    text = json.dumps(make_view(run_id, swept=swept, metrics=metrics))
    return "deflate;" + base64.b64encode(zlib.compress(text.encode())).decode()


def view_address(server: str, experiment_id: str, run_id: str) -> str:
    return f"{server}/#/experiments/{experiment_id}/runs?viewStateShareKey={run_id}"


def make_view(run_id: str, *, swept: Sequence[str], metrics: Sequence[str]) -> dict:
    """The state of the UI's page of runs, under the UI's own names."""
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
        "isAccordionReordered": True,  # or the UI puts the sections that it adds itself before this one
    }


def make_charts(metric: str) -> list[dict]:
    """A metric's bars, and the curves that it had in validation."""
    bars = {"type": "BAR", "metricKey": metric}
    curves = {"type": "LINE", "metricKey": metric.replace("test/", "val/", 1), "useGlobalLineSmoothing": True}
    common = {"metricSectionId": SECTION["uuid"], "runsCountToCompare": 20, "deleted": False, "isGenerated": False}
    return [{"uuid": f"{chart['type']} {metric}", **common, **chart} for chart in (bars, curves)]
