"""UrbanSound8K in its published layout and folds."""

from pathlib import Path

import pytest

from clap.commands.synthesize import synthesize
from clap.corpus import SPLITS
from clap.dataset.clips import ClapDataset
from clap.dataset.urbansound8k import FOLD_SIZES, UrbanSound8K

HEADER = "slice_file_name,fsID,start,end,salience,fold,classID,class"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of two classes in each fold."""
    folder = tmp_path_factory.mktemp("urbansound8k")
    synthesize(folder, layout="urbansound8k", num_clips=20, sample_rate=8_000, max_duration=3.0)
    return folder


def write_index(folder: Path, *lines: str) -> Path:
    (folder / "metadata").mkdir()
    (folder / "metadata" / "UrbanSound8K.csv").write_text("\n".join([HEADER, *lines, ""]))
    return folder


def test_replica_is_read(root: Path):
    datasets = {split: ClapDataset(UrbanSound8K(root), split, sample_rate=8_000) for split in SPLITS}
    assert {split: dataset.num_listed for split, dataset in datasets.items()} == {"train": 16, "val": 2, "test": 2}
    assert datasets["test"][0].problem is None


@pytest.mark.parametrize("fold", range(1, 11))
def test_every_fold_can_be_the_test(root: Path, fold: int):
    corpus = UrbanSound8K(root, test_fold=fold)
    assert {clip.path.parent.name for clip in corpus.clips("test")} == {f"fold{fold}"}
    assert corpus.counts["test"] == FOLD_SIZES[fold]


def test_published_folds_have_8732_clips():
    assert sum(FOLD_SIZES.values()) == 8_732


def test_clip_has_label_caption_and_source(root: Path):
    clip = UrbanSound8K(root, templates=["this is {}"]).clips("test")[0]
    assert clip.captions == (f"this is {clip.label}",) and clip.keywords == (clip.label,)
    assert clip.source == f"freesound:{clip.id.split('-')[0]}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b.wav,7,0,4,1,x,0,dog_bark", "line 3: fold='x' is not one of 1 ... 10"),
        ("b.wav,7,0,4,1,1,0,", "line 3: class is empty"),
        ("b.wav,,0,4,1,1,0,dog_bark", "line 3: fsID='' is not a number"),
        ("../b.wav,7,0,4,1,1,0,dog_bark", "line 3: slice_file_name='../b.wav' is not a file name"),
        (",7,0,4,1,1,0,dog_bark", "line 3: slice_file_name is empty"),
        ("a.wav,7,0,4,1,1,0,dog_bark", "line 3: slice_file_name='a.wav' is already in"),
        ("b.wav,7,0,4,1,1,0", "line 3: 7 fields, but the header has 8"),
    ],
)
def test_invalid_line_names_file_and_line(tmp_path: Path, line: str, message: str):
    write_index(tmp_path, "a.wav,6,0,4,1,1,0,dog_bark", line)
    with pytest.raises(ValueError) as error:
        UrbanSound8K(tmp_path)
    assert f"{tmp_path}/metadata/UrbanSound8K.csv, {message}" in str(error.value)
