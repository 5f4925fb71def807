"""A mixture of corpora: weights, names, folders."""

from pathlib import Path

import pytest

from clap.commands.synthesize import synthesize
from clap.dataset.audiocaps import AudioCaps
from clap.dataset.clips import ClapDataset
from clap.dataset.clotho import Clotho
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.mixture import Mixture

CORPORA = {"clotho": {}, "audiocaps": {"version": "v2"}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips for training and two for each other split, in each corpus."""
    folder = tmp_path_factory.mktemp("data")
    for name in CORPORA:
        synthesize(folder / name, layout=name, num_clips=10, sample_rate=8_000, min_duration=3.0, max_duration=3.0)
    return folder


def test_corpora_are_found_in_folders_of_their_name(root: Path):
    mixture = Mixture(root, corpora=CORPORA)
    assert mixture.name == "clotho_audiocaps" and len(mixture.clips("train")) == 12
    (clotho, _), (audiocaps, _) = mixture.parts
    assert isinstance(clotho, Clotho) and isinstance(audiocaps, AudioCaps) and audiocaps.version == "v2"


def test_weights_set_the_draws_of_each_clip(root: Path):
    dataset = ClapDataset(Mixture(root, corpora=CORPORA, weights={"clotho": 2}), sample_rate=8_000)
    owners = [dataset.owners[dataset[0, i].index].name for i in range(len(dataset))]
    assert owners.count("clotho") == 12 and owners.count("audiocaps") == 6


def test_evaluation_has_a_dataset_for_each_corpus(root: Path):
    dataset = ClapDataset(Mixture(root, corpora=CORPORA), "test", sample_rate=8_000)
    assert dataset.names == ["clotho", "audiocaps"]
    assert [len(part) for part, _ in dataset.by_corpus] == [2, 2]


def test_dataset_accepts_names_and_one_root(root: Path):
    dataset = ClapDataset(["AudioCaps", "Clotho"], "train", root, sample_rate=8_000, weights=[1, 0.5])
    assert dataset.name == "audiocaps_clotho" and len(dataset) == 9


def test_folder_can_have_the_published_name(root: Path, tmp_path: Path):
    (tmp_path / "AudioCaps").symlink_to(root / "audiocaps")
    assert len(ClapDataset("AudioCaps", "test", tmp_path, sample_rate=8_000)) == 2


def test_cache_reaches_every_corpus(root: Path, tmp_path: Path):
    mixture = Mixture(root, corpora=CORPORA)
    ClapDataset(mixture, sample_rate=16_000, settings=DatasetSettings(cache=str(tmp_path), max_bad_fraction=1.0))
    assert all(corpus.cache.folder == tmp_path for corpus, _ in mixture.parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpora": {}}, "corpora={} is empty; name one or more"),
        ({"corpora": {"clotho": {}}, "weights": {"esc50": 1}}, "weights: esc50 is not one of clotho"),
        ({"corpora": {"clotho": {}}, "weights": {"clotho": -1}}, r"weights=\[-1\]: give a positive number"),
        ({"corpora": {"clotho": {"version": "v1"}}}, "dataset 'clotho': got an unexpected keyword argument 'version'"),
    ],
)
def test_invalid_option_is_named(root: Path, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Mixture(root, **options)


def test_missing_corpus_is_named(tmp_path: Path):
    with pytest.raises(
        FileNotFoundError, match="/clotho is missing; .* must contain one folder for each of clotho, audiocaps"
    ):
        Mixture(tmp_path, corpora=CORPORA)
