"""The view of a sweep, as data and in a headless Chromium that opens the addresses printed by a sweep."""

import base64
import itertools
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.color import Color
from selenium.webdriver.support.wait import WebDriverWait
from sweeps import read_board, run
from test_tracking_upload import Server

from clap.plotting import PALETTE
from clap.tracking.grouping import choose_grouping, find_color
from clap.tracking.view import make_view, pack_view
from experiments.screenshots import BROWSERS, expand, find_pages, open_browser, open_page

needs_browser = pytest.mark.skipif(
    not (any(map(shutil.which, BROWSERS)) and shutil.which("chromedriver")),
    reason="needs Chromium and its chromedriver: apt-get install chromium chromium-driver",
)
AUDIO, TEXT = ("cnn14_nano", "htsat_nano"), ("gpt2_nano", "roberta_nano")
JOBS = {f"{audio}-{text}-s{seed}": (audio, text, seed) for audio in AUDIO for text in TEXT for seed in "01"}
COLORS = dict(zip(((audio, text) for audio in AUDIO for text in TEXT), PALETTE, strict=False))
SWEPT = (f"audio_encoder={','.join(AUDIO)}", f"text_encoder={','.join(TEXT)}", "seed=0,1")
LEADING = "x/text_to_audio/recall_at_1"


# The data


def test_view_lists_the_jobs_of_its_sweep_best_first():
    view = make_view("f00", swept=["lr", "audio_encoder"], metrics=["test/x/recall_at_1", "test/x/recall_at_10"])
    assert view["searchFilter"] == "tags.`mlflow.parentRunId` = 'f00'"
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`test/x/recall_at_1`", False)
    assert view["selectedColumns"][:3] == ["params.`audio_encoder`", "params.`lr`", "metrics.`test/x/recall_at_1`"]
    assert view["groupBy"] is None  # a run each


REPEATED = {
    "swept": ["seed", "text_encoder", "audio_encoder"],
    "metrics": ["test/x/recall_at_1"],
    "configurations": [{"text_encoder": text, "audio_encoder": audio} for text in ("a", "b") for audio in ("c", "d")],
}


@pytest.mark.parametrize("means", [False, True])
def test_repeated_runs_are_grouped_without_their_seeds(means: bool):
    view = make_view("f00", **REPEATED, constants={"loss": "nce"}, means=means)
    keys = {key["groupByData"] for key in view["groupBy"]["groupByKeys"]} - {"loss"}
    assert (keys, view["groupBy"]["aggregateFunction"]) == ({"audio_encoder", "text_encoder"}, "average")
    axes = [chart["selectedParams"] for chart in view["compareRunCharts"] if chart["type"] == "PARALLEL"]
    assert (axes, view["useGroupedValuesInCharts"]) == ([] if means else [["audio_encoder", "text_encoder"]], means)


def test_view_without_metrics_is_sorted_by_time():
    view = make_view("f00", swept=["seed"], metrics=[])
    assert (view["orderByKey"], view["compareRunCharts"]) == ("attributes.start_time", [])


def test_view_of_many_metrics_fits_into_a_tag():
    arguments = {"swept": ["seed"], "metrics": [f"test/x/text_to_audio/recall_at_{k}" for k in range(50)]}
    view = make_view("f00", **arguments)
    saved = pack_view("all", view, created=7)
    assert len(saved) < 5000
    envelope = json.loads(saved)
    assert (envelope["name"], envelope["createdAt"]) == ("all", 7)
    kind, packed = envelope["state"].split(";")
    assert kind == "deflate"
    assert json.loads(zlib.decompress(base64.b64decode(packed))) == view


# In the browser


@pytest.fixture(scope="module")
def sweep(sweep_project: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a sweep of four configurations and two seeds, and its output."""
    folder = tmp_path_factory.mktemp("sweep")
    shutil.copy(empty_store, folder / "server.db")
    places = [f"hydra.sweep.dir={folder}", f"tracking.uri={folder / 'server.db'}"]
    output, _ = run(sweep_project / "train.py", "-m", *SWEPT, *places)
    return folder, output


@pytest.fixture(scope="module")
def server(sweep: tuple[Path, str]) -> Iterator[Server]:
    server = Server(sweep[0])
    yield server
    server.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    with open_browser(2400, 1600) as browser:  # MLflow renders only the visible part
        yield browser


def open_printed(browser: WebDriver, page: str, sweep: tuple[Path, str], server: Server) -> None:
    """Open the address that a sweep printed for a page, at the port of the server."""
    (address,) = re.findall(rf"^{page}: http://127\.0\.0\.1:5000(/\S+)$", sweep[1], re.MULTILINE)
    open_page(browser, server.address + address, "matching runs")


def wait_for(browser: WebDriver, find: Callable[[], set], expected: set) -> None:
    """Wait until all expected items are on the page."""
    found = set()

    def is_complete(_: WebDriver) -> bool:
        found.clear()
        found.update(find())
        return expected <= found

    drawing = [StaleElementReferenceException, ValueError]  # replaced or empty cells
    try:
        WebDriverWait(browser, 120, ignored_exceptions=drawing).until(is_complete)
    except TimeoutException as error:
        raise AssertionError(f"not on the page: {expected - found}; found {found}") from error


def read_lines(browser: WebDriver) -> list[str]:
    """Visible text of the page, by line."""
    return browser.find_element(By.TAG_NAME, "body").text.splitlines()


def read_pairs(browser: WebDriver) -> set[tuple[str, str]]:
    """Neighboring lines of the page; that before the name of a run in the list is its color."""
    return set(itertools.pairwise(read_lines(browser)))


def read_column(browser: WebDriver, column: str) -> list[str]:
    """Cells of a column of the runs table, from top to bottom."""
    cells = browser.find_elements(By.CSS_SELECTOR, f'[role=gridcell][col-id="{column}"]')
    return [cell.text for cell in sorted(cells, key=lambda cell: cell.location["y"])]


def read_rows(browser: WebDriver) -> list[tuple[str, str, str, str, float]]:
    """Job, its levels and leading metric, from top to bottom, without the rows of groups."""
    names = [cell.split("\n")[-1] for cell in read_column(browser, "attributes.`Run Name`")]
    scores = [float(cell.split()[0]) for cell in read_column(browser, f"metrics.`test/{LEADING}`")]
    levels = [read_column(browser, f"params.`{key}`") for key in ("audio_encoder", "text_encoder", "seed")]
    return [row for row in zip(names, *levels, scores, strict=True) if row[0] in JOBS]


def read_drawn(browser: WebDriver, mark: str) -> list[str]:
    """Colors of the marks in the charts, as #rrggbb."""
    styles = [element.get_attribute("style") for element in browser.find_elements(By.CSS_SELECTOR, mark)]
    return [Color.from_string(re.search(r"(?:fill|stroke): (rgb[^;]*)", style)[1]).hex for style in styles]


@needs_browser
def test_table_shows_jobs_best_first_with_swept_values(sweep: tuple[Path, str], server: Server, browser: WebDriver):
    open_printed(browser, "table", sweep, server)
    scores = {row["job"]: float(row[f"test/{LEADING}"]) for row in read_board(sweep[0])}
    assert scores.keys() == JOBS.keys()
    wait_for(browser, lambda: set(read_rows(browser)), {(job, *JOBS[job], scores[job]) for job in JOBS})
    assert [row[-1] for row in read_rows(browser)] == list(scores.values())
    assert {"audio_encoder", "text_encoder", "seed", f"test/{LEADING}", "Parameters"} <= set(read_lines(browser))


@needs_browser
def test_charts_open_on_encoders_with_a_color_for_each_configuration(
    sweep: tuple[Path, str], server: Server, browser: WebDriver
):
    open_printed(browser, "charts", sweep, server)
    wait_for(browser, lambda: read_pairs(browser), {(COLORS[levels[:2]], job) for job, levels in JOBS.items()})
    curves = {f"{job} (val/{LEADING})" for job in JOBS}
    wait_for(browser, lambda: set(read_lines(browser)), {*curves, *AUDIO, *TEXT, "audio_encoder", f"test/{LEADING}"})
    texts = [element.text for element in browser.find_elements(By.CSS_SELECTOR, ".parcoords text, svg text")]
    axes = list(dict.fromkeys(text for text in texts if text.endswith("_encoder")))
    assert axes == ["audio_encoder", "text_encoder"]
    assert sorted(read_drawn(browser, ".barlayer .point path")) == sorted(2 * list(COLORS.values()))
    assert set(read_drawn(browser, ".scatterlayer .js-line")) == set(COLORS.values())


@needs_browser
def test_means_have_a_color_for_each_group_of_seeds(sweep: tuple[Path, str], server: Server, browser: WebDriver):
    open_printed(browser, "means", sweep, server)
    configurations = [{"audio_encoder": audio, "text_encoder": text} for audio, text in COLORS]
    keys = choose_grouping(configurations, {})
    groups = [", ".join(f"{key}: {levels[key]}" for _, key in keys) for levels in configurations]
    wait_for(browser, lambda: set(read_lines(browser)), {f"{group} (val/{LEADING})" for group in groups})
    colors = [find_color(keys, levels) for levels in configurations]
    assert sorted(read_drawn(browser, ".barlayer .point path")) == sorted(colors) and len(set(colors)) == len(COLORS)
    assert set(read_drawn(browser, ".scatterlayer .js-fill")) >= set(colors)  # the bands


@needs_browser
@pytest.mark.slow
def test_other_pages_show_encoders_and_leading_metric(sweep: tuple[Path, str], server: Server, browser: WebDriver):
    pages, best = find_pages(server.address)
    scores = {row["job"]: float(row[f"test/{LEADING}"]) for row in read_board(sweep[0])}
    assert best == next(iter(scores))
    lines = {f"{job} {score:.3f} –" for job, score in scores.items()}
    open_page(browser, pages["front"], "Newest sweep:")
    expand(browser)
    wait_for(browser, lambda: set(read_lines(browser)), lines)
    wait_for(browser, lambda: read_pairs(browser), {(COLORS[levels[:2]], job) for job, levels in JOBS.items()})
    open_page(browser, pages["run"], best)
    shown = {("audio_encoder", AUDIO[1]), (f"test/{LEADING}", str(scores[best]))}
    wait_for(browser, lambda: read_pairs(browser), shown)
    open_page(browser, pages["sweep"], best)
    shown = {f"best/test/{LEADING}", f"best_mean/test/{LEADING}", "htsat_nano-roberta_nano 2 0.705 0.007 – –"}
    wait_for(browser, lambda: set(read_lines(browser)), shown)
    open_page(browser, pages["compare"], best)
    shown = {*JOBS, *(f"{score:g}" for score in scores.values()), f"test/{LEADING}"}
    wait_for(browser, lambda: set(read_lines(browser)), shown)
    wait_for(browser, lambda: read_pairs(browser), {("Parameters:", "audio_encoder")})


@needs_browser
def test_saved_views_are_in_the_menu(sweep: tuple[Path, str], server: Server, browser: WebDriver):
    open_page(browser, find_pages(server.address)[0]["front"], "Newest sweep:")
    browser.find_element(By.CSS_SELECTOR, "[data-testid=saved-views-trigger]").click()
    name = f"audio_encoder x text_encoder {sweep[0].parent.name} {sweep[0].name}"
    wait_for(browser, lambda: set(read_lines(browser)), {name, f"{name}, means"})
