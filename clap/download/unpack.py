"""Unpacks zip, tar and 7z archives and joins split zips."""

import errno
import gzip
import lzma
import os
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import py7zr

ARCHIVE_ERRORS = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError, RuntimeError),
)
DAMAGED_EXIT_CODES = (2, 3)  # of zip, when the archive is damaged


class ArchiveError(ValueError):
    """A file that is not an archive, or a damaged archive."""


def unpack(archive: Path, folder: Path) -> dict[str, Path]:
    """Unpack a zip, tar or 7z archive; returns {path in the archive: path on disk}.

    A common parent folder of all files is dropped from the paths, so that its name does not matter.

    Args:
        folder: target; existing content is deleted.

    Raises:
        ArchiveError: not an archive, or a damaged one. OSError: a file cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    extract(archive, folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    files = [path for path in files if not is_system_file(path.relative_to(folder))]
    if not files:
        raise ArchiveError(f"{archive.name} holds no files")
    top = find_common_folder(files)
    return {path.relative_to(top).as_posix(): path for path in files}


def extract(archive: Path, folder: Path) -> None:
    """Unpack into a folder; the libraries refuse or sanitize paths that lead out of it."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
                check_tar_end(file)
        elif py7zr.is_7zfile(archive):
            with py7zr.SevenZipFile(archive) as file:
                file.extractall(folder)
        else:
            raise ArchiveError(f"{archive.name} is not a zip, tar or 7z archive")
    except (*ARCHIVE_ERRORS, py7zr.exceptions.ArchiveError) as error:
        raise ArchiveError(f"{archive.name} is damaged ({error or type(error).__name__})") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a negative offset in the archive
            raise ArchiveError(f"{archive.name} is damaged ({error})") from None
        raise


def check_tar_end(file: tarfile.TarFile) -> None:
    """Refuse a truncated tar archive; reading to the end also makes gzip verify its checksum."""
    size = 0
    while chunk := file.fileobj.read(2**20):
        size += len(chunk)
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
