"""Features on disk: several writers, a file that grows, damage, and folders that cannot be written."""

from pathlib import Path

import numpy as np
import pytest

from clap.dataset import feature_store
from clap.dataset.feature_store import FeatureStore, Rows, make_key

WIDTH = 8


def make_rows(count: int, *, seed: int = 0) -> tuple[np.ndarray, Rows]:
    features = np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)
    keys = np.stack([make_key(seed, number) for number in range(count)])
    return keys, Rows(features, np.arange(count), np.arange(count) % 2 == 0)


def assert_found(store: FeatureStore, keys: np.ndarray, rows: Rows) -> None:
    found = store.find(keys)
    for name, expected in vars(rows).items():
        np.testing.assert_array_equal(getattr(found, name), expected)


def test_rows_are_found_before_and_after_they_are_written(tmp_path: Path):
    store, (keys, rows) = FeatureStore(tmp_path / "new", WIDTH), make_rows(5)
    store.add(keys, rows)
    assert_found(store, keys, rows)
    assert np.isnan(FeatureStore(store.folder, WIDTH).find(keys).features).all()
    store.flush()
    assert_found(FeatureStore(store.folder, WIDTH), keys, rows)
    assert len(store) == 5 and np.isnan(store.find(make_key("other")[None]).features).all()


def test_open_store_finds_what_others_write_later(tmp_path: Path):
    reader, writers = FeatureStore(tmp_path, WIDTH), [FeatureStore(tmp_path, WIDTH) for _ in range(2)]
    for seed, writer in enumerate(writers):
        keys, rows = make_rows(3, seed=seed)
        assert np.isnan(reader.find(keys).features).all()
        writer.add(keys, rows)
        writer.flush()
        assert_found(reader, keys, rows)
    assert len(reader) == 6


def test_file_grows_to_its_limit_and_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feature_store, "ROWS", 4)
    store, (keys, rows) = FeatureStore(tmp_path, WIDTH), make_rows(10)
    for row in range(10):
        store.add(keys[[row]], Rows(*(values[[row]] for values in vars(rows).values())))
        store.flush()
    assert len(list(tmp_path.iterdir())) == 3
    assert_found(store, keys, rows)
    assert_found(FeatureStore(tmp_path, WIDTH), keys, rows)


def test_key_is_stored_once_by_a_process(tmp_path: Path):
    store, (keys, rows) = FeatureStore(tmp_path, WIDTH), make_rows(3)
    store.add(keys, rows)
    store.add(keys, rows)
    assert len(store) == 3


def test_row_that_is_not_finite_is_not_stored(tmp_path: Path):
    store, (keys, rows) = FeatureStore(tmp_path, WIDTH), make_rows(2)
    rows.features[1, 3] = np.inf
    store.add(keys, rows)
    assert np.isnan(store.find(keys).features[:, 0]).tolist() == [False, True]


@pytest.mark.parametrize("place", [0, 100, -40])
def test_damaged_row_is_not_known(tmp_path: Path, place: int):
    store, (keys, rows) = FeatureStore(tmp_path, WIDTH), make_rows(8)
    store.add(keys, rows)
    store.flush()
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)
    found = FeatureStore(tmp_path, WIDTH).find(keys)
    is_known = ~np.isnan(found.features[:, 0])
    assert not is_known.all()
    np.testing.assert_array_equal(found.features[is_known], rows.features[is_known])


def test_truncated_file_is_not_used(tmp_path: Path):
    store, (keys, rows) = FeatureStore(tmp_path, WIDTH), make_rows(8)
    store.add(keys, rows)
    store.flush()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert np.isnan(FeatureStore(tmp_path, WIDTH).find(keys).features).all()


def test_store_without_a_writable_folder_keeps_rows_in_memory(tmp_path: Path):
    (tmp_path / "file").touch()
    store, (keys, rows) = FeatureStore(tmp_path / "file" / "folder", WIDTH), make_rows(4)
    store.add(keys, rows)
    store.flush()
    assert_found(store, keys, rows)
