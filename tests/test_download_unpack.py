"""Unpacking of each kind of archive: intact, damaged and malicious."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import py7zr
import pytest

from clap.download.unpack import ArchiveError, join_parts, unpack

FILES = {"a.wav": b"first" * 100, "deep/b.wav": b"second" * 100}


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_7z(path: Path, files: dict[str, bytes]) -> None:
    with py7zr.SevenZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(content, name)


WRITERS = {"zip": write_zip, "tar": write_tar, "7z": write_7z}


@pytest.mark.parametrize("top", ["", "Corpus-master/"], ids=["flat", "nested"])
@pytest.mark.parametrize("kind", WRITERS)
def test_common_parent_folder_is_dropped(tmp_path: Path, kind: str, top: str):
    archive = tmp_path / "archive"
    WRITERS[kind](archive, {top + name: content for name, content in FILES.items()})
    found = unpack(archive, tmp_path / "out")
    assert {name: path.read_bytes() for name, path in found.items()} == FILES


@pytest.mark.parametrize("kind", WRITERS)
def test_truncated_archive_is_refused(tmp_path: Path, kind: str):
    archive = tmp_path / "archive"
    WRITERS[kind](archive, FILES)
    archive.write_bytes(archive.read_bytes()[:-60])
    with pytest.raises(ArchiveError, match="archive is (damaged|not a zip, tar or 7z archive)"):
        unpack(archive, tmp_path / "out")


def test_tar_truncated_between_files_is_refused(tmp_path: Path):
    with tarfile.open(tmp_path / "archive", "w") as archive:
        for name in FILES:
            archive.addfile(tarfile.TarInfo(name))
    (tmp_path / "archive").write_bytes((tmp_path / "archive").read_bytes()[: 512 * len(FILES)])
    with pytest.raises(ArchiveError, match="archive is damaged .end-of-archive blocks are missing"):
        unpack(tmp_path / "archive", tmp_path / "out")


def test_corrupt_bit_in_a_compressed_tar_is_detected(tmp_path: Path):
    with gzip.open(tmp_path / "archive", "wb", compresslevel=0) as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            member = tarfile.TarInfo("a.wav")
            member.size = 10
            archive.addfile(member, io.BytesIO(b"soundsound"))
    (tmp_path / "archive").write_bytes((tmp_path / "archive").read_bytes().replace(b"soundsound", b"soundsount"))
    with pytest.raises(ArchiveError, match="archive is damaged .CRC"):
        unpack(tmp_path / "archive", tmp_path / "out")


def test_corrupt_byte_in_a_zip_is_detected(tmp_path: Path):
    archive = tmp_path / "archive"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.wav", b"sound" * 1000)
    archive.write_bytes(archive.read_bytes().replace(b"soundsound", b"soundsount", 1))
    with pytest.raises(ArchiveError, match="archive is damaged .*CRC"):
        unpack(archive, tmp_path / "out")


def test_web_page_instead_of_an_archive_is_refused(tmp_path: Path):
    (tmp_path / "archive").write_text("<html>log in</html>")
    with pytest.raises(ArchiveError, match="archive is not a zip, tar or 7z archive"):
        unpack(tmp_path / "archive", tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_path_traversal_stays_inside_the_folder(tmp_path: Path, kind: str):
    WRITERS[kind](tmp_path / "archive", {"../../evil.wav": b"x", "a.wav": b"y"})
    try:
        unpack(tmp_path / "archive", tmp_path / "deep" / "out")
    except ArchiveError:
        pass
    assert not list(tmp_path.glob("evil.wav")) and not list(tmp_path.parent.glob("evil.wav"))


def test_metadata_of_file_managers_is_skipped(tmp_path: Path):
    write_zip(
        tmp_path / "archive", {"C/a.wav": b"x", "C/._a.wav": b"?", "__MACOSX/C/._a.wav": b"?", "C/.DS_Store": b"?"}
    )
    assert list(unpack(tmp_path / "archive", tmp_path / "out")) == ["a.wav"]


def test_parts_are_kept_if_the_disk_is_full_when_joining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "bin" / "zip"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho zip error: Output file write failure; exit 14\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    with pytest.raises(OSError, match="Output file write failure"):
        join_parts(tmp_path / "a.zip", tmp_path / "joined")
