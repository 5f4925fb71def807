"""The size limit of a cache: least recently used files are removed, also with several processes."""

import errno
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clap.dataset.cache import WaveformCache
from clap.dataset.eviction import STALE_SECONDS, TOUCH_SECONDS, SizeLimit, evict, find_newest_evicted

SIZE = 3208  # bytes of a cached recording of 1600 samples


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    """Ten recordings of 1600 samples at 16 kHz; all samples of number i are i / 20."""
    paths = [tmp_path / f"{number}.wav" for number in range(10)]
    for number, path in enumerate(paths):
        soundfile.write(path, np.full(1600, number / 20), 16000)
    return paths


def make_cache(tmp_path: Path, num_files: float | None) -> WaveformCache:
    """A cache whose limit is the size of a number of files."""
    return WaveformCache(tmp_path / "cache", None if num_files is None else num_files * SIZE / 1e9)


def list_samples(cache: WaveformCache) -> list[Path]:
    return sorted((cache.folder / "samples").glob("*/*"))


def is_cached(cache: WaveformCache, path: Path) -> bool:
    cache.load(path, 16000)
    return cache.take_hit()


def age_files(cache: WaveformCache, seconds: float) -> None:
    """Set the time of all files back."""
    for file in list_samples(cache):
        os.utime(file, (0, file.stat().st_mtime - seconds))


def test_least_recently_used_files_are_evicted(recordings: list[Path], tmp_path: Path):
    cache = make_cache(tmp_path, 4.5)
    for path in recordings[:4]:
        cache.load(path, 16000)
        age_files(cache, 2 * TOUCH_SECONDS)
    assert is_cached(cache, recordings[0])  # now the last used one of four
    cache.load(recordings[4], 16000)  # 4.05 files fit into nine tenths
    assert len(list_samples(cache)) == 4
    assert is_cached(cache, recordings[0]) and is_cached(cache, recordings[4]) and not is_cached(cache, recordings[1])


def test_folder_without_a_limit_only_counts(recordings: list[Path], tmp_path: Path):
    cache = make_cache(tmp_path, None)
    for path in recordings:
        cache.load(path, 16000)
    assert len(list_samples(cache)) == 10 and cache.limit.read_total() == 10 * SIZE


def test_folder_of_an_earlier_version_is_measured(recordings: list[Path], tmp_path: Path):
    for path in recordings:
        make_cache(tmp_path, None).load(path, 16000)
    (tmp_path / "cache" / "bytes").unlink()
    make_cache(tmp_path, None).load(recordings[0], 8000)
    assert not (tmp_path / "cache" / "bytes").exists()
    cache = make_cache(tmp_path, 20)
    cache.load(recordings[1], 8000)
    assert cache.limit.read_total() == sum(path.stat().st_size for path in list_samples(cache))


def test_recording_above_the_limit_evicts_nothing(recordings: list[Path], tmp_path: Path):
    cache = make_cache(tmp_path, 1.5)
    cache.load(recordings[0], 16000)
    cache.load(recordings[1], 32000)
    assert is_cached(cache, recordings[0])


def test_links_to_evicted_files_are_removed(recordings: list[Path], tmp_path: Path, monkeypatch):
    monkeypatch.setattr("clap.dataset.cache.MIN_AGE", -60.0)
    cache = make_cache(tmp_path, 3.5)
    for path in recordings:
        cache.load(path, 16000)
    links = list((cache.folder / "known").glob("*/*"))
    assert len(links) <= 4 and sum(link.exists() for link in links) == len(list_samples(cache))


def test_files_that_are_written_are_kept_and_those_of_killed_processes_are_not(recordings: list[Path], tmp_path: Path):
    cache = make_cache(tmp_path, None)
    cache.load(recordings[0], 16000)
    new, old = (list_samples(cache)[0].with_name(f"{name}.tmp") for name in ("new", "old"))
    for file in (new, old):
        file.write_bytes(b"part")
    os.utime(old, (0, time.time() - STALE_SECONDS - 1))
    os.utime(new, (0, time.time() - STALE_SECONDS + 60))
    assert evict(cache.folder, 0) == 4
    assert list_samples(cache) == [new]


def test_evicted_samples_remain_valid_where_they_are_mapped(recordings: list[Path], tmp_path: Path):
    cache = make_cache(tmp_path, None)
    cache.load(recordings[8], 16000)
    samples, scale = cache.load_samples(recordings[8], 16000)
    assert evict(cache.folder, 0) == 0 and not list_samples(cache)
    np.testing.assert_allclose(samples * scale, 0.4, atol=1e-4)
    assert not is_cached(cache, recordings[8])  # and decoded again


def test_failed_write_is_not_counted(recordings: list[Path], tmp_path: Path, monkeypatch):
    def fail(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device")

    cache = make_cache(tmp_path, 5)
    monkeypatch.setattr(Path, "write_bytes", fail)
    for path in recordings:
        cache.load(path, 16000)
    assert cache.limit.read_total() == 0


@pytest.mark.parametrize("num_files", [None, 5])
def test_only_a_limit_needs_locks(recordings: list[Path], tmp_path: Path, num_files: int | None, monkeypatch, caplog):
    def fail(self: SizeLimit) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(SizeLimit, "lock", fail)
    cache = make_cache(tmp_path, num_files)
    np.testing.assert_allclose(cache.load(recordings[8], 16000), 0.4, atol=1e-4)
    assert is_cached(cache, recordings[8]) == (num_files is None)
    assert ("is not writable (Function not implemented)" in caplog.text) == (num_files is not None)


def test_oldest_files_are_evicted_in_the_order_of_their_times():
    times, sizes = np.array([5, 1, 3, 2]), np.array([10, 10, 10, 10])
    assert [find_newest_evicted(times, sizes, excess) for excess in (0, 1, 10, 11, 40, 99)] == [-1, 1, 1, 2, 5, 5]


def load_repeatedly(folder: Path, recordings: list[Path], seed: int) -> None:
    """Load recordings at random with room for four, and check their samples."""
    cache = make_cache(folder, 4)
    for number in np.random.default_rng(seed).integers(10, size=60):
        np.testing.assert_allclose(cache.load(recordings[number], 16000), number / 20, atol=1e-4)


def test_processes_share_a_limit(recordings: list[Path], tmp_path: Path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=load_repeatedly, args=(tmp_path, recordings, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    files = list_samples(make_cache(tmp_path, 4))
    assert 1 <= len(files) <= 4 and all(file.stat().st_size == SIZE for file in files)
    assert SizeLimit(tmp_path / "cache", None).read_total() <= 4 * SIZE
