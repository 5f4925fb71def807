"""A mixture of corpora: weights, names, folders."""

from collections.abc import Callable
from pathlib import Path

import pytest

from clap.commands.synthesize import synthesize
from clap.config.compose import compose_config
from clap.config.result_settings import read_result_settings
from clap.dataset.audiocaps import AudioCaps
from clap.dataset.clips import ClapDataset
from clap.dataset.clotho import Clotho
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.mixture import Mixture
from clap.dataset.registry import find_splits

CORPORA = {"clotho": {}, "audiocaps": {"version": "v2"}}
SETTINGS = DatasetSettings(max_bad_fraction=0.9, exclude_evaluated=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips for training and two for each other split, in each corpus."""
    folder = tmp_path_factory.mktemp("data")
    for name in CORPORA:
        synthesize(folder / name, layout=name, num_clips=10, sample_rate=8_000, min_duration=3.0, max_duration=3.0)
    return folder


@pytest.fixture
def write_index(root: Path, tmp_path: Path) -> Callable:
    """Write an index of one clip in each split; returns its path."""

    def write(name: str) -> Path:
        audio = sorted((root / "audiocaps" / "audio").rglob("*.*"))
        rows = [f"{path},{name} {split},{split}" for path, split in zip(audio, ("train", "val", "test"), strict=False)]
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(["path,caption,split", *rows]))
        return path

    return write


def test_corpora_are_found_in_folders_of_their_name(root: Path):
    mixture = Mixture(root, corpora=CORPORA)
    assert mixture.name == "clotho_audiocaps" and len(mixture.clips("train")) == 12
    clotho, audiocaps = (part.corpus for part in mixture.parts)
    assert isinstance(clotho, Clotho) and isinstance(audiocaps, AudioCaps) and audiocaps.version == "v2"


def test_weights_set_the_draws_of_each_clip(root: Path):
    dataset = ClapDataset(Mixture(root, corpora=CORPORA, weights={"clotho": 2}), sample_rate=8_000)
    owners = [dataset.owners[dataset[0, i].index].name for i in range(len(dataset))]
    assert owners.count("clotho") == 12 and owners.count("audiocaps") == 6


def test_evaluation_has_a_dataset_for_each_corpus(root: Path):
    dataset = ClapDataset(Mixture(root, corpora=CORPORA), "test", sample_rate=8_000)
    assert dataset.names == ["clotho", "audiocaps"]
    assert [len(part) for part, _ in dataset.by_corpus] == [2, 2]


def test_evaluation_of_one_corpus_of_a_mixture_has_its_name(root: Path):
    corpora = {"clotho": {"splits": ["train"]}, "audiocaps": CORPORA["audiocaps"]}
    dataset = ClapDataset(Mixture(root, corpora=corpora), "val", sample_rate=8_000)
    ((part, indices),) = dataset.by_corpus
    assert dataset.names == [part.name] == ["audiocaps"] and list(indices) == [0, 1]


def test_dataset_accepts_names_and_one_root(root: Path):
    dataset = ClapDataset(["AudioCaps", "Clotho"], "train", root, sample_rate=8_000, weights=[1, 0.5])
    assert dataset.name == "audiocaps_clotho" and len(dataset) == 9


def test_folder_can_have_the_published_name(root: Path, tmp_path: Path):
    (tmp_path / "AudioCaps").symlink_to(root / "audiocaps")
    assert len(ClapDataset("AudioCaps", "test", tmp_path, sample_rate=8_000)) == 2


def test_cache_reaches_every_corpus(root: Path, tmp_path: Path):
    mixture = Mixture(root, corpora=CORPORA)
    ClapDataset(mixture, sample_rate=16_000, settings=DatasetSettings(cache=str(tmp_path), max_bad_fraction=1.0))
    assert all(part.corpus.cache.folder == tmp_path for part in mixture.parts)


def test_two_indexes_and_a_corpus_have_options_of_their_own(root: Path, write_index: Callable):
    corpora = {
        "field": {"corpus": "csv", "root": root, "metadata": write_index("field"), "weight": 3, "splits": ["train"]},
        "studio": {"corpus": "csv", "root": root, "metadata": write_index("studio"), "captions": "all"},
        "audiocaps": {"root": root / "audiocaps", "version": "v2"},
    }
    mixture = Mixture(corpora=corpora)
    assert mixture.name == "field_studio_audiocaps"
    assert [part.weight for part in mixture.parts] == [3, 1, 1] and mixture.parts[1].captions == "all"
    dataset = ClapDataset(mixture, sample_rate=8_000, settings=SETTINGS)
    owners = [dataset.owners[dataset[0, i].index].name for i in range(len(dataset))]
    assert [owners.count(name) for name in corpora] == [3, 1, 6]
    assert ClapDataset(mixture, "test", sample_rate=8_000).names == ["studio", "audiocaps"]


def test_name_of_a_published_corpus_is_that_of_its_item(root: Path):
    assert Mixture(corpora={"old": {"corpus": "audiocaps", "root": root / "audiocaps"}}).name == "old"


def test_splits_take_the_clips_of_other_splits(root: Path):
    corpora = {"clotho": {"splits": {"train": ["train", "val"], "test": "test"}}, "audiocaps": {"splits": ["val"]}}
    mixture = Mixture(root, corpora=corpora)
    assert [len(mixture.clips(split)) for split in ("train", "val", "test")] == [8, 2, 2]
    assert find_splits(mixture) == {"train": ["clotho"], "val": ["audiocaps"], "test": ["clotho"]}
    assert mixture.parts[0].count_published("train") == 3839 + 1045


@pytest.mark.parametrize(
    ("corpora", "message"),
    [
        ({}, "corpora={} is empty; name one or more"),
        ({"clotho": {"weight": -1}}, "clotho.weight=-1 is not a positive number"),
        (
            {"clotho": {"max_durations": 1}},
            "clotho has no option max_durations; did you mean max_duration?; options: root",
        ),
        ({"clotho": {"name": "x"}}, "clotho has no option name"),
        ({"wavcps": {}}, "corpora.wavcps: 'wavcps' is not one of .*; did you mean wavcaps?, or give its kind"),
        ({"mine": {"corpus": "cvs"}}, "corpora.mine: 'cvs' is not one of .*; did you mean csv?"),
        ({"mine": {"corpus": "csv", "root": "."}}, "corpora.mine needs metadata; set dataset.corpora.mine.metadata"),
        ({"clotho": {"captions": "each"}}, "clotho.captions='each' is not one of sample, all, keywords"),
        ({"clotho": {"splits": ["valid"]}}, "clotho.splits: 'valid' is not one of train, val, test"),
        ({"clotho": {"splits": {"train": ["train", "test"], "test": "test"}}}, "splits: test is used twice"),
        ({"clotho": {"root": 3}}, "clotho.root=3 is not a path"),
        ({"clotho": 3}, "clotho=3 is not a mapping"),
        ({"a/b": {"corpus": "clotho"}}, "'a/b' cannot be part of a metric or file name"),
        ({"clotho": {}, "Clotho": {}}, "'clotho' is the name of two corpora in metrics"),
    ],
)
def test_invalid_option_is_named_with_its_key(root: Path, corpora: dict, message: str):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        Mixture(root, corpora=corpora)


def test_weights_of_unknown_corpora_are_refused(root: Path):
    with pytest.raises(ValueError, match="weights: esc50 is not one of clotho"):
        Mixture(root, corpora={"clotho": {}}, weights={"esc50": 1})


def test_missing_folder_is_named_with_its_key(tmp_path: Path):
    with pytest.raises(
        FileNotFoundError, match=r"/clotho is missing; .* set dataset.root or dataset.corpora.clotho.root"
    ):
        Mixture(tmp_path, corpora=CORPORA)
    with pytest.raises(FileNotFoundError, match=r"dataset.corpora.clotho: root=.*/absent is not a folder"):
        Mixture(tmp_path, corpora={"clotho": {"root": str(tmp_path / "absent")}})


def test_options_are_checked_before_a_file_is_read(tmp_path: Path):
    corpora = {"mine": {"corpus": "csv", "root": tmp_path, "metadata": tmp_path / "absent.csv"}, "wavcps": {}}
    with pytest.raises(ValueError, match="wavcps"):
        Mixture(tmp_path, corpora=corpora)


LINES = ["dataset=mixture", "dataset.corpora={clotho: {root: data}, mine: {corpus: csv, metadata: a.csv}}"]


def test_overrides_add_corpora_and_options():
    config = compose_config([*LINES, "dataset.corpora.clotho.weight=2", "dataset.corpora.esc50.root=ESC-50"])
    assert config["dataset"]["corpora"] == {
        "clotho": {"root": "data", "weight": 2},
        "mine": {"corpus": "csv", "metadata": "a.csv"},
        "esc50": {"root": "ESC-50"},
    }


def test_overrides_of_a_named_option_keep_its_type():
    assert compose_config(["dataset=clotho_audiocaps", "dataset.root=.", "dataset.corpora.audiocaps.version=v2"])
    with pytest.raises(ValueError, match="dataset.corpora.clotho.max_duration must be a number"):
        compose_config(["dataset=clotho_audiocaps", "dataset.root=.", "dataset.corpora.clotho.max_duration=long"])
    with pytest.raises(ValueError, match="dataset.corpora.clotho.captions must be one of sample, all, keywords"):
        compose_config([*LINES, "dataset.corpora.clotho.captions=each"])


def test_roots_of_a_mixture_do_not_change_a_result():
    config = compose_config(LINES)
    assert "dataset.corpora.mine.metadata" in (settings := read_result_settings(config))
    assert "dataset.corpora.clotho.root" not in settings
