"""Index a folder of recordings: embeddings and file facts, added to, changed and removed as the files are."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout

from clap.audio_folder import list_folder
from clap.model import Clap
from clap.progress import progress_bar
from clap.sound_index.journal import FileResult, Journal
from clap.sound_index.record import RECORD, REPLACE, IndexRecord, check_folder, check_weights, locate_checkpoint
from clap.sound_index.vectors import TABLE, gather_rows, open_table, read_errors, write_errors, write_table
from clap.sound_index.weights import digest_weights
from clap.sound_index.windows import WindowPolicy, embed_recording
from clap.waveform import AudioError, open_recording

BATCH_FILES = 128  # files, or windows of long ones, that a kill loses at most, besides a single longer file
LOCK_SECONDS = 1.0
Version = tuple[int, int]  # size in bytes and modification time in ns of a file


@dataclass(frozen=True)
class IndexSummary:
    """What a run of `build_index` has done: numbers of files, of which `failed` cannot be read; rows of the index."""

    added: int
    changed: int
    deleted: int
    unchanged: int
    failed: int
    windows: int


def build_index(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    clap: Clap,
    *,
    checkpoint: str,
    window: float | None = None,
    hop: float | None = None,
    batch_size: int = 16,
    rebuild: bool = False,
    retry: bool = False,
) -> IndexSummary:
    """Write the index of a folder, or bring it up to date: only files that are new or have changed are read.

    After a kill at any instant, the next call resumes after the last complete batch and ends with the same index.

    Args:
        folder: recordings, also in subfolders.
        output: folder of the index.
        checkpoint: where `clap` comes from; `search` loads it from there.
        window, hop: seconds, see `WindowPolicy.choose`; None for those of an index that exists.
        rebuild: discard an index of another model, folder or other windows instead of refusing it.
        retry: read files again that could not be read, even if they are unchanged.

    Raises:
        ValueError: the index is of another model, folder or other windows. BlockingIOError: another process writes it.
    """
    folder, output = Path(folder).absolute(), Path(output)
    output.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(output / ".lock").acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise BlockingIOError(f"{output} is in use by another process; wait for it, or give another --output") from None
    with lock:
        if rebuild:
            discard(output)
        old = IndexRecord.read(output) if (output / RECORD).exists() else None
        if old is not None:
            window, hop = window or old.window, hop or old.hop
        policy = WindowPolicy.choose(clap, window=window, hop=hop)
        record = IndexRecord(
            folder=str(folder),
            checkpoint=locate_checkpoint(checkpoint),
            weights=digest_weights(clap),
            embed_dim=clap.embed_dim,
            sample_rate=clap.sample_rate,
            window=policy.window,
            hop=policy.hop,
        )
        if old is not None:
            check_record(old, record, output)
        record.write(output)
        return update(folder, output, clap, policy, record=record, batch_size=batch_size, retry=retry)


def discard(output: Path) -> None:
    """Delete the files of an index."""
    for pattern in (RECORD, TABLE, "vectors*", "errors.jsonl", "unfinished.*"):
        for path in output.glob(pattern):
            path.unlink()


def check_record(old: IndexRecord, new: IndexRecord, output: Path) -> None:
    """Refuse to mix embeddings of two models, or windows of two policies, in one index.

    Raises:
        ValueError: they differ; or the folder is another one, while the old one still exists.
    """
    check_weights(old, new.weights, new.checkpoint, advice=f"{output} keeps one model; {REPLACE}")
    if (old.window, old.hop) != (new.window, new.hop):
        raise ValueError(
            f"{output} has {old.describe_windows()}, and {new.describe_windows()} is asked for; "
            f"set --window {old.window:g} --hop {old.hop:g}, or {REPLACE}"
        )
    check_folder(old, Path(new.folder), output)


def update(
    folder: Path, output: Path, clap: Clap, policy: WindowPolicy, *, record: IndexRecord, batch_size: int, retry: bool
) -> IndexSummary:
    """Read new and changed files into the journal, then merge it with the table."""
    present = scan_folder(folder)
    facts, vectors = open_table(output, clap.embed_dim)
    errors = [] if retry else [FileResult(**error) for error in read_errors(output)]
    columns = (facts[name].to_pylist() for name in ("path", "size", "mtime_ns"))
    indexed = {path: version for path, *version in zip(*columns, strict=True)}
    indexed = {path: tuple(version) for path, version in indexed.items()}
    known = indexed | {error.path: error.version for error in errors}
    journal = Journal(output, clap.embed_dim)
    done = known | {file.path: file.version for file in journal.files}
    todo = [path for path, version in present.items() if done.get(path) != version]
    total = sum(present[path][0] for path in todo)
    with progress_bar(total=total, unit="B", unit_scale=True, desc="index") as bar:
        for files, embeddings in embed_files(clap, folder, todo, present, policy, batch_size=batch_size):
            journal.append(files, embeddings)
            bar.update(sum(file.size for file in files))
    latest = {file.path: file for file in journal.files if present.get(file.path) == file.version}
    kept_errors = [error for error in errors if error.path not in latest and present.get(error.path) == error.version]
    failed = sorted([*kept_errors, *(file for file in latest.values() if file.error)], key=lambda file: file.path)
    deleted = known.keys() - present.keys()
    if latest or deleted or not (output / TABLE).exists():
        merge(output, facts, vectors, journal, latest, present, record)
        write_errors(output, [error_entry(file) for file in failed])
    journal.delete()
    readable = {path for path, file in latest.items() if not file.error}
    return IndexSummary(
        added=len(readable - known.keys()),
        changed=len(readable & known.keys()),
        deleted=len(deleted),
        unchanged=len(present) - len(readable) - len(failed),
        failed=len(failed),
        windows=len(open_table(output, clap.embed_dim)[0]),
    )


def scan_folder(folder: Path) -> dict[str, Version]:
    """Size and modification time of each recording, by path relative to the folder, in order of paths."""
    prefix, found = os.path.join(folder, ""), {}
    for path in list_folder(str(folder)):
        try:
            status = os.stat(path)
            version = status.st_size, status.st_mtime_ns
        except OSError:
            version = 0, 0  # a broken link, which reading reports
        found[Path(path.removeprefix(prefix)).as_posix()] = version
    return dict(sorted(found.items()))


def embed_files(
    clap: Clap,
    folder: Path,
    paths: Sequence[str],
    versions: dict[str, Version],
    policy: WindowPolicy,
    *,
    batch_size: int,
) -> Iterator[tuple[list[FileResult], np.ndarray]]:
    """Batches of files, with the embeddings of their windows (n, embed_dim).

    A long file is a batch of its own. Where a batch ends depends on the files alone, so that a resumed run has the
    batches of an undisturbed one, and their embeddings to the last bit.
    """
    short: list[FileResult] = []
    for path in paths:
        file = read_facts(folder, path, versions[path])
        if file.error or not policy.divides(file.duration):
            short.append(file)
        else:
            yield embed_long(clap, folder, file, policy, batch_size=batch_size)
        if len(short) == BATCH_FILES:
            yield embed_short(clap, folder, short, batch_size=batch_size)
            short = []
    if short:
        yield embed_short(clap, folder, short, batch_size=batch_size)


def read_facts(folder: Path, path: str, version: Version) -> FileResult:
    """Duration, sample rate and channels of a file, or its error."""
    file = FileResult(path, *version)
    try:
        path.encode()
        with open_recording(folder / path) as (sound, num_frames):
            duration = num_frames / sound.samplerate
            return dataclasses.replace(file, duration=duration, sample_rate=sound.samplerate, channels=sound.channels)
    except UnicodeEncodeError:
        return dataclasses.replace(file, error=f"{path!r}: the name is not UTF-8; rename the file")
    except AudioError as error:
        return dataclasses.replace(file, error=str(error))


def embed_short(
    clap: Clap, folder: Path, files: Sequence[FileResult], *, batch_size: int
) -> tuple[list[FileResult], np.ndarray]:
    """One embedding for each file that can be read."""
    results, rows = list(files), {}
    readable = [place for place, file in enumerate(files) if not file.error]
    clips = [folder / files[place].path for place in readable]
    for position, row in clap.embed_each(clips, batch_size=batch_size):
        place = readable[position]
        if isinstance(row, AudioError):
            results[place] = dataclasses.replace(files[place], error=str(row))
        else:
            results[place] = dataclasses.replace(files[place], windows=[(0.0, files[place].duration)])
            rows[place] = row.cpu().numpy()
    return results, np.array([rows[place] for place in sorted(rows)], np.float32).reshape(-1, clap.embed_dim)


def embed_long(
    clap: Clap, folder: Path, file: FileResult, policy: WindowPolicy, *, batch_size: int
) -> tuple[list[FileResult], np.ndarray]:
    """An embedding for each window of a long file; none if a part of it cannot be read."""
    windows, rows = [], [np.empty((0, clap.embed_dim), np.float32)]
    try:
        for times, embeddings in embed_recording(clap, folder / file.path, policy, batch_size=batch_size):
            windows += [tuple(time) for time in times.tolist()]
            rows.append(embeddings.numpy())
    except AudioError as error:
        return [dataclasses.replace(file, error=str(error))], rows[0]
    return [dataclasses.replace(file, windows=windows)], np.concatenate(rows)


def merge(
    output: Path,
    facts: pa.Table,
    vectors: np.ndarray,
    journal: Journal,
    latest: dict[str, FileResult],
    present: dict[str, Version],
    record: IndexRecord,
) -> None:
    """Replace the table: rows of files that are unchanged, and of the journal's files that are `latest`."""
    is_kept = [path in present and path not in latest for path in facts["path"].to_pylist()]
    for file in journal.files:
        is_kept += [latest.get(file.path) is file] * len(file.windows)
    rows = np.flatnonzero(is_kept)
    merged = pa.concat_tables([facts, journal.make_facts()]).take(pa.array(rows))
    order = pc.sort_indices(merged, [("path", "ascending"), ("start", "ascending")]).to_numpy()
    blocks = gather_rows(vectors, journal.map_rows(), rows[order])
    text = json.dumps(dataclasses.asdict(record))
    write_table(output, merged.take(pa.array(order)), blocks, embed_dim=record.embed_dim, record=text)


def error_entry(file: FileResult) -> dict[str, str | int | None]:
    return {"path": file.path, "size": file.size, "mtime_ns": file.mtime_ns, "error": file.error}
