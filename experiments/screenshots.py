"""Pictures of MLflow's pages of the newest sweep, for the README: python experiments/screenshots.py [SERVER].

Start the server first: mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db. It needs Chromium and its driver
(apt-get install chromium chromium-driver). The pictures are experiments/mlflow_PAGE.png.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from clap.tracking.view import VIEW_TAG, WORKFLOW, list_pages, unpack_view  # noqa: E402 (after adding the checkout)

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # not available to root
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no network
    "--blink-settings=primaryHoverType=2,availableHoverTypes=2",  # a mouse; without it charts always show their tools
)
SECONDS = 60.0  # timeout of a page
SETTLE_SECONDS = 4.0  # charts move until they fit
STORAGE = {  # of the browser: no panel of the UI's assistant, which covers a part of each page
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
}
EXPANDERS = ("mlflow.experiment.metadata_editor.expand_button", "runnamecellrenderer.tsx_46")  # ends of component ids
MORE = "Show more"  # of a long description


@contextmanager
def open_browser(width: int = 1800, height: int = 1100) -> Iterator[WebDriver]:
    """A headless Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)), None)
    for option in (*OPTIONS, f"--window-size={width},{height}"):
        options.add_argument(option)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


def find_pages(server: str) -> tuple[dict[str, str], str]:
    """Name -> address of the pages of the newest sweep, and the name of its best run."""
    client = MlflowClient(server)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    sweep = client.search_runs(experiments, "tags.role = 'sweep'", order_by=["attributes.start_time DESC"])[0].info
    jobs = f"tags.`mlflow.parentRunId` = '{sweep.run_id}' and attributes.status = 'FINISHED'"
    view = json.loads(client.get_experiment(sweep.experiment_id).tags[f"{VIEW_TAG}{sweep.run_id}"])
    order = unpack_view(view["state"])["orderByKey"]
    runs = client.search_runs([sweep.experiment_id], jobs, order_by=[f"{order} DESC"])
    page = f"{server}/#/experiments/{sweep.experiment_id}/runs"
    pages = {"front": f"{page}?{WORKFLOW}"}
    pages |= list_pages(f"{server}/", sweep.experiment_id, sweep.run_id, means=True)
    pages |= {"run": f"{page}/{runs[0].info.run_id}?{WORKFLOW}", "sweep": f"{page}/{sweep.run_id}?{WORKFLOW}"}
    compared = f"runs={json.dumps([run.info.run_id for run in runs])}&experiments={json.dumps([sweep.experiment_id])}"
    return pages | {"compare": f"{server}/#/compare-runs?{compared}&{WORKFLOW}"}, runs[0].info.run_name


def open_page(browser: WebDriver, address: str, text: str) -> None:
    """Open a page and wait until it shows a text."""
    browser.get("about:blank")  # without it, a change after # does not load the page
    browser.get(address)
    wait = WebDriverWait(browser, SECONDS, ignored_exceptions=[StaleElementReferenceException])
    wait.until(lambda _: text in browser.find_element(By.TAG_NAME, "body").text)


def expand(browser: WebDriver) -> None:
    """Open the description of the experiment and the jobs of the sweep."""
    for end in EXPANDERS:
        browser.find_element(By.CSS_SELECTOR, f"[data-component-id$='{end}']").click()


def main(server: str, folder: Path) -> None:
    """Write the pictures."""
    pages, best = find_pages(server)
    with open_browser() as browser:
        browser.get(server)
        for key, value in STORAGE.items():
            browser.execute_script("localStorage.setItem(arguments[0], arguments[1])", key, value)
        for page, address in pages.items():
            open_page(browser, address, {"front": "Newest sweep", "sweep": MORE}.get(page, best))
            if page == "sweep":
                browser.find_element(By.XPATH, f"//*[text()='{MORE}']").click()
            if page == "front":
                expand(browser)
            time.sleep(SETTLE_SECONDS)
            browser.save_screenshot(str(folder / f"mlflow_{page}.png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", nargs="?", default="http://127.0.0.1:5000")
    parser.add_argument("--output", type=Path, default=HERE)
    arguments = parser.parse_args()
    main(arguments.server, arguments.output)
