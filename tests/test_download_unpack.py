"""Unpacking of each kind of archive: intact, damaged and malicious."""

import gzip
import io
import shutil
import stat
import tarfile
import zipfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import py7zr
import pytest

from clap.download import unpack as unpack_module
from clap.download.unpack import ArchiveError, check_overlap, find_kind, join_parts

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


WRITERS = {"zip": write_zip, "gz": write_tar, "7z": write_7z}


def unpack(archive: Path, folder: Path, kind: str = "zip", *, max_size: float = 1e6) -> dict[str, Path]:
    return unpack_module.unpack(archive, folder, kind=kind, max_size=max_size)


@pytest.mark.parametrize("top", ["", "Corpus-master/"], ids=["flat", "nested"])
@pytest.mark.parametrize("kind", WRITERS)
def test_common_parent_folder_is_dropped(tmp_path: Path, kind: str, top: str):
    archive = tmp_path / "archive"
    WRITERS[kind](archive, {top + name: content for name, content in FILES.items()})
    found = unpack(archive, tmp_path / "out", kind)
    assert {name: path.read_bytes() for name, path in found.items()} == FILES


@pytest.mark.parametrize("kind", WRITERS)
def test_truncated_archive_is_refused(tmp_path: Path, kind: str):
    archive = tmp_path / "archive"
    WRITERS[kind](archive, FILES)
    archive.write_bytes(archive.read_bytes()[:-60])
    with pytest.raises(ArchiveError, match="archive is damaged or not a (zip|7z|tar gz) archive"):
        unpack(archive, tmp_path / "out", kind)


def test_tar_truncated_between_files_is_refused(tmp_path: Path):
    with tarfile.open(tmp_path / "archive", "w") as archive:
        for name in FILES:
            archive.addfile(tarfile.TarInfo(name))
    (tmp_path / "archive").write_bytes((tmp_path / "archive").read_bytes()[: 512 * len(FILES)])
    with pytest.raises(ArchiveError, match="archive is damaged .*end-of-archive blocks are missing"):
        unpack(tmp_path / "archive", tmp_path / "out", "")


def test_corrupt_bit_in_a_compressed_tar_is_detected(tmp_path: Path):
    with gzip.open(tmp_path / "archive", "wb", compresslevel=0) as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            member = tarfile.TarInfo("a.wav")
            member.size = 10
            archive.addfile(member, io.BytesIO(b"soundsound"))
    (tmp_path / "archive").write_bytes((tmp_path / "archive").read_bytes().replace(b"soundsound", b"soundsount"))
    with pytest.raises(ArchiveError, match="archive is damaged .*CRC"):
        unpack(tmp_path / "archive", tmp_path / "out", "gz")


def test_corrupt_byte_in_a_zip_is_detected(tmp_path: Path):
    archive = tmp_path / "archive"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.wav", b"sound" * 1000)
    archive.write_bytes(archive.read_bytes().replace(b"soundsound", b"soundsount", 1))
    with pytest.raises(ArchiveError, match="archive is damaged .*CRC"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("kind", WRITERS)
def test_web_page_instead_of_an_archive_is_refused(tmp_path: Path, kind: str):
    (tmp_path / "archive").write_text("<html>log in</html>" * 100)
    with pytest.raises(ArchiveError, match="archive is damaged or not a (zip|7z|tar gz) archive"):
        unpack(tmp_path / "archive", tmp_path / "out", kind)


def test_kind_of_an_archive_is_that_of_its_suffix_not_of_its_content(tmp_path: Path):
    assert [find_kind(f"https://host/a/{name}") for name in ("B.ZIP?download=1", "b.tar.gz", "b.7z")] == [
        "zip",
        "gz",
        "7z",
    ]
    with pytest.raises(ValueError, match="not the address of an archive; give one that ends with .zip"):
        find_kind("https://host/archive.zip/content")
    write_tar(tmp_path / "archive", FILES)
    with pytest.raises(ArchiveError, match="not a zip archive"):
        unpack(tmp_path / "archive", tmp_path / "out", "zip")


UNSAFE = ("../../evil.wav", "/evil.wav", "a/../../evil.wav", "C:/evil.wav", "..\\evil.wav", "evil\n.wav")


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, kind: str, name: str):
    WRITERS[kind](tmp_path / "archive", {"a.wav": b"y", name: b"x"})
    with pytest.raises(ArchiveError, match="archive is refused .the name .* relative paths inside the archive"):
        unpack(tmp_path / "archive", tmp_path / "deep" / "out", kind)
    assert not list(tmp_path.rglob("*evil*"))


def test_name_with_nul_is_refused(tmp_path: Path):
    write_zip(tmp_path / "archive", {"a.wavX.exe": b"x"})
    (tmp_path / "archive").write_bytes((tmp_path / "archive").read_bytes().replace(b"a.wavX", b"a.wav\0"))
    with pytest.raises(ArchiveError, match="the name 'a.wav.*is refused"):
        unpack(tmp_path / "archive", tmp_path / "out")


def write_special_tar(path: Path, *members: tuple[str, bytes, str]) -> None:
    """A tar of members without content: name, type, and target of a link."""
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            archive.addfile(member)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_link_or_device_in_a_tar_is_refused(tmp_path: Path, kind: bytes):
    write_special_tar(tmp_path / "archive", ("a.wav", kind, "/etc/hostname"))
    with pytest.raises(ArchiveError, match="'a.wav' is a link, a device"):
        unpack(tmp_path / "archive", tmp_path / "out", "gz")
    assert not list((tmp_path / "out").iterdir())


def test_link_in_a_zip_or_7z_is_refused(tmp_path: Path):
    link = zipfile.ZipInfo("a.wav")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "archive", "w") as file:
        file.writestr(link, "/etc/hostname")
    with pytest.raises(ArchiveError, match="'a.wav' is a link, a device"):
        unpack(tmp_path / "archive", tmp_path / "out", "zip")
    (tmp_path / "link.wav").symlink_to(tmp_path / "archive")
    with py7zr.SevenZipFile(tmp_path / "archive.7z", "w") as file:
        file.write(tmp_path / "link.wav", "a.wav")
    with pytest.raises(ArchiveError, match="'a.wav' is a link, a device"):
        unpack(tmp_path / "archive.7z", tmp_path / "out", "7z")


@pytest.mark.parametrize("kind", WRITERS)
def test_more_bytes_or_files_than_allowed_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    WRITERS[kind](tmp_path / "archive", dict.fromkeys("abc", bytes(40_000)))
    assert len(unpack(tmp_path / "archive", tmp_path / "out", kind, max_size=120_000)) == 3
    with pytest.raises(ArchiveError, match="more than 200000 files or 0.0001 GB unpacked; .* raise max_gigabytes"):
        unpack(tmp_path / "archive", tmp_path / "out", kind, max_size=1e5)
    monkeypatch.setattr(unpack_module, "MAX_FILES", 2)
    with pytest.raises(ArchiveError, match="more than 2 files"):
        unpack(tmp_path / "archive", tmp_path / "out", kind)


def test_bytes_behind_the_last_file_of_a_tar_are_limited(tmp_path: Path):
    write_tar(tmp_path / "archive", FILES)
    content = gzip.decompress((tmp_path / "archive").read_bytes())
    (tmp_path / "archive").write_bytes(gzip.compress(content + b"\0" * 2**21))
    with pytest.raises(ArchiveError, match="more than 0.001 GB behind its last file"):
        unpack(tmp_path / "archive", tmp_path / "out", "gz")


def test_long_header_of_a_tar_is_refused(tmp_path: Path):
    write_tar(tmp_path / "archive", {"a" * 2**21: b"x"})
    with pytest.raises(ArchiveError, match="a header of 20971.. bytes"):
        unpack(tmp_path / "archive", tmp_path / "out", "gz")


def test_file_larger_than_the_free_space_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_zip(tmp_path / "archive", FILES)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="a.wav needs 0.0 GB, 0.0 GB are free; free space"):
        unpack(tmp_path / "archive", tmp_path / "out")


def test_files_of_a_zip_that_share_bytes_are_refused(tmp_path: Path):
    write_zip(tmp_path / "archive", FILES)
    with zipfile.ZipFile(tmp_path / "archive") as file:
        first, second = file.infolist()
        check_overlap([first, second])
        second.header_offset = first.header_offset + 40
        with pytest.raises(ArchiveError, match="'deep/b.wav' overlaps another file"):
            check_overlap([first, second])


@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_name_that_occurs_twice_is_refused(tmp_path: Path, kind: str):
    with pytest.warns(UserWarning) if kind == "zip" else nullcontext():
        if kind == "zip":
            with zipfile.ZipFile(tmp_path / "archive", "w") as file:
                file.writestr("a.wav", b"x")
                file.writestr("a.wav", b"y")
        else:
            with tarfile.open(tmp_path / "archive", "w:gz") as file:
                file.addfile(tarfile.TarInfo("a.wav"))
                file.addfile(tarfile.TarInfo("a.wav/b.wav"))
    with pytest.raises(ArchiveError, match="archive is damaged .*a.wav"):
        unpack(tmp_path / "archive", tmp_path / "out", kind)


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
