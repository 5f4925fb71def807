"""Unpacks zip, tar and 7z archives and joins split zips.

An archive may come from a mirror: its address gives its kind, not its content; only regular files are written, each as
a new file inside the target folder; links and devices are refused; number and total size of the files are limited.
"""

import errno
import os
import re
import shutil
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import py7zr

from clap.config.secrets import hide_secrets

KINDS = {".zip": "zip", ".7z": "7z", ".tar": "", ".tar.gz": "gz", ".tgz": "gz", ".tar.bz2": "bz2", ".tar.xz": "xz"}
# Errors of the system that an archive causes: a negative offset, and names that are too long or occur twice.
ARCHIVE_ERRNOS = (errno.EINVAL, errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
DAMAGED_EXIT_CODES = (2, 3)  # of zip, when the archive is damaged
MAX_FILES = 200_000  # FSD50K has 41,000 files in an archive
MAX_TAR_HEADER = 2**20  # bytes of a long name or of pax attributes, which tarfile reads at once
ZIP_LOCAL_HEADER = 30  # bytes before the name of a file and its content
UNSAFE_NAME = re.compile(r"[\x00-\x1f\\]|^/|^[A-Za-z]:|(^|/)\.\.(/|$)")


class ArchiveError(ValueError):
    """A file that is not an archive, a damaged archive, or one that is refused."""


def find_kind(address: str) -> str:
    """Kind of an archive by the suffix of its address: zip, 7z, or the compression of a tar.

    Raises:
        ValueError: the suffix is not that of an archive.
    """
    path = urlsplit(address).path.lower()
    for suffix, kind in KINDS.items():
        if path.endswith(suffix):
            return kind
    raise ValueError(
        f"{hide_secrets(address)} is not the address of an archive; give one that ends with {', '.join(KINDS)}"
    )


def unpack(archive: Path, folder: Path, *, kind: str, max_size: float) -> dict[str, Path]:
    """Unpack a zip, tar or 7z archive; returns {path in the archive: path on disk}.

    A common parent folder of all files is dropped from the paths, so that its name does not matter.

    Args:
        folder: target; existing content is deleted.
        kind: as returned by `find_kind`.
        max_size: bytes of all files together.

    Raises:
        ArchiveError: not an archive of this kind, damaged, too large, or with unsafe names, links or devices.
        OSError: a file cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    extract = {"zip": extract_zip, "7z": extract_7z}.get(kind, extract_tar)
    try:
        extract(archive, Target(folder, max_size=max_size), kind)
    except Exception as error:  # zipfile, tarfile and py7zr raise many types for damaged archives
        if isinstance(error, OSError) and error.errno not in (None, *ARCHIVE_ERRNOS):
            raise
        name = kind if kind in ("zip", "7z") else f"tar {kind}".strip()
        what = "is refused" if isinstance(error, ArchiveError) else f"is damaged or not a {name} archive"
        raise ArchiveError(f"{archive.name} {what} ({str(error) or type(error).__name__})") from None
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if not is_system_file(path.relative_to(folder))]
    if not files:
        raise ArchiveError(f"{archive.name} holds no files")
    top = find_common_folder(files)
    return {path.relative_to(top).as_posix(): path for path in files}


class Target(py7zr.io.WriterFactory):
    """An empty folder in which the files of an archive are created, up to a number and a total size.

    Args:
        max_size: bytes of all files together.
    """

    def __init__(self, folder: Path, *, max_size: float) -> None:
        self.folder, self.max_size = folder.resolve(), max_size
        self.num_files, self.size = 0, 0

    def add(self, name: str, size: int, *, regular: bool) -> None:
        """Count a member before it is written.

        Raises:
            ArchiveError: it is not a regular file, its name leads out of the folder, or the archive is too large.
            OSError: the disk has too little space.
        """
        if not regular:
            raise ArchiveError(f"{name!r} is a link, a device or compressed in an unknown way; only files are unpacked")
        self.check_name(name)
        self.num_files, self.size = self.num_files + 1, self.size + max(size, 0)
        if self.num_files > MAX_FILES or self.size > self.max_size:
            raise ArchiveError(
                f"more than {MAX_FILES} files or {self.max_size / 1e9:g} GB unpacked; if it is the published archive, "
                "raise max_gigabytes"
            )
        if size > (free := shutil.disk_usage(self.folder).free):
            raise OSError(
                errno.ENOSPC, f"{name} needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; free space, run again"
            )

    def check_name(self, name: str) -> None:
        """Check that a name gives a path inside the folder, on any system."""
        if UNSAFE_NAME.search(name) or not (self.folder / name).resolve().is_relative_to(self.folder):
            raise ArchiveError(f"the name {name[:200]!r} is refused; allowed: relative paths inside the archive")

    def open(self, name: str) -> BinaryIO:
        """Create a file for writing; a second file of the same name is an error, also where case is ignored."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")

    def create(self, filename: str) -> py7zr.io.Py7zIO:
        """Called by py7zr for each file."""
        return FileOf7z(self.open(filename))


class FileOf7z(py7zr.io.Py7zIO):
    """A new file with the interface that py7zr requires."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, s: bytes | bytearray) -> int:
        return self.file.write(s)

    def read(self, size: int | None = None) -> bytes:
        return b""  # it is only written

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def flush(self) -> None:
        self.file.flush()

    def size(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        self.file.close()


class BoundedTarInfo(tarfile.TarInfo):
    """A member of a tar archive; tarfile would read a header of any size into memory."""

    HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *(tarfile.XHDTYPE, tarfile.XGLTYPE), b"X")

    def _proc_member(self, file: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in self.HEADERS and self.size > MAX_TAR_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(file)


def extract_zip(archive: Path, target: Target, kind: str) -> None:
    """Write the files of a zip; bzip2 and LZMA in a zip are refused, because zipfile decompresses them at once."""
    with zipfile.ZipFile(archive) as file:
        check_overlap(file.infolist())
        for member in file.infolist():
            allowed = (stat.S_IFDIR,) if member.is_dir() else (stat.S_IFREG,)
            has_type = stat.S_IFMT(member.external_attr >> 16) in (0, *allowed)
            is_plain = has_type and member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            target.add(member.orig_filename, member.file_size, regular=is_plain)
            if not member.is_dir():
                with file.open(member) as source, target.open(member.filename) as written:
                    shutil.copyfileobj(source, written, 2**20)


def check_overlap(members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse files that share bytes, with which a small zip is unpacked to a huge one (Fifield 2019)."""
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < end:
            raise ArchiveError(f"{member.filename[:200]!r} overlaps another file")
        end = member.header_offset + ZIP_LOCAL_HEADER + member.compress_size


def extract_tar(archive: Path, target: Target, kind: str) -> None:
    with tarfile.open(archive, f"r:{kind}", tarinfo=BoundedTarInfo) as file:
        for member in file:
            target.add(member.name, member.size, regular=member.isreg() or member.isdir())
            if member.isreg():
                with target.open(member.name) as written:
                    shutil.copyfileobj(file.extractfile(member), written, 2**20)
        check_tar_end(file, target.max_size)


def extract_7z(archive: Path, target: Target, kind: str) -> None:
    with py7zr.SevenZipFile(archive, max_extract_size=int(target.max_size)) as file:
        for member in file.list():
            is_plain = member.is_directory or (member.is_file and not member.is_symlink)
            target.add(member.filename, member.uncompressed or 0, regular=is_plain)
        file.extractall(factory=target)


def check_tar_end(file: tarfile.TarFile, max_size: float) -> None:
    """Refuse a truncated tar archive; reading to the end also makes gzip verify its checksum."""
    size = 0
    while chunk := file.fileobj.read(2**20):
        size += len(chunk)
        if size > max_size:
            raise tarfile.ReadError(f"more than {max_size / 1e9:g} GB behind its last file")
    if not size:  # tarfile stops at the first of the two end blocks, or silently at the end of the file
        raise tarfile.ReadError("end-of-archive blocks are missing")


def require_zip_program(archive: str) -> None:
    """Check that parts of an archive can be joined, before they are downloaded.

    Raises:
        FileNotFoundError: the program zip is not installed.
    """
    if shutil.which("zip") is None:
        raise FileNotFoundError(
            f"{archive} is a split zip, and the program zip that joins it is not installed; apt-get install zip"
        )


def join_parts(archive: Path, folder: Path) -> Path:
    """Join the parts of a split zip into one zip.

    Args:
        archive: last part; the others are next to it.
        folder: target; existing content is deleted.

    Raises:
        ArchiveError: a part is damaged. OSError: the zip cannot be written; the parts are unchanged.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    joined = folder / archive.name
    command = ["zip", "-q", "-s", "0", str(archive), "--out", str(joined)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        shutil.rmtree(folder)
        reason = f"the parts of {archive.name} cannot be joined ({' '.join((done.stdout + done.stderr).split())})"
        raise ArchiveError(reason) if done.returncode in DAMAGED_EXIT_CODES else OSError(reason)
    return joined


def is_system_file(path: Path) -> bool:
    """Whether a file is metadata that file managers add to archives."""
    return path.name.startswith("._") or path.name == ".DS_Store" or "__MACOSX" in path.parts


def find_common_folder(files: Sequence[Path]) -> Path:
    """The deepest folder that contains all files."""
    return Path(os.path.commonpath([path.parent for path in files]))
