"""The demo page, served as the command serves it: what it gives away, and in a headless Chromium."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import soundfile
from conftest import make_tone
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from clap.commands.demo import find_port, make_environment
from clap.demo.answers import Answers
from experiments.screenshots import BROWSERS, open_browser

if importlib.util.find_spec("gradio") is None:
    pytest.skip("needs gradio", allow_module_level=True)
needs_browser = pytest.mark.skipif(
    not (any(map(shutil.which, BROWSERS)) and shutil.which("chromedriver")),
    reason="needs Chromium and its chromedriver: apt-get install chromium chromium-driver",
)
SECONDS = 60.0  # timeout of an answer


@pytest.fixture(scope="module")
def sounds(tones: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings, one with a name that a template or HTML would change."""
    folder = tmp_path_factory.mktemp("sounds")
    shutil.copy(tones[0], folder / "{{value}} ${1+1} <b>.wav")
    shutil.copy(tones[1], folder)
    soundfile.write(folder / "long.wav", make_tone(300.0, 5.0), 16_000)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def address(tiny_clap: Callable, sounds: Path, folder: Path) -> Iterator[str]:
    """Address of the page."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in make_environment(folder).items():
            patch.setenv(name, value)
        from clap.demo.serve import serve_demo  # reads the environment

        clap = tiny_clap()
        options = {"host": "127.0.0.1", "port": find_port("127.0.0.1", 0), "share": False}
        with serve_demo(clap, "tiny", index=None, recordings=str(sounds), folder=folder, **options) as address:
            yield address.rstrip("/")


# What it gives away


def test_only_files_of_answers_are_served(address: str, folder: Path, sounds: Path):
    shown = folder / "shown" / "answer.png"
    shown.write_bytes(b"shown")
    assert requests.get(f"{address}/gradio_api/file={shown}", timeout=SECONDS).content == b"shown"
    (folder / "secret.txt").write_text("secret")
    for path in (
        "/etc/passwd",
        sounds / "long.wav",
        folder / "index" / "index.json",
        f"{folder}/shown/../secret.txt",
        f"{folder}/shown/%2e%2e/secret.txt",
        f"{folder}/shown/..%2fsecret.txt",
        f"{folder}/shown",
        "http://127.0.0.1/",
        "pyproject.toml",
    ):
        assert requests.get(f"{address}/gradio_api/file={path}", timeout=SECONDS).status_code in (403, 404), path


def test_only_an_upload_is_scored(address: str, sounds: Path):
    config = requests.get(f"{address}/config", timeout=SECONDS).json()
    (score,) = (event["id"] for event in config["dependencies"] if len(event["inputs"]) == 4)
    file = {"path": str(sounds / "long.wav"), "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file, None, "dog", "{}"], "fn_index": score, "session_hash": "test"}
    requests.post(f"{address}/gradio_api/queue/join", json=body, timeout=SECONDS).raise_for_status()
    answer = requests.get(f"{address}/gradio_api/queue/data?session_hash=test", timeout=SECONDS).text
    assert '"success":false' in answer and "cosine" not in answer


def test_model_answers_one_request_at_a_time(address: str):
    from clap.demo.page import build_page  # imports gradio

    events = build_page(Answers(None, None, Path()), title="", sounds="").fns.values()
    using = [event for event in events if event.fn.__name__ in ("find_sounds", "score_sound")]
    assert {(event.concurrency_id, event.concurrency_limit, event.queue) for event in using} == {("model", 1, True)}


# In the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    with open_browser(1300, 1000) as browser:
        yield browser


def find(browser: WebDriver, selector: str) -> WebElement:
    """The first element of a selector, as soon as the page has it."""
    return WebDriverWait(browser, SECONDS, poll_frequency=0.05).until(
        lambda _: next(iter(browser.find_elements(By.CSS_SELECTOR, selector)), None)
    )


@needs_browser
def test_both_directions_work_and_a_bad_upload_is_a_message(
    address: str, browser: WebDriver, sounds: Path, tmp_path: Path
):
    browser.get(address)
    find(browser, "#clap-text textarea").send_keys("a dog barks", Keys.ENTER)
    find(browser, "#clap-found article")
    cards = browser.find_elements(By.CSS_SELECTOR, "#clap-found article")
    names = {card.find_element(By.TAG_NAME, "strong").text for card in cards}
    assert names == {path.name for path in sounds.iterdir()}
    loaded = "return [...document.querySelectorAll('audio, img')].every((e) => e.duration > 0 || e.naturalWidth > 0)"
    WebDriverWait(browser, SECONDS, poll_frequency=0.05).until(lambda _: browser.execute_script(loaded))

    browser.find_elements(By.CSS_SELECTOR, "button[role=tab]")[1].click()
    (tmp_path / "broken.wav").write_bytes(b"not a recording")
    upload(browser, tmp_path / "broken.wav")
    find(browser, "#clap-score").click()
    assert "broken.wav: cannot be decoded" in find(browser, "#clap-scored .clap-error").text

    find(browser, "#clap-upload [aria-label='Clear']").click()
    upload(browser, sounds / "long.wav")
    find(browser, "#clap-labels textarea").send_keys("\na low beep")
    find(browser, "#clap-score").click()
    rows = find(browser, "#clap-scored table").find_elements(By.TAG_NAME, "tr")
    assert "a low beep" in {row.find_element(By.TAG_NAME, "td").text for row in rows}
    assert len(browser.find_elements(By.CSS_SELECTOR, "#clap-scored polygon")) == len(rows) == 7
    find(browser, "#clap-scored .clap-seek").click()
    playing = "return [...document.querySelectorAll('#clap-scored audio')].some((audio) => !audio.paused)"
    assert browser.execute_script(playing)

    requested = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert requested and all(name.startswith(address) for name in requested)  # no font, script or number from elsewhere


def upload(browser: WebDriver, path: Path) -> None:
    """Choose a file and wait until the page has sent it."""
    find(browser, "#clap-upload input[type=file]").send_keys(str(path))
    WebDriverWait(browser, SECONDS, poll_frequency=0.05).until(
        lambda _: path.stem in browser.find_element(By.ID, "clap-upload").text
    )


# The command


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_demo_without_traces(tiny_checkpoint: Path, tmp_path: Path, number: signal.Signals):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "clap", "demo", "--checkpoint", str(tiny_checkpoint), "--port", "0"]
    demo = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    line = demo.stdout.readline()
    assert requests.get(re.match(r"http://127\.0\.0\.1:\d+/", line)[0], timeout=SECONDS).ok
    demo.send_signal(number)
    assert demo.wait(SECONDS) == 0
    assert not list(tmp_path.glob("clap-demo-*"))
