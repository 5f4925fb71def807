"""The view of a sweep, as data and in a headless Chromium that opens the addresses printed by a sweep."""

import base64
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from sweeps import read_board, run
from test_tracking_upload import Server

from clap.tracking.view import make_view, pack_view

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs Chromium and its chromedriver: apt-get install chromium chromium-driver"
)
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # not available to root
    "--disable-dev-shm-usage",
    "--window-size=2400,1600",  # MLflow renders only the visible part
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no network
    "--blink-settings=primaryHoverType=2,availableHoverTypes=2",  # a mouse; without it charts always show their tools
)
JOBS = {f"lr={rate}-s{seed}": (rate, seed) for rate in ("1", "2") for seed in "01"}
LEADING = "x/text_to_audio/recall_at_1"


# The data


def test_view_lists_the_jobs_of_its_sweep_best_first():
    view = make_view("f00", swept=["optimizer.lr", "seed"], metrics=["test/x/recall_at_1", "test/x/recall_at_10"])
    assert view["searchFilter"] == "tags.`mlflow.parentRunId` = 'f00'"
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`test/x/recall_at_1`", False)
    assert view["selectedColumns"][:3] == ["tags.`optimizer.lr`", "tags.`seed`", "metrics.`test/x/recall_at_1`"]


def test_view_without_metrics_is_sorted_by_time():
    view = make_view("f00", swept=["seed"], metrics=[])
    assert (view["orderByKey"], view["compareRunCharts"]) == ("attributes.start_time", [])


def test_view_of_many_metrics_fits_into_a_tag():
    arguments = {"swept": ["seed"], "metrics": [f"test/x/text_to_audio/recall_at_{k}" for k in range(50)]}
    kind, packed = pack_view("f00", **arguments).split(";")
    assert (kind, len(packed) < 5000) == ("deflate", True)
    assert json.loads(zlib.decompress(base64.b64decode(packed))) == make_view("f00", **arguments)


# In the browser


@pytest.fixture(scope="module")
def sweep(sweep_project: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a sweep of four jobs, and its output."""
    folder = tmp_path_factory.mktemp("sweep")
    shutil.copy(empty_store, folder / "server.db")
    places = [f"hydra.sweep.dir={folder}", f"tracking.uri={folder / 'server.db'}"]
    output, _ = run(sweep_project / "train.py", "-m", "lr=1,2", "seed=0,1", *places)
    return folder, output


@pytest.fixture(scope="module")
def server(sweep: tuple[Path, str]) -> Iterator[Server]:
    server = Server(sweep[0])
    yield server
    server.kill()


@contextmanager
def open_browser() -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for option in OPTIONS:
        options.add_argument(option)
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    with open_browser() as browser:
        yield browser


def open_page(browser: WebDriver, page: str, sweep: tuple[Path, str], server: Server) -> None:
    """Open the address that a sweep printed for a page, at the port of the server."""
    (address,) = re.findall(rf"^{page}: http://127\.0\.0\.1:5000(/\S+)$", sweep[1], re.MULTILINE)
    browser.get("about:blank")  # without it, a change after # does not load the page
    browser.get(server.address + address)


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


def read_column(browser: WebDriver, column: str) -> list[str]:
    """Cells of a column of the runs table, from top to bottom."""
    cells = browser.find_elements(By.CSS_SELECTOR, f'[role=gridcell][col-id="{column}"]')
    return [cell.text for cell in sorted(cells, key=lambda cell: cell.location["y"])]


def read_rows(browser: WebDriver) -> list[tuple[str, str, str, float]]:
    """Job, learning rate, seed and leading metric, from top to bottom."""
    names = [cell.split("\n")[-1] for cell in read_column(browser, "attributes.`Run Name`")]
    scores = [float(cell) for cell in read_column(browser, f"metrics.`test/{LEADING}`")]
    rates, seeds = (read_column(browser, f"tags.`{key}`") for key in ("lr", "seed"))
    return list(zip(names, rates, seeds, scores, strict=True))


@needs_browser
def test_table_shows_jobs_best_first_with_swept_values(sweep: tuple[Path, str], server: Server, browser: WebDriver):
    open_page(browser, "table", sweep, server)
    scores = {row["job"]: float(row[f"test/{LEADING}"]) for row in read_board(sweep[0])}
    assert scores.keys() == JOBS.keys()
    wait_for(browser, lambda: set(read_rows(browser)), {(job, *JOBS[job], scores[job]) for job in JOBS})
    assert [row[-1] for row in read_rows(browser)] == list(scores.values())
    assert {"lr", "seed", f"test/{LEADING}"} <= set(read_lines(browser))


def read_charts(browser: WebDriver) -> set[tuple[str, int, bool]]:
    """Title, number of bars and presence of curves of the first two charts."""
    titles = browser.find_elements(By.CSS_SELECTOR, "h4")[:2]
    plots = browser.find_elements(By.CLASS_NAME, "js-plotly-plot")[:2]
    return {
        (
            title.text,
            len(plot.find_elements(By.CSS_SELECTOR, ".barlayer .point")),
            bool(plot.find_elements(By.CSS_SELECTOR, ".scatterlayer .js-line")),
        )
        for title, plot in zip(titles, plots, strict=True)
    }


@needs_browser
def test_charts_show_the_leading_metric_of_every_job(sweep: tuple[Path, str], server: Server, browser: WebDriver):
    open_page(browser, "charts", sweep, server)
    wait_for(
        browser, lambda: read_charts(browser), {(f"test/{LEADING}", len(JOBS), False), (f"val/{LEADING}", 0, True)}
    )
    curves = {f"{job} (val/{LEADING})" for job in JOBS}
    wait_for(browser, lambda: set(read_lines(browser)), {*JOBS, *curves})
