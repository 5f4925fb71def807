"""Recordings in a folder and its subfolders, in order of names. Imports no torch."""

import os
from collections.abc import Iterator

from clap.audio_formats import AUDIO_SUFFIXES, CONVERTIBLE_SUFFIXES


def list_folder(name: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Recordings in a folder, then in its subfolders; see `walk_folders`."""
    for folder in walk_folders(name, above):
        yield from (entry.path for entry in list_entries(folder) if not is_folder(entry) and is_recording(entry))


def walk_folders(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """A folder, then its subfolders in order of names; links are followed, except in a loop.

    Args:
        above: real paths of folders above; a link to one of them is not followed.
    """
    real = os.path.realpath(folder)
    if real not in above:
        yield folder
        for entry in list_entries(folder):
            if is_folder(entry):
                yield from walk_folders(entry.path, (*above, real))


def list_entries(folder: str) -> list[os.DirEntry]:
    """What a folder contains, in order of names."""
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def is_recording(entry: os.DirEntry) -> bool:
    """Whether a file has the suffix of a recording, or is a broken link without suffix; not if hidden."""
    if entry.name.startswith("."):
        return False
    suffix = os.path.splitext(entry.name)[1].lower()
    is_broken = entry.is_symlink() and not os.path.exists(entry.path)
    return suffix in (*AUDIO_SUFFIXES, *CONVERTIBLE_SUFFIXES) or (is_broken and not suffix)
