"""A Hugging Face dataset on disk, written in the format of `datasets`."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from conftest import make_tone
from numpy.testing import assert_array_equal

from clap.corpus import SPLITS
from clap.dataset.clips import ClapDataset
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.huggingface import HuggingFace, open_table
from clap.waveform import load_waveform, read_header

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encode(number: int, suffix: str = "wav") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, make_tone(200.0 * (number + 1), 0.3, sample_rate=8_000, seed=number), 8_000, format=suffix)
    return file.getvalue()


def save(folder: Path, rows: list[dict], names: list[str] | None = None) -> Path:
    """Two files of Arrow streams and their state.json, as Dataset.save_to_disk writes them."""
    folder.mkdir(parents=True)
    label = {"names": names, "_type": "ClassLabel"}
    if isinstance(rows[0].get("label"), list):
        label = {"feature": label, "_type": "Sequence"}
    features = {"label": label} if names else {}
    columns = [pa.field("audio", AUDIO), *pa.Table.from_pylist([{**row, "audio": None} for row in rows]).schema]
    schema = pa.schema([field for i, field in enumerate(columns) if i == 0 or field.name != "audio"])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    files = []
    for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        files.append({"filename": f"data-{len(files):05d}-of-00002.arrow"})
        with pa.ipc.new_stream(str(folder / files[-1]["filename"]), schema) as writer:
            writer.write_table(pa.Table.from_pylist(part, schema=schema))
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_indices_data_files": None}))
    return folder


def make_rows(count: int, first: int = 0) -> list[dict]:
    numbers = range(first, first + count)
    return [{"audio": {"bytes": encode(i), "path": f"{i}.wav"}, "caption": f"sound {i}"} for i in numbers]


def save_splits(folder: Path) -> Path:
    for place, name in enumerate(("train", "validation", "test")):
        save(folder / name, make_rows(4, first=4 * place))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    return folder


def test_splits_of_a_dataset_dict_are_read(tmp_path: Path):
    corpus = HuggingFace(save_splits(tmp_path / "data"))
    for split, first in zip(SPLITS, (0, 4, 8), strict=True):
        clips = corpus.clips(split)
        assert [clip.captions for clip in clips] == [(f"sound {i}",) for i in range(first, first + 4)]
        assert not any(clip.captions_from_labels for clip in clips)
        dataset = ClapDataset(corpus, split, sample_rate=8_000)
        (tmp_path / "same.wav").write_bytes(encode(first))
        assert_array_equal(dataset[0].waveform, load_waveform(tmp_path / "same.wav", 8_000))


def test_other_splits_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = save_splits(tmp_path / "data")
    assert not caplog.text or "not read" not in caplog.text
    (root / "test").rename(root / "test_clean")
    assert not HuggingFace(root).clips("test")
    assert "data: test_clean not read; the splits are named train, validation, val" in caplog.text


def test_dataset_without_splits_is_divided(tmp_path: Path):
    corpus = HuggingFace(save(tmp_path / "data", make_rows(40)), val_fraction=0.3, test_fraction=0.3)
    assert sum(len(corpus.clips(split)) for split in SPLITS) == 40 and corpus.clips("val") and corpus.clips("test")


def test_splits_do_not_depend_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = make_rows(30)
    root = save(tmp_path / "data", rows)
    expected = divide(root)
    assert all(expected.values()) and expected == divide(root.rename(tmp_path / "renamed"))
    (tmp_path / "link").symlink_to("renamed")
    assert expected == divide(tmp_path / "link") == divide(f"{tmp_path}/renamed/")
    monkeypatch.chdir(tmp_path / "renamed")
    assert expected == divide(".") == divide("../renamed")


def divide(root: Path | str) -> dict[str, list[str]]:
    corpus = HuggingFace(root, val_fraction=0.3, test_fraction=0.3)
    return {split: [clip.id for clip in corpus.clips(split)] for split in SPLITS}


def test_absolute_paths_inside_the_folder_are_relative(tmp_path: Path):
    rows = make_rows(2)
    rows[0]["audio"] = {"bytes": None, "path": str(tmp_path / "data" / "audio" / "0.wav")}
    root = save(tmp_path / "data", rows)
    assert [clip.id for clip in HuggingFace(root, val_fraction=0, test_fraction=0).clips("train")] == [
        "audio/0.wav", "1.wav"
    ]  # fmt: skip


def test_rows_of_one_recording_are_one_clip(tmp_path: Path):
    rows = make_rows(2) + make_rows(1)
    rows[2]["caption"] = "the same again"
    (first, second) = HuggingFace(save(tmp_path / "data", rows), val_fraction=0, test_fraction=0).clips("train")
    assert first.captions == ("sound 0", "the same again") and second.captions == ("sound 1",)


def test_equal_names_of_different_recordings_are_separate_clips(tmp_path: Path):
    rows = make_rows(3)
    for row in rows:
        row["audio"]["path"] = "audio.wav"
    assert len(HuggingFace(save(tmp_path / "data", rows), val_fraction=0, test_fraction=0).clips("train")) == 3


def test_class_labels_have_names(tmp_path: Path):
    rows = [{"audio": row["audio"], "label": i % 2} for i, row in enumerate(make_rows(4))]
    corpus = HuggingFace(save(tmp_path / "data", rows, names=["dog", "rain"]), val_fraction=0, test_fraction=0)
    assert [(clip.label, *clip.captions) for clip in corpus.clips("train")][:2] == [
        ("dog", "the sound of dog"), ("rain", "the sound of rain")
    ]  # fmt: skip
    assert all(clip.captions_from_labels for clip in corpus.clips("train"))


def test_clip_with_several_class_labels_has_them_all(tmp_path: Path):
    rows = [{"audio": row["audio"], "label": [0, 1][: i + 1]} for i, row in enumerate(make_rows(2))]
    corpus = HuggingFace(save(tmp_path / "data", rows, names=["dog", "rain"]), val_fraction=0, test_fraction=0)
    one, two = corpus.clips("train")
    assert (one.label, one.all_labels) == ("dog", ("dog",))
    assert (two.label, two.all_labels, two.captions) == (None, ("dog", "rain"), ("the sound of dog and rain",))


def test_class_that_does_not_exist_names_its_row(tmp_path: Path):
    rows = [{"audio": row["audio"], "caption": "x", "label": 7 * i - 1} for i, row in enumerate(make_rows(2))]
    with pytest.raises(ValueError, match=r"data, row 1: label=6 is not one of -1 \.\.\. 1"):
        HuggingFace(save(tmp_path / "data", rows, names=["dog", "rain"])).clips("train")


def test_unreadable_row_is_named(tmp_path: Path):
    rows = make_rows(2)
    rows[1]["audio"]["bytes"] = b"not audio"
    root = save(tmp_path / "data", rows)
    dataset = ClapDataset(HuggingFace(root, val_fraction=0, test_fraction=0), "train", sample_rate=8_000)
    assert dataset[0, 1].problem.startswith(f"{root}: 1.wav: cannot be decoded")


def test_recording_can_be_outside_the_arrow_files(tmp_path: Path):
    rows = make_rows(2)
    rows[0]["audio"]["bytes"] = None
    root = save(tmp_path / "data", rows)
    (root / "0.wav").write_bytes(encode(0))
    dataset = ClapDataset(HuggingFace(root, val_fraction=0, test_fraction=0), "train", sample_rate=8_000)
    assert dataset[0, 0].problem is None


def test_header_is_that_of_the_recording(tmp_path: Path):
    corpus = HuggingFace(save_splits(tmp_path / "data"))
    (tmp_path / "same.wav").write_bytes(encode(8))
    assert corpus.read_header(corpus.clips("test")[0]) == read_header(tmp_path / "same.wav")


def test_samples_from_the_cache_have_its_depth(tmp_path: Path):
    corpus = HuggingFace(save_splits(tmp_path / "data"))
    cached = ClapDataset(corpus, "test", sample_rate=8_000, settings=DatasetSettings(cache=str(tmp_path / "cache")))
    assert cached[0].samples.dtype == np.int16


def test_empty_caption_names_its_row(tmp_path: Path):
    rows = make_rows(2)
    rows[1]["caption"] = " "
    with pytest.raises(ValueError, match="data, row 1: the caption is empty"):
        HuggingFace(save(tmp_path / "data", rows)).clips("train")


def test_folder_of_parquet_says_how_to_convert(tmp_path: Path):
    (tmp_path / "train.parquet").touch()
    with pytest.raises(FileNotFoundError, match="neither state.json nor dataset_dict.json; .*parquet"):
        HuggingFace(tmp_path).clips("train")


def test_damaged_file_is_named(tmp_path: Path):
    root = save(tmp_path / "data", make_rows(2))
    (root / "data-00001-of-00002.arrow").write_bytes(b"\x00" * 64)
    open_table.cache_clear()
    with pytest.raises(ValueError, match="data-00001-of-00002.arrow: not an Arrow stream"):
        HuggingFace(root).clips("train")


def test_table_without_audio_is_an_error(tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    table = pa.table({"caption": ["x"]})
    with pa.ipc.new_stream(str(folder / "data.arrow"), table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    with pytest.raises(ValueError, match="0 Audio columns, exactly one is required; the columns are caption"):
        HuggingFace(folder).clips("train")
