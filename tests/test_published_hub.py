"""Checkpoints from URLs, with a local server that may lack the file or close the connection."""

from pathlib import Path
from urllib.parse import quote

import pytest
from download_server import FileServer

from clap.published.hub import fetch_source, find_cached
from clap.published.sources import is_published
from clap.study.downloads import is_cached

CONTENT = bytes(range(256)) * 5000


NAMES = ("Cnn14_mAP=0.431.pth", "cut.pth")


@pytest.fixture
def server(file_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for name in NAMES:
        (file_server.folder / quote(name)).write_bytes(CONTENT)
    return file_server


def test_file_of_a_url_is_downloaded_once(server: FileServer, tmp_path: Path):
    address = f"{server.address}/Cnn14_mAP%3D0.431.pth?download=1"
    assert is_published(address) and not is_cached(address, ())
    path = fetch_source(address)
    assert path == tmp_path / "home" / "hub" / "checkpoints" / "Cnn14_mAP=0.431.pth" == find_cached(address)
    assert path.read_bytes() == CONTENT
    assert is_cached(address, ()) and fetch_source(address) == path and len(server.requests) == 1


def test_missing_file_leaves_no_partial_file(server: FileServer, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=f"absent.pth: not downloaded .404.*; or put the file at {tmp_path}"):
        fetch_source(f"{server.address}/absent.pth")
    assert not [path for path in tmp_path.rglob("absent.pth*") if path.is_file()]


def test_interrupted_download_resumes(server: FileServer):
    server.faults["cut.pth"] = [("cut", 100_000)]
    assert fetch_source(f"{server.address}/cut.pth").read_bytes() == CONTENT
    assert [start for _, start in server.requests] == [None, "bytes=65536-"]


def test_common_file_name_is_cached_by_url():
    first, second = (find_cached(f"https://hub/{name}/model.safetensors") for name in "ab")
    assert first != second
    with pytest.raises(FileNotFoundError, match="the URL has no file name"):
        find_cached("https://hub/folder/")


def test_unreachable_server_is_named(server: FileServer):
    server.server_close()
    server.shutdown()
    with pytest.raises(FileNotFoundError, match=f"{server.address}/a.pth: not downloaded"):
        fetch_source(f"{server.address}/a.pth")
