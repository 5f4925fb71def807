"""A corpus from its publisher; what is there already is left as it is."""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clap.corpus import SPLITS, Corpus, find_folder, plain_name
from clap.download.download import SCRATCH, Download
from clap.download.remote import Result

log = logging.getLogger(__name__)


def download_corpus(
    name: str,
    root: str | Path,
    settings: Mapping[str, Any],
    open_corpus: Callable[[Path, Mapping[str, Any]], Corpus],
    *,
    splits: Sequence[str] = SPLITS,
    workers: int = 4,
    again: bool = False,
) -> Result:
    """Fetch what is missing of a corpus into the folder of its name in `root`.

    A kill at any moment loses nothing that was whole: the same call goes on. A second process waits for the first.

    Args:
        settings: as composed from clap/download/NAME.yaml.
        open_corpus: makes the corpus from its folder and options, as `find_corpus` of clap.dataset does for a name.
        splits: those that are wanted.
        workers: connections at a time.
        again: ask again for clips that are gone.

    Raises:
        OSError: a file cannot be written. ValueError: an index that was there already is wrong.
    """
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise ValueError(f"split {unknown[0]!r} is not one of {', '.join(SPLITS)}")
    folder = find_target_folder(root, name, open_corpus)
    start = functools.partial(
        Download, name, folder, settings, open_corpus, splits=splits, workers=workers, again=again
    )
    if folder.is_dir() and (download := start()).is_complete():  # which may be one that cannot be written to
        return download.summarize()
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder / f"{SCRATCH}.lock"):
        download = start()
        try:
            download.fetch_files()
            if download.videos is not None:
                download.fetch_videos()
            result = download.summarize()
        finally:
            download.manifest.compact()
        download.remove_scratch()
    return result


@contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Work alone in a folder, after those who came first."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("another download works in %s; waiting for it", path.parent)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def find_target_folder(root: str | Path, name: str, open_corpus: Callable[[Path, Mapping[str, Any]], Corpus]) -> Path:
    """The folder of a corpus: one of its name in `root`, or `root` itself if that bears its name or holds its lists."""
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; give a folder, which gets one for the corpus")
    if (folder := find_folder(root, name)) is not None:
        return folder
    is_own = plain_name(root.resolve().name) == name
    return root if is_own or is_corpus_folder(root, open_corpus) else root / name


def is_corpus_folder(folder: Path, open_corpus: Callable[[Path, Mapping[str, Any]], Corpus]) -> bool:
    """Can a corpus be read from a folder, in part at least?"""
    for split in SPLITS:
        with suppress(FileNotFoundError):
            open_corpus(folder, {}).clips(split)
            return True
    return False
