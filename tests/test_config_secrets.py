"""Passwords in addresses: moved to the environment, hidden in texts, refused where a run would record them."""

import os

import pytest

from clap.config.secrets import check_no_secrets, hide_secrets, move_login, move_logins, move_server_login


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")


def login() -> tuple[str, str]:
    return os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("http://me:hunter2@host:5000/a", "http://***@host:5000/a"),
        ("postgresql+psycopg2://me:hunter2@host/db", "postgresql+psycopg2://***@host/db"),
        ("http://me:hun/ter@2@host", "http://***@host"),
        ("no http://hunter2@host, or http://a:hunter2@b", "no http://***@host, or http://***@b"),
        ("https://host/w.pt?X-Amz-Signature=hunter2&b=1", "https://host/w.pt?X-Amz-Signature=***&b=1"),
        ("https://host/w.pt?x=" + "hunter2" * 5, "https://host/w.pt?x=***"),
        ("'https://host/w.pt?token=hunter2'", "'https://host/w.pt?token=***'"),
    ],
)
def test_secret_is_hidden(text: str, hidden: str):
    assert hide_secrets(text) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000",
        "https://zenodo.org/records/1/files/a.zip?download=1",
        "https://www.youtube.com/watch?v=abcdefghijk",
        "sqlite:////home/a@b/mlflow.db",
        "/home/a@b:c/mlflow.db",
        "a dog: barks @ night?key=1",
    ],
)
def test_text_without_secret_is_unchanged(text: str):
    assert hide_secrets(text) == text


def test_login_is_moved_to_the_environment():
    assert move_server_login("https://me:hun%2Fter%402@host:5000/") == "https://host:5000"
    assert login() == ("me", "hun/ter@2")


def test_address_without_login_keeps_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "other")
    assert move_server_login("http://host:5000") == "http://host:5000"
    assert login() == ("", "other")


@pytest.mark.parametrize("uri", ["http://hunter2@host", "http://:hunter2@host", "http://me:@host"])
def test_user_without_password_is_refused(uri: str):
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_TOKEN") as error:
        move_login(uri)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("uri", ["http://host?token=hunter2", "http://host/#hunter2", "http://me:hun/hunter2@host"])
def test_unclear_address_of_a_server_is_refused(uri: str):
    with pytest.raises(ValueError, match="query or an unclear password"):
        move_server_login(uri)


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        ("tracking.uri=http://me:hunter2@host", "tracking.uri=http://host"),
        ("tracking.uri='http://me:hunter2@host'", "tracking.uri='http://host'"),
        ("++tracking={uri: http://me:hunter2@host}", "++tracking={uri: http://host}"),
    ],
)
def test_login_of_an_override_is_moved(line: str, moved: str):
    assert move_logins(["-m", line, "seed=1"]) == ["-m", moved, "seed=1"]
    assert login() == ("me", "hunter2")


def test_interpolated_login_stays_as_it_is_written():
    line = "tracking.uri=http://${oc.env:U}:${oc.env:P}@host"
    assert move_logins([line]) == [line] and login() == ("", "")


@pytest.mark.parametrize("value", ["https://me:hunter2@host/w.pt", "https://host/w.pt?sig=hunter2"])
def test_override_with_a_secret_is_refused(value: str):
    with pytest.raises(ValueError, match="init_from=https.* would record; download it, and give its path") as error:
        move_logins([f"init_from={value}"])
    assert "hunter2" not in str(error.value)


def test_password_in_a_yaml_is_refused():
    with pytest.raises(ValueError, match="tracking.uri=http://...@host has a password .*set MLFLOW_TRACKING_USERNAME"):
        check_no_secrets({"tracking.uri": "http://me:hunter2@host", "seed": 0})
