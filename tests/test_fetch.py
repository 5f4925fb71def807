"""Downloads from a server that fails as real servers do."""

import hashlib
import resource
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from download_server import FileServer

from clap.fetch import CHUNK, MAX_ATTEMPTS, FetchError, Interrupted, fetch

CONTENT = bytes(range(251)) * 1000  # four chunks, all different
CHECKSUM = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


@pytest.fixture
def server(file_server: FileServer) -> FileServer:
    (file_server.folder / "a.bin").write_bytes(CONTENT)
    return file_server


def get(server: FileServer, tmp_path: Path, name: str = "a.bin", **options: object) -> bytes:
    path = tmp_path / "got" / name
    fetch(f"{server.address}/{name}", path, **options)
    assert [file.name for file in path.parent.iterdir()] == [name]
    return path.read_bytes()


def test_file_is_downloaded(server: FileServer, tmp_path: Path):
    assert get(server, tmp_path, checksum=CHECKSUM) == CONTENT


@pytest.mark.parametrize("checksum", ["", CHECKSUM], ids=["unchecked", "checked"])
def test_lost_connection_resumes_where_it_stopped(server: FileServer, tmp_path: Path, checksum: str):
    server.faults["a.bin"] = [("cut", 2 * CHUNK), ("cut", CHUNK)]
    assert get(server, tmp_path, checksum=checksum) == CONTENT
    assert server.requests == [
        ("a.bin", None),
        ("a.bin", f"bytes={2 * CHUNK}-"),
        ("a.bin", f"bytes={3 * CHUNK}-"),
    ]


def test_later_call_resumes_where_an_earlier_one_stopped(server: FileServer, tmp_path: Path):
    server.faults["a.bin"] = [("cut", 3 * CHUNK), *[("status", 503)] * MAX_ATTEMPTS]
    with pytest.raises(FetchError, match="a.bin: not downloaded .503"):
        get(server, tmp_path)
    assert get(server, tmp_path) == CONTENT
    assert server.requests[-1] == ("a.bin", f"bytes={3 * CHUNK}-")


def test_file_that_has_changed_is_downloaded_from_scratch(server: FileServer, tmp_path: Path):
    server.faults["a.bin"] = [("cut", 3 * CHUNK), *[("status", 503)] * MAX_ATTEMPTS]
    with pytest.raises(FetchError):
        get(server, tmp_path)
    (server.folder / "a.bin").write_bytes(CONTENT[::-1])
    assert get(server, tmp_path) == CONTENT[::-1]


def test_server_that_ignores_if_range_does_not_mix_versions(server: FileServer, tmp_path: Path):
    server.faults["a.bin"] = [("cut", 3 * CHUNK), *[("status", 503)] * MAX_ATTEMPTS, ("no_if_range", None)]
    with pytest.raises(FetchError):
        get(server, tmp_path)
    (server.folder / "a.bin").write_bytes(CONTENT[::-1])
    assert get(server, tmp_path) == CONTENT[::-1]


@pytest.mark.parametrize("status", [403, 404, 522])
def test_refused_retry_keeps_received_bytes(server: FileServer, tmp_path: Path, status: int):
    server.faults["a.bin"] = [("cut", 2 * CHUNK), *[("status", status)] * MAX_ATTEMPTS]
    with pytest.raises(FetchError, match=f"not downloaded .{status}"):
        get(server, tmp_path)
    server.faults["a.bin"] = []
    assert get(server, tmp_path) == CONTENT and server.requests[-1][1] == f"bytes={2 * CHUNK}-"


def test_existing_file_with_wrong_checksum_is_downloaded_again(server: FileServer, tmp_path: Path):
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "a.bin").write_bytes(b"of another address")
    assert get(server, tmp_path, checksum=CHECKSUM) == CONTENT


def test_part_without_version_or_checksum_is_not_resumed(server: FileServer, tmp_path: Path):
    server.faults["a.bin"] = [("no_etag", None), ("no_etag", None)]
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "a.bin.part").write_bytes(b"of another file")
    assert get(server, tmp_path) == CONTENT


def test_complete_part_requires_no_further_byte(server: FileServer, tmp_path: Path):
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "a.bin.part").write_bytes(CONTENT)
    assert get(server, tmp_path, checksum=CHECKSUM) == CONTENT
    assert server.requests == [("a.bin", f"bytes={len(CONTENT)}-")]


def test_part_longer_than_the_file_is_discarded(server: FileServer, tmp_path: Path):
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "a.bin.part").write_bytes(CONTENT + b"more")
    assert get(server, tmp_path, checksum=CHECKSUM) == CONTENT


def test_server_without_ranges_sends_the_whole_file_again(server: FileServer, tmp_path: Path):
    server.faults["a.bin"] = [("cut", CHUNK), ("no_range", None)]
    assert get(server, tmp_path) == CONTENT


def test_busy_server_is_retried(server: FileServer, tmp_path: Path):
    server.faults["a.bin"] = [("status", 503), ("status", 429)]
    assert get(server, tmp_path) == CONTENT


def test_absent_file_is_not_retried(server: FileServer, tmp_path: Path):
    with pytest.raises(FetchError, match="/b.bin: not downloaded .404 Not Found"):
        get(server, tmp_path, "b.bin")
    assert len(server.requests) == 1 and not list((tmp_path / "got").iterdir())


def test_file_with_wrong_checksum_is_deleted(server: FileServer, tmp_path: Path):
    server.faults["a.bin"] = [("other", None)]
    with pytest.raises(FetchError, match=f"its md5 is not {CHECKSUM.removeprefix('md5:')}"):
        get(server, tmp_path, checksum=CHECKSUM)
    assert not list((tmp_path / "got").iterdir())


def test_content_length_too_small_is_detected_by_the_checksum(server: FileServer, tmp_path: Path):
    server.faults["a.bin"] = [("shorter", None)]
    with pytest.raises(FetchError, match="not the published file"):
        get(server, tmp_path, checksum=CHECKSUM)
    assert not list((tmp_path / "got").iterdir())


def test_content_length_too_large_still_gives_the_whole_file(server: FileServer, tmp_path: Path):
    server.faults["a.bin"] = [("longer", None)]
    assert get(server, tmp_path) == CONTENT


def test_connection_that_always_fails_is_given_up(server: FileServer, tmp_path: Path):
    server.faults["a.bin"] = [("cut", 0)] * MAX_ATTEMPTS
    with pytest.raises(FetchError, match=f"a.bin: not downloaded .* {MAX_ATTEMPTS} times"):
        get(server, tmp_path)
    assert len(server.requests) == MAX_ATTEMPTS


def test_error_hides_the_signature_of_an_address(server: FileServer, tmp_path: Path):
    with pytest.raises(FetchError, match=r"/b.bin\?X-Amz-Signature=\*\*\*: not downloaded .404"):
        get(server, tmp_path, "b.bin?X-Amz-Signature=hunter2")


def test_address_that_is_not_a_url_is_refused_at_once(tmp_path: Path):
    with pytest.raises(FetchError, match="mirror/a.bin: not downloaded"):
        fetch("mirror/a.bin", tmp_path / "a.bin")


def test_stop_keeps_received_bytes(server: FileServer, tmp_path: Path):
    server.faults["a.bin"] = [("cut", CHUNK), *[("status", 503)] * MAX_ATTEMPTS]
    with pytest.raises(FetchError):
        get(server, tmp_path)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted, match="a.bin.part is kept"):
        get(server, tmp_path, stop=stop)
    assert (tmp_path / "got" / "a.bin.part").stat().st_size == CHUNK


@pytest.mark.parametrize("fault", ["none", "no_length"])
def test_file_above_the_limit_is_not_downloaded(server: FileServer, tmp_path: Path, fault: str):
    server.faults["a.bin"] = [(fault, None)]
    with pytest.raises(FetchError, match="a.bin: not downloaded .larger than 0.0001 GB.; .* raise max_gigabytes"):
        get(server, tmp_path, max_size=1e5)
    assert not list((tmp_path / "got").glob("*.part"))


def test_file_larger_than_the_free_space_is_not_downloaded(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="a.bin.part: not written .*GB are free.; free space and run again"):
        get(server, tmp_path)


def test_full_disk_keeps_received_bytes(server: FileServer, tmp_path: Path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * CHUNK, limits[1]))
    try:
        with pytest.raises(OSError, match="a.bin.part: not written .*; free space and run again"):
            get(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "got" / "a.bin.part").stat().st_size == 2 * CHUNK
    assert get(server, tmp_path) == CONTENT
