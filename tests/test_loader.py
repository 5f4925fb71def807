"""Batches: order, padding, skipped clips, with and without workers."""

import contextlib
import itertools
import os
import signal

import numpy as np
import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from numpy.testing import assert_array_equal
from ramps import Ramps, make_dataset
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from clap.corpus import Clip
from clap.dataset.cache import WaveformCache
from clap.dataset.clips import ClapDataset
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.item import Item
from clap.dataset.loader import Collate, EpochSampler, closing_workers, make_loader, prefetch, prepare_worker
from clap.dataset.synthetic import Synthetic
from clap.model import Clap


def tokenize(captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per letter."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(list(map(ord, text))) for text in captions], batch_first=True)
    return ids, ids > 0


def make_item(index: int, length: int, caption: str = "dog", problem: str | None = None) -> Item:
    waveform = None if problem else np.ones(length, dtype=np.float32)
    return Item(index, waveform, caption, group=index, problem=problem)


def test_collate_pads_waveforms_and_tokens_to_the_longest():
    batch = Collate(tokenize)([make_item(0, 3, "dog"), make_item(1, 5, "a cat")])
    assert_array_equal(batch.waveform, [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert_array_equal(batch.lengths, [3, 5])
    assert batch.token_ids.shape == (2, 5) and batch.token_mask.sum(dim=1).tolist() == [3, 5]


def test_batch_from_the_cache_equals_the_waveforms_of_its_items(ramps, tmp_path):
    dataset = make_dataset(ramps, "test")
    dataset.corpora[0].cache = WaveformCache(tmp_path)
    items = [dataset[i] for i in range(3)]
    assert items[0].samples.dtype == np.int16
    batch = Collate(tokenize)(items)
    assert batch.samples.dtype == torch.int16  # half of the bytes that go to the device
    assert batch.waveform.dtype == torch.float32
    assert_array_equal(batch.waveform, np.stack([item.waveform for item in items]))


def test_clips_of_any_scale_are_converted_exactly():
    rng = np.random.default_rng(0)
    items = [make_item(i, 0) for i in range(3)]
    for item, full_scale in zip(items, (1.0, 1.7, 3.3), strict=True):
        item.samples = rng.integers(-32767, 32768, 1000 + item.index).astype(np.int16)
        item.scale = np.float32(full_scale) / 32767
    batch = Collate(tokenize)(items)
    for row, item in zip(batch.waveform, items, strict=True):
        assert_array_equal(row[: len(item.samples)], np.multiply(item.samples, item.scale))
        assert not row[len(item.samples) :].any()


def test_batch_of_cached_and_decoded_clips_is_float():
    items = [make_item(0, 4), make_item(1, 4)]
    items[1].samples, items[1].scale = np.full(4, 100, dtype=np.int16), np.float32(0.01)
    batch = Collate(tokenize)(items)
    assert batch.samples.dtype == torch.float32 and batch.is_cached.tolist() == [False, True]
    assert_array_equal(batch.waveform, np.ones((2, 4)))


def test_rendered_scene_bypasses_the_cache(tmp_path):
    corpus = Synthetic(num_train=2, num_val=1, num_test=1)
    expected = ClapDataset(corpus, "val", sample_rate=8000)[0].waveform
    corpus.cache = WaveformCache(tmp_path)
    assert_array_equal(ClapDataset(corpus, "val", sample_rate=8000)[0].waveform, expected)


def test_collate_skips_and_reports_bad_clips():
    batch = Collate(tokenize)([make_item(4, 3), make_item(7, 3, problem="7.wav: empty"), make_item(9, 3)])
    assert batch.index.tolist() == [4, 9] and batch.problems == {7: "7.wav: empty"}


def test_batch_larger_than_the_training_split_is_reported(ramps, caplog):
    for batch_size in (10, 11):
        make_loader(make_dataset(ramps, "train"), Collate(tokenize), batch_size=batch_size, num_workers=0, shuffle=True)
        assert ("dataset.batch_size=11 is more than the 10 training clips" in caplog.text) == (batch_size == 11)


def test_batch_without_a_good_clip_is_empty():
    batch = Collate(tokenize)([make_item(7, 3, problem="7.wav: empty")])
    assert len(batch) == 0 and batch.problems == {7: "7.wav: empty"}


def test_what_the_host_reads_stays_on_the_cpu():
    batch = Collate(tokenize)([make_item(0, 3), make_item(1, 3, problem="bad")]).to("meta")
    assert all(x.is_meta for x in (batch.waveform, batch.token_ids, batch.token_mask, batch.clip_ids))
    assert batch.lengths.tolist() == [3] and batch.index.tolist() == [0] and batch.problems == {1: "bad"}


def test_every_tensor_of_a_batch_is_pinned(monkeypatch):
    """As the DataLoader pins it."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    batch = Collate(tokenize)([make_item(0, 3), make_item(1, 3, problem="bad")])
    copy = pin_memory(batch)
    assert {id(tensor) for tensor in pinned} == {id(x) for x in vars(batch).values() if isinstance(x, torch.Tensor)}
    assert copy.waveform is not batch.waveform and copy.problems == batch.problems


def test_prefetched_batches_are_those_of_the_loader(ramps):
    loader = make_loader(make_dataset(ramps), Collate(tokenize), batch_size=4, num_workers=0, shuffle=True)
    pairs = list(zip(loader, prefetch(loader, torch.device("meta")), strict=True))
    assert len(pairs) == 2 and all(torch.equal(a.index, b.index) and b.waveform.is_meta for a, b in pairs)


def test_clips_with_equal_captions_share_an_id(ramps):
    clips = [Clip("a", ("dog",), ramps[0].path), Clip("b", ("cat",), ramps[1].path), Clip("c", ("dog",), ramps[2].path)]
    batch = Collate(tokenize)([make_dataset(clips)[0, i] for i in range(3)])
    assert batch.clip_ids[0] == batch.clip_ids[2] != batch.clip_ids[1]


def test_captions_of_one_clip_stay_positives(ramps):
    batch = Collate(tokenize)([make_dataset(ramps, captions="all")[0, i] for i in range(4)])
    assert batch.clip_ids.tolist() == [0, 0, 0, 1] and batch.index.tolist() == [0, 0, 0, 1]


def test_unreadable_clip_becomes_a_problem(ramps, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"not audio")
    item = make_dataset([*ramps, Clip("bad", ("x",), tmp_path / "bad.wav")])[0, 10]
    assert item.waveform is None and "bad.wav: cannot be decoded" in item.problem


# The order of an epoch


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed: int, epoch: int) -> list:
        sampler = EpochSampler(10, 3, shuffle=True, seed=seed)
        sampler.seek(epoch)
        return [index for batch in sampler for _, index in batch]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2) and order(0, 1) != order(1, 1)


def test_sampler_gives_the_epoch_to_the_dataset():
    sampler = EpochSampler(4, 2, shuffle=True)
    sampler.seek(5)
    assert {epoch for batch in sampler for epoch, _ in batch} == {5}


def test_seek_resumes_in_the_middle_of_an_epoch():
    sampler = EpochSampler(10, 3, shuffle=True)
    sampler.seek(2)
    whole = list(sampler)
    sampler.seek(2, 2)
    assert list(sampler) == whole[2:]


def test_shuffled_epoch_drops_the_short_batch():
    sampler = EpochSampler(10, 4, shuffle=True)
    assert [len(batch) for batch in sampler] == [4, 4] and len(sampler) == 2


def test_ordered_epoch_keeps_the_short_batch():
    sampler = EpochSampler(10, 4, shuffle=False)
    assert [index for batch in sampler for _, index in batch] == list(range(10)) and len(sampler) == 3


def test_batch_size_is_at_most_the_split():
    assert [len(batch) for batch in EpochSampler(3, 32, shuffle=True)] == [3]


# Several processes


def join_ranks(world_size: int, *, num_items: int, batch_size: int, shuffle: bool = True) -> list[list[int]]:
    """The global batches of an epoch, from the parts of all ranks."""
    samplers = [
        EpochSampler(num_items, batch_size, shuffle=shuffle, seed=3, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.seek(2, 1)
    return [[index for part in parts for _, index in part] for parts in zip(*samplers, strict=True)]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("num_items", "batch_size"), [(26, 8), (24, 8), (6, 8)])
def test_ranks_divide_the_batches_of_one_process(num_items, batch_size, shuffle):
    options = {"num_items": num_items, "batch_size": batch_size, "shuffle": shuffle}
    assert join_ranks(4, **options) == join_ranks(2, **options) == join_ranks(1, **options)


def test_batch_of_all_clips_is_divided_unevenly():
    samplers = [EpochSampler(3, 8, shuffle=True, rank=rank, world_size=4) for rank in range(4)]
    assert [list(map(len, sampler)) for sampler in samplers] == [[1], [1], [1], [0]]
    assert {len(sampler) for sampler in samplers} == {1}


@pytest.mark.parametrize(("batch_size", "allowed"), [(9, "8 or 12"), (3, "4")])
def test_batch_size_that_the_ranks_do_not_divide_is_refused(batch_size, allowed):
    with pytest.raises(ValueError, match=f"batch_size={batch_size} is .* multiple of 4; set it to {allowed}$"):
        EpochSampler(100, batch_size, shuffle=True, world_size=4)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_rank_without_a_clip_loads_an_empty_batch(ramps, num_workers):
    loader = make_loader(
        *(make_dataset(ramps[:3]), Collate(tokenize)),
        **{"batch_size": 4, "num_workers": num_workers, "shuffle": True, "rank": 3, "world_size": 4},
    )
    (batch,) = loader
    assert len(batch) == 0 and batch.problems == {}


def list_pairs(dataset: ClapDataset, world_size: int) -> list[tuple[int, str]]:
    """Clip and caption of each position of an epoch, in global order."""
    ranks = []
    for rank in range(world_size):
        loader = make_loader(dataset, list, **SHARD, rank=rank, world_size=world_size)
        loader.batch_sampler.seek(1)
        ranks.append([[(item.index, item.caption) for item in batch] for batch in loader])
    return [pair for parts in zip(*ranks, strict=True) for part in parts for pair in part]


SHARD = {"batch_size": 4, "num_workers": 0, "shuffle": True}
KINDS = {
    "sample": lambda ramps: make_dataset(ramps),
    "all captions": lambda ramps: make_dataset(ramps, captions="all"),
    "weights": lambda ramps: ClapDataset(
        [Ramps(ramps[:6], "a"), Ramps(ramps[6:], "b")], sample_rate=1000, window=0.5, weights=[0.5, 2]
    ),
    "excluded clips": lambda ramps: make_dataset(ramps, exclude=ramps[0].path.with_name("exclude.txt")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_share_an_epoch_of_every_kind_of_dataset(ramps, kind):
    ramps[0].path.with_name("exclude.txt").write_text("3\ttoo noisy\n")
    dataset = KINDS[kind](ramps)
    pairs = list_pairs(dataset, 2)
    assert pairs == list_pairs(dataset, 1) and len(pairs) == len(dataset) // 4 * 4
    if kind != "weights":  # which repeat the clips of a corpus
        assert len(set(pairs)) == len(pairs)


def test_training_loads_the_part_of_this_process(ramps, monkeypatch):
    monkeypatch.setattr("clap.process_group.rank", lambda: 1)
    monkeypatch.setattr("clap.process_group.world_size", lambda: 2)
    options = {"batch_size": 4, "num_workers": 0}
    loaders = [make_loader(make_dataset(ramps), Collate(tokenize), **options, shuffle=shuffle) for shuffle in (1, 0)]
    assert [len(next(iter(loader))) for loader in loaders] == [2, 4]


# Workers


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_do_not_change_batches(ramps, num_workers):
    loader = make_loader(
        make_dataset(ramps), Collate(tokenize), batch_size=4, num_workers=num_workers, shuffle=True, seed=3
    )
    state = torch.get_rng_state()
    batches = list(loader)
    assert torch.equal(torch.get_rng_state(), state)
    expected = make_dataset(ramps)
    for batch in batches:
        items = Collate(tokenize)([expected[0, i] for i in batch.index.tolist()])
        assert_array_equal(batch.waveform, items.waveform)
        assert_array_equal(batch.token_ids, items.token_ids)


def open_workers(ramps: list[Clip], **options) -> DataLoader:
    options = {"batch_size": 2, "num_workers": 2, "shuffle": True} | options
    return make_loader(make_dataset(ramps), Collate(tokenize), **options)


def read_epoch(loader: DataLoader, epoch: int, first: int = 0) -> list[tuple]:
    loader.batch_sampler.seek(epoch, first)
    return [(batch.index.tolist(), batch.token_ids.tolist(), batch.waveform.tolist()) for batch in loader]


def test_training_workers_survive_an_epoch(ramps):
    loader = open_workers(ramps)
    pids = []
    with closing_workers(loader):
        for epoch in range(2):
            assert read_epoch(loader, epoch) == read_epoch(open_workers(ramps, num_workers=0), epoch)
            pids.append([worker.pid for worker in loader._iterator._workers])
    assert pids[0] == pids[1]


@pytest.mark.parametrize("taken", [1, 4])
def test_abandoned_epoch_leaves_no_batch_to_the_next(ramps, taken):
    """As after trainer.max_steps or a stop in the middle of an epoch."""
    loader, expected = open_workers(ramps), open_workers(ramps, num_workers=0)
    with closing_workers(loader):
        loader.batch_sampler.seek(0)
        assert len(list(itertools.islice(loader, taken))) == taken
        assert read_epoch(loader, 0, taken) == read_epoch(expected, 0)[taken:]
        assert read_epoch(loader, 1) == read_epoch(expected, 1)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_workers_end_with_the_training(ramps, error):
    loader = open_workers(ramps)
    with contextlib.suppress(KeyboardInterrupt), closing_workers(loader):
        iterator = iter(loader)
        next(iterator)
        workers = iterator._workers
        assert all(worker.is_alive() for worker in workers)
        if error is not None:
            raise error
    assert not any(worker.is_alive() for worker in workers)
    assert len(read_epoch(loader, 0)) == 5  # by new workers


def test_workers_that_do_not_persist_or_do_not_exist(ramps):
    assert not open_workers(ramps, persistent_workers=False).persistent_workers
    assert not open_workers(ramps, shuffle=False).persistent_workers
    loader = open_workers(ramps, num_workers=0, prefetch_factor=3)
    assert not loader.persistent_workers and loader.prefetch_factor is None


def test_prefetch_factor_is_checked():
    with pytest.raises(ValueError, match="dataset.prefetch_factor=0 must be 1 or more"):
        DatasetSettings(prefetch_factor=0)


@pytest.mark.parametrize("settings", [(0, 0), (4, -1)])
def test_batch_size_and_workers_are_checked(settings):
    batch_size, num_workers = settings
    with pytest.raises(ValueError, match="dataset.batch_size=.* must be 1 or more"):
        DatasetSettings(batch_size=batch_size, num_workers=num_workers)


def first_batch(clap: Clap) -> int:
    dataset = ClapDataset(Synthetic(num_train=4, num_val=0, num_test=0), "train", sample_rate=clap.sample_rate)
    return len(next(iter(make_loader(dataset, clap.collate, batch_size=2, num_workers=1, shuffle=True))))


@pytest.mark.slow
def test_loader_starts_workers_in_a_joblib_process(tiny_clap):
    """As in a sweep under hydra/launcher=joblib."""
    assert get_reusable_executor(max_workers=1).submit(first_batch, tiny_clap()).result() == 2


def test_worker_outlives_the_signal_of_a_job():
    """It reaches all processes of the job, and the trainer finishes its step."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        prepare_worker(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert 0 < signal.alarm(0) <= 30  # seconds until it ends if the trainer does not end it
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
