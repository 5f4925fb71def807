"""Archives into a corpus's folder, file by file, each whole or not there."""

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
DAMAGED_EXIT_CODES = (2, 3)  # exit statuses of zip that are the archive's fault


class ArchiveError(ValueError):
    """A file that is no archive, or a damaged one."""


def unpack(archive: Path, folder: Path) -> dict[str, Path]:
    """Unpack a zip, tar or 7z archive, and say where its files lie, by their paths in it.

    The folder inside the archive that holds all its files is left out, so that it does not matter what it is called.

    Args:
        folder: its content is lost.

    Raises:
        ArchiveError: no archive, or a damaged one. OSError: it cannot be written.
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
    """Unpack into a folder; names that lead out of it are refused or mended by the libraries."""
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
            raise ArchiveError(f"{archive.name} is no zip, tar or 7z archive")
    except (*ARCHIVE_ERRORS, py7zr.exceptions.ArchiveError) as error:
        raise ArchiveError(f"{archive.name} is damaged ({error or type(error).__name__})") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # an offset before the file's beginning
            raise ArchiveError(f"{archive.name} is damaged ({error})") from None
        raise


def check_tar_end(file: tarfile.TarFile) -> None:
    """Refuse a tar archive that ends early; reading to the end also has gzip compare its checksum."""
    size = 0
    while chunk := file.fileobj.read(2**20):
        size += len(chunk)
    if not size:  # tarfile stops at the first of the two blocks that end an archive, and at the end of the file
        raise tarfile.ReadError("it ends before its end")


def require_zip_program(archive: str) -> None:
    """Refuse before the download of an archive in parts what could not be joined after it.

    Raises:
        FileNotFoundError: there is no program zip.
    """
    if shutil.which("zip") is None:
        raise FileNotFoundError(
            f"{archive} comes in parts, which the program zip joins; install it (apt-get install zip)"
        )


def join_parts(archive: Path, folder: Path) -> Path:
    """One zip of a split one, whose last part is named and beside which the others lie.

    Args:
        folder: for the new one; its content is lost.

    Raises:
        ArchiveError: a part is damaged. OSError: it cannot be written; the parts are as they were.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    joined = folder / archive.name
    command = ["zip", "-q", "-s", "0", str(archive), "--out", str(joined)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        shutil.rmtree(folder)
        reason = f"{archive.name} and its parts cannot be joined ({' '.join((done.stdout + done.stderr).split())})"
        raise ArchiveError(reason) if done.returncode in DAMAGED_EXIT_CODES else OSError(reason)
    return joined


def is_system_file(path: Path) -> bool:
    """What file managers leave in archives."""
    return path.name.startswith("._") or path.name == ".DS_Store" or "__MACOSX" in path.parts


def find_common_folder(files: Sequence[Path]) -> Path:
    """The deepest folder that holds all files."""
    return Path(os.path.commonpath([path.parent for path in files]))
