"""Splits that an evaluator reads: which are embedded, when, and in which mode."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch
from conftest import CAPTIONS
from ranks import run_ranks
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from clap import Clap, ClapDataset, ClapTrainer, SymmetricCrossEntropyLoss
from clap.corpus import Clip, Corpus
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.loader import make_loader
from clap.evaluation.embedded_split import Splits, embed_split, make_evaluation_loader
from clap.evaluation.evaluator import Evaluator, build_evaluators, check_evaluators, check_metrics, evaluate_split
from clap.evaluation.protocol import digest_audio
from clap.evaluation.results import Evaluation
from clap.evaluation.retrieval import Retrieval
from clap.waveform import AudioHeader, load_waveform, read_header


class Tones(Corpus):
    """Four clips for training, two for every other split."""

    def __init__(self, paths: list[Path], name: str = "tones", *, train: bool = True) -> None:
        self.name, self.paths, self.has_train = name, paths, train

    def clips(self, split: str) -> list[Clip]:
        if split == "train" and not self.has_train:
            return []
        first, last = {"train": (0, 4), "val": (4, 6), "test": (6, 8)}[split]
        return [
            Clip(f"{split} {i}", (CAPTIONS[i], f"{CAPTIONS[i]} again"), self.paths[i], f"label {i % 2}")
            for i in range(first, last)
        ]


class ReadTrain(Evaluator):
    """Keeps the training splits that it was given."""

    metric_names = ("read_train/clips",)
    needs = ("train",)

    def __init__(self) -> None:
        self.given = []
        self.checked = []

    def check(self, dataset: ClapDataset) -> None:
        self.checked.append((dataset.name, dataset.kind))

    def __call__(self, clap: Clap, splits: Splits) -> Evaluation:
        self.given.append(splits["train"])
        return Evaluation({"read_train/clips": float(len(splits["train"].clips))}, clip_ids=[])


@pytest.fixture(scope="module")
def clap(tiny_clap: Callable) -> Clap:
    return tiny_clap("audio_encoder.spec_augment={_target_: clap.audio.SpecAugment, time_mask: 8, frequency_mask: 8}")


def make_loaders(clap: Clap, *corpora: Corpus) -> dict[str, DataLoader]:
    """Training, validation and test as train.py makes them."""
    loaders = {}
    for kind in ("train", "val", "test"):
        dataset = ClapDataset(corpora, kind, sample_rate=clap.sample_rate, window=clap.window)
        loaders[kind] = make_loader(dataset, clap.collate, batch_size=3, num_workers=0, shuffle=kind == "train")
    return loaders


@pytest.fixture
def embedded_kinds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits that have been embedded so far."""
    kinds = []

    def embed(clap: Clap, loader: DataLoader):
        kinds.append(loader.dataset.kind)
        return embed_split(clap, loader)

    monkeypatch.setattr("clap.evaluation.evaluator.embed_split", embed)
    return kinds


def make_trainer(clap: Clap, loaders: dict[str, DataLoader], **evaluators: Evaluator) -> ClapTrainer:
    optimizer = torch.optim.AdamW(clap.parameters(), lr=1e-3)
    return ClapTrainer(*loaders.values(), clap, optimizer, SymmetricCrossEntropyLoss(), epochs=1, evaluators=evaluators)


def test_other_splits_are_embedded_once_for_all_evaluators(clap: Clap, tones: list[Path], embedded_kinds: list[str]):
    loaders = make_loaders(clap, Tones(tones))
    others = {"train": make_evaluation_loader(loaders["train"])}
    evaluate_split(clap, loaders["val"], {"one": ReadTrain(), "two": ReadTrain()}, other_loaders=others)
    assert embedded_kinds == ["val", "train"]


def test_split_that_no_evaluator_needs_is_not_embedded(clap: Clap, tones: list[Path], embedded_kinds: list[str]):
    loaders = make_loaders(clap, Tones(tones))
    others = {"train": make_evaluation_loader(loaders["train"])}
    evaluate_split(clap, loaders["val"], {"retrieval": Retrieval()}, other_loaders=others)
    assert embedded_kinds == ["val"]


def test_training_clips_are_embedded_as_inference_does(clap: Clap, tones: list[Path]):
    """In the order of the corpus, without augmentation, and with the middle of longer clips."""
    loaders = make_loaders(clap, Tones(tones))
    clap.train()
    split = embed_split(clap, make_evaluation_loader(loaders["train"]))
    assert [clip.id for clip in split.clips] == [f"train {i}" for i in range(4)]
    torch.testing.assert_close(split.audio_embedding, clap.get_audio_embeddings(tones[:4]))
    assert loaders["train"].dataset.training


@pytest.fixture
def batch_shapes(clap: Clap, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes (clips, seconds) of the batches embedded so far."""
    shapes, embed_audio = [], clap.embed_audio

    def embed(waveform: Tensor, lengths: Tensor, features: Tensor | None = None) -> Tensor:
        shapes.append((len(waveform), waveform.shape[1] / clap.sample_rate))
        return embed_audio(waveform, lengths, features)

    monkeypatch.setattr(clap, "embed_audio", embed)
    return shapes


def open_all(clap: Clap, tones: list[Path], batch_size: int) -> DataLoader:
    """Clips of 0.5 to 4 seconds, whole."""
    clips = [Clip(path.name, ("a tone",), path) for path in tones]
    corpus = Tones(tones)
    corpus.clips = lambda split: clips
    dataset = ClapDataset(corpus, "test", sample_rate=clap.sample_rate)
    return DataLoader(dataset, batch_size=batch_size, collate_fn=clap.collate)


def test_batches_have_clips_of_similar_length_and_results_their_order(
    clap: Clap, tones: list[Path], batch_shapes: list[tuple[int, int]]
):
    split = embed_split(clap, open_all(clap, tones, batch_size=3))
    assert batch_shapes == [(3, 4.0), (3, 2.5), (2, 1.0)]
    assert split.index == list(range(8))
    batch_shapes.clear()
    torch.testing.assert_close(split.audio_embedding, clap.get_audio_embeddings(tones), rtol=0, atol=1e-6)


def test_long_clips_are_embedded_in_smaller_batches(
    clap: Clap, tones: list[Path], batch_shapes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("clap.recordings.MINUTE", 1.0)
    embed_split(clap, open_all(clap, tones, batch_size=4))
    assert batch_shapes == [(1, 4.0), (1, 3.5), (1, 3.0), (1, 2.5), (2, 2.0), (2, 1.0)]


def test_batch_that_does_not_fit_into_memory_names_its_longest_clip(
    clap: Clap, tones: list[Path], monkeypatch: pytest.MonkeyPatch
):
    loader = open_all(clap, tones, batch_size=4)
    for error, message in (
        (torch.OutOfMemoryError("CUDA out of memory"), "a batch of .* the longest is .* with .* s; lower"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "does not fit into memory, the longest is"),
    ):
        monkeypatch.setattr(clap, "embed_audio", Mock(side_effect=error))
        with pytest.raises(ValueError, match=message):
            embed_split(clap, loader)
    monkeypatch.setattr(clap, "embed_audio", Mock(side_effect=RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        embed_split(clap, loader)


# Several processes


def describe(clap: Clap, loader: DataLoader) -> tuple:
    split = embed_split(clap, loader)
    return split.audio_embedding.tolist(), split.index, split.problems, split.is_cached.tolist()


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_batches_and_return_the_whole_split(clap: Clap, tones: list[Path], world_size: int):
    loader = open_all(clap, tones, batch_size=3)
    assert run_ranks(lambda rank: describe(clap, loader), world_size) == [describe(clap, loader)] * world_size


def test_process_without_a_batch_returns_the_whole_split(clap: Clap, tones: list[Path]):
    loader = open_all(clap, tones, batch_size=8)
    assert run_ranks(lambda rank: describe(clap, loader)) == [describe(clap, loader)] * 2


def test_processes_embed_different_batches(clap: Clap, tones: list[Path], batch_shapes: list[tuple[int, int]]):
    loader = open_all(clap, tones, batch_size=3)
    shapes = run_ranks(lambda rank: embed_split(clap, loader) and batch_shapes)
    assert shapes == [[(3, 4.0), (2, 1.0)], [(3, 2.5)]]


def test_headers_are_read_by_one_process(
    clap: Clap, tones: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"not audio")
    loader, read = open_all(clap, [*tones[:7], bad], batch_size=3), []
    loader.dataset.max_bad_fraction = 0.2
    monkeypatch.setattr("clap.corpus.read_header", lambda path: read.append(path) or read_header(path))

    def count(rank: int) -> tuple[int, str]:
        audio = digest_audio(embed_split(clap, loader))
        return len(read), audio

    (first, audio), (second, other) = run_ranks(count)
    assert (first, second) == (8, 0) and audio == other


def test_processes_agree_on_a_random_order(clap: Clap, tones: list[Path]):
    dataset = open_all(clap, tones, batch_size=3).dataset
    loader = DataLoader(dataset, batch_size=3, sampler=RandomSampler(dataset), collate_fn=clap.collate)

    def embed(rank: int) -> list[int]:
        torch.manual_seed(rank)
        return embed_split(clap, loader).index

    first, second = run_ranks(embed)
    assert first == second != sorted(first)


def test_every_process_embeds_the_batches_of_another_kind(clap: Clap, tones: list[Path]):
    dataset = open_all(clap, tones, batch_size=2).dataset
    loader = DataLoader(dataset, batch_sampler=[[0, 7], [1]], collate_fn=clap.collate)
    assert run_ranks(lambda rank: embed_split(clap, loader).index) == [[0, 1, 7]] * 2


@pytest.mark.parametrize(("allowed", "is_error"), [(0.2, False), (0.1, True)])
def test_bad_clips_of_one_process_count_on_all(clap: Clap, tones: list[Path], tmp_path: Path, allowed, is_error):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"not audio")
    loader = open_all(clap, [*tones[:7], bad], batch_size=3)
    loader.dataset.max_bad_fraction = allowed
    results = run_ranks(lambda rank: describe(clap, loader))
    assert [isinstance(result, ValueError) for result in results] == [is_error] * 2
    assert str(results[0]) == str(results[1]) and "bad.wav" in str(results[0])


def test_sampler_of_a_loader_chooses_clips_and_their_order(clap: Clap, tones: list[Path]):
    dataset = open_all(clap, tones, batch_size=2).dataset
    loader = DataLoader(dataset, batch_size=2, sampler=[5, 1, 3], collate_fn=clap.collate)
    assert embed_split(clap, loader).index == [5, 1, 3]


def test_batches_of_another_kind_are_kept(clap: Clap, tones: list[Path], batch_shapes: list[tuple[int, int]]):
    dataset = open_all(clap, tones, batch_size=2).dataset
    batches = [[0, 7], [1], [2, 3, 4, 5, 6]]
    split = embed_split(clap, DataLoader(dataset, batch_sampler=batches, collate_fn=clap.collate))
    assert [count for count, _ in batch_shapes] == [2, 1, 5] and split.index == list(range(8))


def test_evaluation_leaves_the_random_state_alone(clap: Clap, tones: list[Path]):
    loader = make_loaders(clap, Tones(tones))["val"]
    before = torch.get_rng_state()
    embed_split(clap, loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_loader_for_evaluation_has_the_first_captions(clap: Clap, tones: list[Path]):
    dataset = make_evaluation_loader(make_loaders(clap, Tones(tones))["train"]).dataset
    assert [dataset[index].caption for index in range(4)] == list(CAPTIONS[:4])


def test_evaluator_reads_the_training_clips_of_the_evaluated_corpus(clap: Clap, tones: list[Path]):
    loaders = make_loaders(clap, Tones(tones), Tones(tones[::-1], "others"))
    evaluator = ReadTrain()
    make_evaluation_loader(loaders["train"])
    assert loaders["train"].dataset.by_corpus  # cached, for training
    others = {"train": make_evaluation_loader(loaders["train"])}
    results = evaluate_split(clap, loaders["val"], {"read_train": evaluator}, other_loaders=others)
    assert [split.dataset.name for split in evaluator.given] == ["tones", "others"]
    assert [split.dataset.training for split in evaluator.given] == [False, False]
    assert results["others/read_train"].metrics == {"val/others/read_train/clips": 4.0}


def test_trainer_gives_the_training_split_to_validation_and_test(
    tiny_clap: Callable, tones: list[Path], tmp_path: Path, embedded_kinds: list[str]
):
    clap = tiny_clap()
    trainer = make_trainer(clap, make_loaders(clap, Tones(tones)), read_train=ReadTrain())
    metrics = trainer.train_and_eval(tmp_path)
    assert embedded_kinds == ["val", "train", "test", "train"]
    assert metrics == {"val/tones/read_train/clips": 4.0, "test/tones/read_train/clips": 4.0}


def test_reading_the_training_split_does_not_change_training(tiny_clap: Callable, tones: list[Path], tmp_path: Path):
    weights = []
    for name, evaluators in {"alone": {}, "both": {"read_train": ReadTrain()}}.items():
        clap = tiny_clap()
        loaders = make_loaders(clap, Tones(tones))
        make_trainer(clap, loaders, retrieval=Retrieval(), **evaluators).fit(tmp_path / name)
        weights.append(clap.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_protocol_names_the_other_splits(clap: Clap, tones: list[Path]):
    loaders = make_loaders(clap, Tones(tones))
    others = {"train": make_evaluation_loader(loaders["train"])}
    evaluators = {"read_train": ReadTrain(), "retrieval": Retrieval()}
    results = evaluate_split(clap, loaders["val"], evaluators, other_loaders=others)
    train = results["read_train"].protocol["other_splits"]["train"]
    assert train["clips"] == "4 of 4" and train["clip_manifest"] == loaders["train"].dataset.digest
    assert train["audio_manifest"] != results["read_train"].protocol["audio_manifest"]
    assert "other_splits" not in results["retrieval"].protocol


class Stored(Tones):
    """Clips without a path: two corpora have equal clips and other recordings."""

    def clips(self, split: str) -> list[Clip]:
        return [Clip(clip.id, clip.captions) for clip in super().clips(split)]

    def load(self, clip: Clip, **options: object) -> np.ndarray:
        return load_waveform(self.paths[int(clip.id.split()[-1])], options["sample_rate"])

    def read_header(self, clip: Clip) -> AudioHeader:
        return read_header(self.paths[int(clip.id.split()[-1])])


@pytest.mark.parametrize("kind", [Tones, Stored])
def test_protocol_of_a_corpus_in_a_mixture_is_its_own(
    clap: Clap, tones: list[Path], unreadable: Path, tmp_path: Path, kind: type[Tones]
):
    """Clips of the two corpora have the same ids, the recordings of the other one are shorter or damaged."""
    soundfile.write(tmp_path / "short.wav", 0.1 * np.ones(8000), 16_000)
    other = kind([*tones[:6], tmp_path / "short.wav", unreadable if kind is Tones else tmp_path / "short.wav"], "other")
    settings = DatasetSettings(max_bad_fraction=0.5)
    protocols = {}
    for corpora in ([kind(tones)], [kind(tones), other]):
        dataset = ClapDataset(corpora, "test", sample_rate=clap.sample_rate, settings=settings)
        loader = make_loader(dataset, clap.collate, batch_size=3, num_workers=0, shuffle=False)
        protocols |= {
            key: result.protocol for key, result in evaluate_split(clap, loader, {"retrieval": Retrieval()}).items()
        }
    assert protocols["retrieval"] == protocols["tones/retrieval"]
    assert len(protocols["other/retrieval"]["left_out"]) == (kind is Tones)


def test_evaluator_checks_every_split_that_it_reads(clap: Clap, tones: list[Path]):
    evaluator = ReadTrain()
    make_trainer(clap, make_loaders(clap, Tones(tones)), read_train=evaluator)
    assert evaluator.checked == [("tones", "val"), ("tones", "train"), ("tones", "test"), ("tones", "train")]


def test_corpus_without_the_needed_split_is_refused_before_training(clap: Clap, tones: list[Path]):
    loaders = make_loaders(clap, Tones(tones), Tones(tones, "others", train=False))
    message = r"evaluation read_train needs the train split of others, which has no clips; give .* or remove read_train"
    with pytest.raises(ValueError, match=message):
        make_trainer(clap, loaders, read_train=ReadTrain())


def test_evaluated_split_may_be_the_needed_one(clap: Clap, tones: list[Path], embedded_kinds: list[str]):
    loader = make_evaluation_loader(make_loaders(clap, Tones(tones))["train"])
    check_evaluators(loader.dataset, {"read_train": ReadTrain()})
    evaluate_split(clap, loader, {"read_train": ReadTrain()})
    assert embedded_kinds == ["train"]


def test_metrics_that_are_not_announced_are_refused(clap: Clap, tones: list[Path]):
    evaluator = ReadTrain()
    evaluator.metric_names = ("read_train/accuracy",)
    loader = make_evaluation_loader(make_loaders(clap, Tones(tones))["train"])
    with pytest.raises(ValueError, match="read_train returns the metrics read_train/clips; its metric_names are read_"):
        evaluate_split(clap, loader, {"read_train": evaluator})


def test_split_outside_of_needs_is_refused(clap: Clap, tones: list[Path]):
    loader = make_loaders(clap, Tones(tones))["val"]
    with pytest.raises(ValueError, match=r"splits\['train'\] is not one of val; add it to `needs`"):
        Splits(embed_split(clap, loader))["train"]


CONFIG = {
    "evaluation": {"retrieval": {"_target_": "clap.evaluation.retrieval.Retrieval"}},
    "trainer": {"monitor": None},
    "study": None,
}
CORPORA = {"val": ["tones"], "test": ["tones"]}


def test_metric_of_a_study_that_no_evaluator_computes_is_rejected():
    evaluators, known = build_evaluators(CONFIG), "test/tones/text_to_audio/recall_at_1"
    check_metrics(CONFIG | {"study": {"metrics": [known]}}, evaluators, CORPORA)
    with pytest.raises(ValueError, match=f"recal_at_1; did you mean {known}"):
        check_metrics(CONFIG | {"study": {"metrics": [known.replace("recall", "recal")]}}, evaluators, CORPORA)
    with pytest.raises(ValueError, match="the runs do not log loss; metrics: val/tones/"):
        check_metrics(CONFIG | {"study": {"metrics": ["loss"]}}, evaluators, CORPORA)


@pytest.mark.parametrize(
    "monitor", ["nonsense", "test/tones/text_to_audio/recall_at_1", "val/tones/text_to_audio/median_rank"]
)
def test_monitor_that_no_validation_computes_is_rejected(monitor: str):
    with pytest.raises(ValueError, match="is not one of val/tones/text_to_audio/mean_average_precision_at_10"):
        check_metrics(CONFIG | {"trainer": {"monitor": monitor}}, build_evaluators(CONFIG), CORPORA)


def test_monitor_is_ignored_without_validation():
    check_metrics(CONFIG | {"trainer": {"monitor": "nonsense"}}, build_evaluators(CONFIG), {"val": []})


def test_names_of_evaluators_and_metrics_are_checked(monkeypatch: pytest.MonkeyPatch):
    node = CONFIG["evaluation"]["retrieval"]
    with pytest.raises(ValueError, match="evaluation: 'a/b' cannot be part of a metric"):
        build_evaluators(CONFIG | {"evaluation": {"a/b": node}})
    monkeypatch.setattr(Retrieval, "metric_names", ("text_to_audio/recall (top 1)",))
    with pytest.raises(ValueError, match=r"metric_names of evaluation retrieval: 'recall \(top 1\)' cannot be part"):
        build_evaluators(CONFIG)


@pytest.mark.parametrize("name", ["x/y", "my set (v2)", "donn\u00e9es", "a:b", "", ".", " a", "a.", "x" * 101, None])
def test_name_of_a_corpus_that_a_metric_cannot_have_is_refused(name: str | None, tones: list[Path]):
    with pytest.raises(ValueError, match="name of Tones: .* cannot be part of a metric or file name"):
        ClapDataset([Tones(tones, name)], "train", sample_rate=16_000)


@pytest.mark.parametrize("name", ["my set", "a", "v1.2-b_c"])
def test_name_of_a_corpus_is_accepted(name: str, tones: list[Path]):
    assert ClapDataset([Tones(tones, name)], "train", sample_rate=16_000).names == [name]
