"""Search in an index, by vectors that are known."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clap.sound_index import sound_index
from clap.sound_index.record import IndexRecord
from clap.sound_index.sound_index import Match, SoundIndex
from clap.sound_index.vectors import COLUMNS, open_table, write_table

RECORD = IndexRecord("/sounds", "run", "0" * 64, embed_dim=4, sample_rate=16_000, window=2.0, hop=1.0)


def write_index(folder: Path, files: list[int], vectors: np.ndarray) -> Path:
    """An index of files with the given numbers of windows."""
    folder.mkdir()
    RECORD.write(folder)
    names = [f"{number:04}.wav" for number in range(len(files))]
    rows = [
        (name, i, i + 2.0, count + 1.0, 16_000, 1, 9, 9)
        for name, count in zip(names, files, strict=True)
        for i in range(count)
    ]
    columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
    facts = pa.table([pa.array(values, field.type) for values, field in zip(columns, COLUMNS, strict=True)], COLUMNS)
    write_table(folder, facts, [vectors], embed_dim=4, record="{}")
    return folder


def unit(rows: object) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_best_window_of_each_file_is_found(tmp_path):
    vectors = unit([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    index = SoundIndex.open(write_index(tmp_path / "index", [3, 1], vectors))
    first, second = index.search(np.array([2, 2, 0, 0]), top=5)
    assert first == Match("/sounds/0000.wav", pytest.approx(1.0), 1.0, 3.0)
    assert second == Match("/sounds/0001.wav", pytest.approx(0.0), 0.0, 2.0)


def test_several_matches_of_a_file_do_not_overlap(tmp_path):
    vectors = unit([[3, 1, 0, 0], [4, 1, 0, 0], [3, 1, 0, 0], [2, 1, 0, 0], [1, 1, 0, 0]])
    index = SoundIndex.open(write_index(tmp_path / "index", [5], vectors))
    assert [(match.start, match.end) for match in index.search(np.array([1, 0, 0, 0]), per_file=3)] == [(1, 3), (3, 5)]


def test_search_equals_sorting_all_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(sound_index, "BLOCK", 7)
    rng = np.random.default_rng(0)
    files = rng.integers(1, 4, size=50).tolist()
    vectors = unit(rng.integers(-2, 3, size=(sum(files), 4)) + [0, 0, 0, 0.5])  # with ties
    index, query = SoundIndex.open(write_index(tmp_path / "index", files, vectors)), np.array([1.0, 0, 0, 0])
    scores = np.split(vectors @ query.astype(np.float32), np.cumsum(files)[:-1])
    expected = sorted(range(len(files)), key=lambda file: (-scores[file].max(), file))
    for top in (1, 10, 50, 99):
        found = [int(Path(match.path).stem) for match in index.search(query, top)]
        assert found == expected[:top]


@pytest.mark.parametrize("size", [None, 0, 60, 150])
def test_matrix_is_written_again_if_it_is_missing_or_truncated(tmp_path, size):
    folder = write_index(tmp_path / "index", [1, 1], unit([[1, 2, 3, 4], [4, 3, 2, 1]]))
    [path] = folder.glob("vectors-*.npy")
    before = path.read_bytes()
    if size is None:
        path.unlink()
    else:
        path.write_bytes(before[:size])
    _, vectors = open_table(folder, 4)
    assert path.read_bytes() == before and vectors.shape == (2, 4)


def test_damaged_table_is_named(tmp_path):
    folder = write_index(tmp_path / "index", [1], unit([[1, 2, 3, 4]]))
    table = folder / "embeddings.parquet"
    table.write_bytes(table.read_bytes()[:500])
    with pytest.raises(ValueError, match="embeddings.parquet: damaged .* --rebuild"):
        SoundIndex.open(folder)


def test_missing_unfinished_and_empty_indexes_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no such index; write it with `python -m clap index"):
        SoundIndex.open(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="is not an index: index.json is missing"):
        SoundIndex.open(tmp_path)
    with pytest.raises(ValueError, match="has no recordings: none could be read, see its errors.jsonl"):
        SoundIndex.open(write_index(tmp_path / "empty", [], np.empty((0, 4))))


@pytest.mark.parametrize(
    ("query", "message"), [(np.ones(3), r"shape \(3,\); give finite numbers \(4,\)"), (np.full(4, np.nan), "finite")]
)
def test_wrong_query_is_refused(tmp_path, query, message):
    index = SoundIndex.open(write_index(tmp_path / "index", [1], unit([[1, 0, 0, 0]])))
    with pytest.raises(ValueError, match=message):
        index.search(query)
