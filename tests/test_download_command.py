"""The command line of python -m clap download."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from download_server import FileServer
from mirrors import serve_clotho

from clap.__main__ import main


@pytest.fixture
def clotho(file_server: FileServer) -> dict[str, object]:
    return serve_clotho(file_server)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["clotto", "--root", "x"], "'clotto' cannot be downloaded, only .*; did you mean clotho"),
        (["clotho", "--root", "x", "sever=y"], "sever=y: there is no key sever; did you mean server"),
        (["clotho", "--root", "x", "--splits", "test", "sever=y"], "there is no key sever"),
        (["Clotho", "--root", "x", "--splits", "tset"], "split 'tset' is not one of train, val, test"),
        (["audiocaps", "--root", "x", "version=v3"], "version=v3 is not one of v1, v2"),
        (["clotho", "--root", "x", "--splits", "dev"], "split 'dev' is not one of train, val, test"),
        (["clotho", "--root", "x", "--workers", "0"], "--workers 0 is not positive; set it to 1 or more"),
    ],
)
def test_invalid_command_line_is_explained(argv: Sequence[str], message: str):
    with pytest.raises(SystemExit, match=message):
        main(["download", *argv])


def test_command_prints_present_clips_of_a_mirror_with_login(
    clotho: dict, tmp_path: Path, capsys: pytest.CaptureFixture
):
    clotho["server"] = clotho["server"].replace("://", "://me:hunter2@")
    overrides = [f"{key}={value}" for key, value in clotho.items()]
    with pytest.raises(SystemExit) as caught:
        main(["download", "clotho", "--root", str(tmp_path), *overrides])
    assert not caught.value.code
    assert "train  4 of 4 clips, 3839 published" in capsys.readouterr().out
