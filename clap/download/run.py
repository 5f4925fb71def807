"""Downloads a corpus from its publisher; existing files are not modified."""

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
    """Download the missing files of a corpus into the folder `root/NAME`.

    After a kill, the same call resumes the download. A second process waits for the first.

    Args:
        settings: as composed from clap/download/NAME.yaml.
        open_corpus: builds the corpus from its folder and options, as `find_corpus` of clap.dataset does for a name.
        splits: splits to download.
        workers: number of parallel connections.
        again: whether to request clips again that are recorded as permanently unavailable.

    Raises:
        OSError: a file cannot be written. ValueError: an existing index is invalid.
    """
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise ValueError(f"split {unknown[0]!r} is not one of {', '.join(SPLITS)}")
    folder = find_target_folder(root, name, open_corpus)
    start = functools.partial(
        Download, name, folder, settings, open_corpus, splits=splits, workers=workers, again=again
    )
    if folder.is_dir() and (download := start()).is_complete():  # the folder may be read-only
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
    """Hold the lock of a folder, waiting for the process that holds it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("Another download is writing to %s; waiting for it to finish", path.parent)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def find_target_folder(root: str | Path, name: str, open_corpus: Callable[[Path, Mapping[str, Any]], Corpus]) -> Path:
    """The folder of a corpus: `root/NAME`, or `root` itself if it has this name or holds the index of the corpus."""
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; set --root to a folder, in which the corpus gets a subfolder")
    if (folder := find_folder(root, name)) is not None:
        return folder
    is_own = plain_name(root.resolve().name) == name
    return root if is_own or is_corpus_folder(root, open_corpus) else root / name


def is_corpus_folder(folder: Path, open_corpus: Callable[[Path, Mapping[str, Any]], Corpus]) -> bool:
    """Whether the index of at least one split can be read from a folder."""
    for split in SPLITS:
        with suppress(FileNotFoundError):
            open_corpus(folder, {}).clips(split)
            return True
    return False
