"""ClapDataset: which part of a clip is read, how captions are drawn, which clips are skipped."""

import itertools
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from ramps import Ramps, make_dataset
from torch.utils.data import DataLoader

import clap as package
from clap.commands.synthesize import synthesize
from clap.corpus import Clip
from clap.dataset.clips import ClapDataset
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.registry import open_corpus


def draw(dataset: ClapDataset, epoch: int) -> list[tuple[float, str]]:
    """Start sample of each clip's part, and its caption."""
    items = [dataset[epoch, i] for i in range(len(dataset))]
    return [(round(float(item.waveform[0]) * 2000), item.caption) for item in items]


# One clip


def test_clip_that_does_not_fit_into_memory_is_a_problem_of_that_clip(ramps, monkeypatch):
    def fail(*args, **options):
        raise MemoryError

    dataset = ClapDataset(Ramps(ramps), sample_rate=1000)
    monkeypatch.setattr(Ramps, "load", fail)
    assert dataset[0].problem.endswith("does not fit into memory") and str(ramps[0].path) in dataset[0].problem


def test_longest_clip_applies_to_what_is_read(ramps):
    settings = DatasetSettings(longest_clip=1.0)
    assert "2.0 s long" in ClapDataset(Ramps(ramps), training=False, sample_rate=1000, settings=settings)[0].problem
    assert ClapDataset(Ramps(ramps), training=False, sample_rate=1000, window=0.5, settings=settings)[0].problem is None


def test_only_the_window_is_read(ramps):
    assert len(make_dataset(ramps)[0, 0].waveform) == 500


def test_longest_duration_of_the_corpus_bounds_the_window(ramps):
    dataset = ClapDataset(Ramps(ramps, max_duration=0.2), sample_rate=1000, window=0.5)
    assert len(dataset[0, 0].waveform) == 200


def test_no_window_reads_all(ramps):
    assert len(make_dataset(ramps, window=None)[0, 0].waveform) == 2000


def test_draw_is_a_function_of_seed_epoch_and_index(ramps):
    first, again = make_dataset(ramps), make_dataset(ramps)
    expected = draw(first, 3)
    torch.manual_seed(7)
    draw(again, 1)
    assert draw(again, 3) == expected


def test_draws_differ_between_epochs_seeds_and_clips(ramps):
    dataset = make_dataset(ramps)
    assert draw(dataset, 0) != draw(dataset, 1)
    assert draw(dataset, 0) != draw(make_dataset(ramps, seed=1), 0)
    assert len({start for start, _ in draw(dataset, 0)}) > 1


def test_every_caption_is_drawn(ramps):
    drawn = {caption for epoch in range(20) for _, caption in draw(make_dataset(ramps), epoch)}
    assert drawn == {caption for clip in ramps for caption in clip.captions}


def test_evaluation_takes_the_middle_and_the_first_caption(ramps):
    dataset = make_dataset(ramps, "test")
    assert draw(dataset, 0) == draw(dataset, 1) == [(750, f"one {i}") for i in range(10)]


def test_train_split_can_be_evaluated(ramps):
    assert draw(make_dataset(ramps, training=False), 0)[0] == (750, "one 0")


def test_plain_index_draws_at_random(ramps):
    dataset = make_dataset(ramps)
    starts = {round(float(dataset[0].waveform[0]) * 2000) for _ in range(10)}
    assert len(starts) > 1


# Captions and weights


def drawn(dataset: ClapDataset, epoch: int = 0) -> list[tuple[int, str]]:
    """Clip index and caption of each item of an epoch."""
    return [(item.index, item.caption) for item in (dataset[epoch, i] for i in range(len(dataset)))]


def test_each_caption_is_a_separate_pair(ramps):
    dataset = make_dataset(ramps, captions="all")
    expected = [(i, caption) for i, clip in enumerate(ramps) for caption in clip.captions]
    assert len(dataset) == 30 and drawn(dataset) == drawn(dataset, 1) == expected


def test_keywords_replace_the_caption(ramps, caplog):
    clips = [replace(ramps[0], keywords=("rain", "wind", "dog")), ramps[1]]
    with caplog.at_level(logging.INFO):
        dataset = make_dataset(clips, captions="keywords")
    assert dataset.captions == ["the sound of rain, wind and dog", *ramps[1].captions]
    assert "keywords of 1 of 2 clips of ramps" in caplog.text


def test_evaluation_keeps_the_captions(ramps):
    clips = [replace(clip, keywords=("rain",)) for clip in ramps]
    for captions in ("all", "keywords"):
        assert drawn(make_dataset(clips, "test", captions=captions)) == [(i, f"one {i}") for i in range(10)]


def test_integer_weight_repeats_every_clip_with_different_parts(ramps):
    dataset = ClapDataset([Ramps(ramps[:4]), Ramps(ramps[4:])], sample_rate=1000, window=0.5, weights=[3, 1])
    items = [dataset[0, i] for i in range(len(dataset))]
    assert sorted(item.index for item in items) == sorted([0, 1, 2, 3] * 3 + list(range(4, 10)))
    assert len({float(item.waveform[0]) for item in items if item.index == 0}) > 1


def test_fractional_weight_draws_different_clips_each_epoch(ramps):
    dataset = ClapDataset([Ramps(ramps)], sample_rate=1000, window=0.5, weights=[1.5])
    epochs = [[index for index, _ in drawn(dataset, epoch)] for epoch in range(8)]
    assert all(len(epoch) == 15 and set(epoch) == set(range(10)) for epoch in epochs)
    assert len({tuple(sorted(epoch)) for epoch in epochs}) > 1


def test_evaluation_ignores_weights(ramps):
    assert len(ClapDataset([Ramps(ramps)], "test", sample_rate=1000, weights=[2])) == 10


def test_by_corpus_has_a_dataset_for_each_corpus(ramps):
    other = Ramps(lose(ramps[4:], 7))
    other.name = "other"
    dataset = ClapDataset(
        [Ramps(ramps[:4]), other], "test", sample_rate=1000, settings=DatasetSettings(max_bad_fraction=0.5)
    )
    (first, first_indices), (second, second_indices) = dataset.by_corpus
    assert dataset.names == [first.name, second.name] == ["ramps", "other"]
    assert (first_indices, second_indices) == ([0, 1, 2, 3], [4, 5, 6, 7, 8])
    assert (first.num_listed, second.num_listed, len(second), len(second.missing)) == (4, 6, 5, 1)
    assert len({dataset.digest, first.digest, second.digest}) == 3
    assert second[0].index == 0 and second.clips[0] == dataset.clips[4]


# The public loader, as in a notebook


@pytest.fixture(scope="module")
def esc50(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("esc50")
    synthesize(folder, layout="esc50", num_clips=110, sample_rate=8_000, max_duration=3.0)
    return folder


@pytest.mark.filterwarnings("error")
def test_plain_dataloader_works_with_workers(tiny_clap, esc50, monkeypatch):
    clap = tiny_clap()
    train = package.ClapDataset(datasets=["ESC50"], kind="train", root=esc50, sample_rate=clap.sample_rate)
    loader = DataLoader(train, batch_size=4, shuffle=True, collate_fn=clap.collate, num_workers=2)
    batch = next(iter(loader))
    assert batch.waveform.shape == (4, 48_000)
    audio, text, _ = clap(batch.waveform, batch.lengths, batch.token_ids, batch.token_mask)
    assert audio.shape == text.shape == (4, 16)


def test_dataset_from_config_equals_that_of_a_run(tiny_config, tmp_path):
    config = tiny_config("dataset.max_clips=3", "seed=5")
    dataset = package.ClapDataset(config=config, kind="val")
    assert (len(dataset), dataset.sample_rate, dataset.seed, dataset.name) == (3, 16_000, 5, "synthetic")


def test_config_can_be_a_path(tiny_config, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tiny_config("dataset.max_clips=3")))
    assert len(package.ClapDataset(config=tmp_path / "run.yaml", kind="test")) == 3


def test_config_without_dataset_is_an_error(tiny_config):
    config = {key: value for key, value in tiny_config().items() if key != "dataset"}
    with pytest.raises(ValueError, match="the config has no dataset; pass a composed config"):
        ClapDataset(config=config)


def test_open_corpus_ignores_loader_keys(tiny_config):
    assert open_corpus(tiny_config()["dataset"]).name == "synthetic"


def test_several_corpora_are_concatenated(ramps):
    dataset = ClapDataset([Ramps(ramps[:2]), Ramps(ramps[5:])], sample_rate=1000)
    assert [clip.id for clip in dataset.clips] == ["0", "1", "5", "6", "7", "8", "9"] and dataset.name == "ramps_ramps"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"datasets": ["AudioSet"]}, "dataset 'AudioSet' is not one of AudioCaps, Clotho, CSV"),
        ({"datasets": ["ESC50"]}, "dataset 'ESC50': missing a required argument: 'root'; give root="),
        ({"datasets": ["CSV"], "root": "data"}, "dataset 'CSV': missing a required argument: 'metadata'; give root="),
        ({"datasets": ["Synthetic"], "root": "data"}, r"dataset 'Synthetic': .*as datasets=\[Synthetic\(...\)\]"),
        ({"kind": "dev"}, "kind='dev' is not one of train, val, test"),
        ({"datasets": None}, r"requires datasets=\[...\] and sample_rate=..."),
        ({"sample_rate": None}, "requires datasets"),
        (
            {"settings": DatasetSettings(captions="keywords"), "datasets": [Ramps([Clip("a", ("x",))])]},
            "no clip of ramps has keywords; set dataset.c",
        ),
        ({"weights": [1, 2]}, r"weights=\[1, 2\]: give a positive number for each of 1 corpora"),
        ({"weights": [0]}, r"weights=\[0\]: give a positive number"),
    ],
)
def test_wrong_argument_is_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        ClapDataset(**{"datasets": [Ramps([])], "sample_rate": 1000} | arguments)
    assert "\n" not in str(error.value)


# Missing files, and the digest of a split


def lose(clips: list[Clip], *lost: int) -> list[Clip]:
    absent = Path("/nowhere")
    return [Clip(c.id, c.captions, absent / f"{c.id}.wav") if int(c.id) in lost else c for c in clips]


def test_few_missing_files_are_logged_and_skipped(ramps, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = make_dataset(lose(ramps, 3, 8), max_bad_fraction=0.2)
    assert len(dataset) == 8 and dataset.num_listed == 10
    assert "2 of 10 recordings of the train split of ramps are missing and skipped: " in caplog.text
    assert "/nowhere/3.wav, /nowhere/8.wav" in caplog.text


def test_too_many_missing_files_are_an_error(ramps):
    with pytest.raises(FileNotFoundError, match="2 of 10 recordings .* the first is /nowhere/3.wav; set dataset.root"):
        make_dataset(lose(ramps, 3, 8), max_bad_fraction=0.19)


def test_all_files_missing_is_an_error_at_any_fraction(ramps):
    with pytest.raises(FileNotFoundError, match="10 of 10 recordings"):
        make_dataset(lose(ramps, *range(10)), max_bad_fraction=1.0)


def test_split_without_clips_is_an_error(ramps):
    with pytest.raises(ValueError, match="the val split of ramps has no clips"):
        make_dataset(ramps, "val")


def test_max_clips_takes_the_first(ramps):
    assert [clip.id for clip in make_dataset(ramps, max_clips=2).clips] == ["0", "1"]


def test_digest_changes_with_a_caption(ramps):
    changed = [*ramps[:-1], Clip("9", ("another",), ramps[9].path)]
    digests = [make_dataset(clips).digest for clips in (ramps, list(ramps), changed)]
    assert digests[0] == digests[1] != digests[2]


def test_digest_does_not_depend_on_the_order_of_the_index(ramps):
    reordered = [replace(clip, captions=clip.captions[::-1]) for clip in ramps[::-1]]
    assert make_dataset(reordered).digest == make_dataset(ramps).digest


def test_digest_does_not_depend_on_the_folder(ramps, tmp_path):
    moved = []
    for clip in ramps:
        (tmp_path / clip.path.name).symlink_to(clip.path)
        moved.append(Clip(clip.id, clip.captions, tmp_path / clip.path.name))
    assert make_dataset(moved).digest == make_dataset(ramps).digest


def test_captions_lists_every_caption_of_every_clip(ramps):
    assert sorted(make_dataset(ramps).captions) == sorted(itertools.chain(*(clip.captions for clip in ramps)))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"captions": "some"}, "captions='some' is not one of sample, all, keywords, rewritten; set dataset.captions"),
        ({"max_clips": 0}, "dataset.max_clips=0 must be 1 or more, or null"),
        ({"max_bad_fraction": 1.5}, "dataset.max_bad_fraction=1.5 must be between 0 and 1"),
        ({"rewritten_fraction": 1.5}, "dataset.rewritten_fraction=1.5 must be between 0 and 1"),
        ({"cache_gigabytes": 0}, "dataset.cache_gigabytes=0 must be above 0, or null for no limit"),
    ],
)
def test_wrong_setting_is_one_clear_line(setting, message):
    with pytest.raises(ValueError, match=message):
        DatasetSettings(**setting)
