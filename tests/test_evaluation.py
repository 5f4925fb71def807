"""Retrieval and zero-shot numbers against plain loops, and the protocol that they carry."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import CAPTIONS, make_tone
from numpy.testing import assert_array_equal
from retrieval_cases import Tones

from clap.corpus import Clip
from clap.dataset.cache import WaveformCache
from clap.dataset.clips import ClapDataset
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.loader import make_loader
from clap.dataset.synthetic import Synthetic
from clap.evaluation.embedded_split import EmbeddedSplit, Splits
from clap.evaluation.evaluator import evaluate_split
from clap.evaluation.protocol import digest_audio
from clap.evaluation.results import hash_protocol, merge_metrics, write_results
from clap.evaluation.retrieval import Retrieval
from clap.evaluation.zero_shot import ZeroShot
from clap.waveform import load_waveform

NAMES = {Retrieval: "retrieval", ZeroShot: "zero_shot"}


@pytest.fixture(scope="module")
def clap(tiny_clap):
    return tiny_clap()


@pytest.fixture(scope="module")
def clips(tones) -> list[Clip]:
    """Eight clips with one to three captions and one of three labels each."""
    counts = [1 + i % 3 for i in range(8)]
    captions = [tuple(f"{CAPTIONS[i]} {'again ' * j}".strip() for j in range(counts[i])) for i in range(8)]
    return [Clip(f"clip {i}", captions[i], tones[i], ["dog", "rain", "siren"][i % 3]) for i in range(8)]


def make_dataset(clips: list[Clip], *, window: float | None = None, **settings) -> ClapDataset:
    return ClapDataset(Tones(clips), "test", sample_rate=16_000, window=window, settings=DatasetSettings(**settings))


def run(clap, clips: list[Clip], evaluator, *, batch_size: int = 4, **options):
    loader = make_loader(
        make_dataset(clips, **options), clap.collate, batch_size=batch_size, num_workers=0, shuffle=False
    )
    name = NAMES[type(evaluator)]
    return evaluate_split(clap, loader, {name: evaluator})[name]


def embedded(clap, clips: list[Clip]) -> Splits:
    embedding = clap.get_audio_embeddings([clip.path for clip in clips])
    return Splits(EmbeddedSplit(make_dataset(clips), embedding, list(range(len(clips))), {}))


def write_bad(folder) -> Clip:
    (folder / "bad.wav").write_bytes(b"not audio")
    return Clip("bad", ("nothing",), folder / "bad.wav", "dog")


# Retrieval


def test_text_to_audio_recall_is_that_of_a_loop(clap, clips):
    result = Retrieval()(clap, embedded(clap, clips))
    audio = clap.get_audio_embeddings([clip.path for clip in clips])
    ranks = []
    for row, clip in enumerate(clips):
        for caption in clip.captions:
            scores = audio @ clap.get_text_embeddings([caption])[0]
            ranks.append(sum((score >= scores[row]).item() for score in scores))
    assert_array_equal(result.per_query["text_to_audio_rank"], ranks)
    for k in (1, 5, 10):
        assert result.metrics[f"text_to_audio/recall_at_{k}"] == pytest.approx(np.mean(np.array(ranks) <= k))
    assert result.metrics["text_to_audio/median_rank"] == pytest.approx(np.median(ranks))
    expected = np.mean([1 / rank if rank <= 10 else 0 for rank in ranks])
    assert result.metrics["text_to_audio/mean_average_precision_at_10"] == pytest.approx(expected)


def test_audio_to_text_takes_the_best_caption_and_all_for_precision(clap, clips):
    result = Retrieval()(clap, embedded(clap, clips))
    audio = clap.get_audio_embeddings([clip.path for clip in clips])
    owners = [row for row, clip in enumerate(clips) for _ in clip.captions]
    text = clap.get_text_embeddings([caption for clip in clips for caption in clip.captions])
    best, precisions = [], []
    for row in range(len(clips)):
        order = (audio[row] @ text.T).argsort(descending=True).tolist()
        found = [rank for rank, column in enumerate(order, start=1) if owners[column] == row]
        best.append(found[0])
        hits = [(i + 1) / rank for i, rank in enumerate(found) if rank <= 10]
        precisions.append(sum(hits) / min(10, len(found)))
    assert_array_equal(result.per_query["audio_to_text_best_rank"], best)
    assert result.metrics["audio_to_text/recall_at_1"] == pytest.approx(np.mean(np.array(best) == 1))
    assert result.metrics["audio_to_text/mean_average_precision_at_10"] == pytest.approx(np.mean(precisions))


def label_captions(clips: list[Clip], *, from_labels: bool) -> list[Clip]:
    captions = [(f"the sound of {clip.label}",) for clip in clips]
    return [
        Clip(clip.id, own, clip.path, clip.label, captions_from_labels=from_labels)
        for clip, own in zip(clips, captions, strict=True)
    ]


def test_equal_captions_of_other_clips_count_against_the_model(clap, clips):
    """The published definition; the protocol has the number of captions that clips share."""
    result = Retrieval()(clap, embedded(clap, label_captions(clips, from_labels=False)))
    assert (result.per_query["audio_to_text_best_rank"] > 1).all()
    assert result.protocol["captions_of_several_clips"] == 3
    assert "captions_from_labels" not in result.protocol


def test_clips_with_equal_captions_from_labels_are_all_right(clap, clips):
    splits = embedded(clap, label_captions(clips, from_labels=True))
    splits.evaluated.audio_embedding = clap.get_text_embeddings([f"the sound of {clip.label}" for clip in clips])
    result = Retrieval()(clap, splits)
    assert set(result.metrics.values()) == {1.0}
    assert result.protocol["captions_from_labels"] == 8
    assert "all clips with an equal caption from labels are right" in result.protocol["text_to_audio"]


def test_retrieval_over_captions_from_labels_is_that_of_a_loop(clap, clips):
    labelled = label_captions(clips, from_labels=True)
    result = Retrieval()(clap, embedded(clap, labelled))
    names = ["dog", "rain", "siren"]
    audio = clap.get_audio_embeddings([clip.path for clip in clips])
    scores = audio @ clap.get_text_embeddings([f"the sound of {name}" for name in names]).T
    first, precisions = [], []
    for clip in clips:
        order = scores[:, names.index(clip.label)].argsort(descending=True).tolist()
        found = [rank for rank, row in enumerate(order, start=1) if clips[row].label == clip.label]
        first.append(found[0])
        precisions.append(np.mean([(i + 1) / rank for i, rank in enumerate(found)]))
    assert result.metrics["text_to_audio/recall_at_1"] == pytest.approx(np.mean(np.array(first) == 1))
    assert result.metrics["text_to_audio/median_rank"] == pytest.approx(np.median(first))
    assert result.metrics["text_to_audio/mean_average_precision_at_10"] == pytest.approx(np.mean(precisions))
    hits = scores.argmax(dim=1) == torch.tensor([names.index(clip.label) for clip in clips])
    assert result.metrics["audio_to_text/recall_at_1"] == pytest.approx(hits.double().mean().item())
    queries = result.scores["text_to_audio/recall_at_1"].clips  # those of one label count as queries of its first clip
    assert_array_equal(queries, [0, 1, 2, 0, 1, 2, 0, 1])


def test_other_captions_keep_their_definition_next_to_captions_from_labels(clap, clips):
    mixed = [*label_captions(clips[:3], from_labels=True), *label_captions(clips[3:], from_labels=False)]
    result = Retrieval()(clap, embedded(clap, mixed))
    assert result.per_query["text"].tolist() == list(range(8))


# Zero-shot


def test_accuracy_is_that_of_a_loop(clap, clips):
    templates = ["the sound of {}", "{} is heard"]
    result = ZeroShot(templates=templates)(clap, embedded(clap, clips))
    classes = []
    for name in ("dog", "rain", "siren"):
        prompts = clap.get_text_embeddings([template.format(name) for template in templates])
        classes.append(torch.nn.functional.normalize(prompts.mean(dim=0), dim=0))
    hits = []
    for clip in clips:
        scores = torch.stack(classes) @ clap.get_audio_embeddings([clip.path])[0]
        hits.append(["dog", "rain", "siren"][int(scores.argmax())] == clip.label)
    assert result.metrics["zero_shot/accuracy"] == pytest.approx(np.mean(hits))
    assert_array_equal(result.per_query["hit"], hits)


def test_log_likelihood_is_that_of_the_own_class_among_the_prompts(clap, clips):
    result = ZeroShot()(clap, embedded(clap, clips))
    audio = clap.get_audio_embeddings([clip.path for clip in clips])
    classes = clap.get_text_embeddings([f"the sound of {name}" for name in ("dog", "rain", "siren")])
    chances = clap.compute_similarity(audio, classes).softmax(dim=1)
    own = [chances[row, ("dog", "rain", "siren").index(clip.label)].log().item() for row, clip in enumerate(clips)]
    assert result.metrics["zero_shot/log_likelihood"] == pytest.approx(np.mean(own), abs=1e-5)


def test_report_of_zero_shot_counts_the_clips_of_its_accuracy(clap, clips, tmp_path):
    result = run(clap, clips, ZeroShot())
    ZeroShot().write_report(result, tmp_path / "report")
    assert (tmp_path / "report" / "confusion.png").stat().st_size
    names, *rows = list(csv.reader((tmp_path / "report" / "confusion.csv").open()))
    confusion = np.array([row[1:] for row in rows], dtype=int)
    assert names[1:] == ["dog", "rain", "siren"] and confusion.sum(axis=1).tolist() == [3, 3, 2]
    assert confusion.trace() / 8 == result.metrics["test/tones/zero_shot/accuracy"]


def test_perfect_model_has_accuracy_one(clap, clips):
    splits = embedded(clap, clips)
    splits.evaluated.audio_embedding = clap.get_text_embeddings([f"the sound of {clip.label}" for clip in clips])
    assert ZeroShot()(clap, splits).metrics["zero_shot/accuracy"] == 1.0


def test_clips_without_label_are_not_queries(clap, clips):
    some = [*clips[:5], *(Clip(clip.id, clip.captions, clip.path) for clip in clips[5:])]
    result = ZeroShot()(clap, embedded(clap, some))
    assert len(result.per_query["hit"]) == result.protocol["clips_with_label"] == 5


def test_class_of_a_missing_clip_stays_a_choice(clap, clips, tmp_path):
    gone = Clip("gone", ("x",), tmp_path / "gone.wav", "wind")
    assert "wind" in run(clap, [*clips, gone], ZeroShot(), max_bad_fraction=0.5).protocol["class_names"]


def test_no_labels_at_all_is_an_error(clap, clips):
    bare = [Clip(clip.id, clip.captions, clip.path) for clip in clips]
    with pytest.raises(ValueError, match=r"no clip of tones \(test\) has a label; choose evaluation=\[retrieval\]"):
        ZeroShot()(clap, embedded(clap, bare))


@pytest.mark.parametrize("templates", [[], ["a dog"]])
def test_template_needs_room_for_the_class(templates):
    with pytest.raises(ValueError, match="each needs {} for the class; set evaluation.zero_shot.templates"):
        ZeroShot(templates=templates)


# Splits


@pytest.mark.parametrize("fusion", ["none", "mean", "aff"])
def test_batch_size_changes_no_number(tiny_clap, clips, fusion):
    clap = tiny_clap(f"fusion={fusion}")
    one, many = (run(clap, clips, Retrieval(), batch_size=size, window=clap.window) for size in (1, 16))
    assert one.metrics == pytest.approx(many.metrics)


def test_files_have_the_embedding_of_inference(clap, clips):
    """evaluate.py and get_audio_embeddings agree on a file."""
    result = run(clap, clips, Retrieval(), window=clap.window)
    assert result.metrics == {
        f"test/tones/{name}": value for name, value in Retrieval()(clap, embedded(clap, clips)).metrics.items()
    }


def test_metric_names_start_with_split_and_dataset(clap, clips):
    assert list(run(clap, clips, ZeroShot()).metrics) == [
        "test/tones/zero_shot/accuracy",
        "test/tones/zero_shot/log_likelihood",
    ]


def test_training_mode_is_restored(clap, clips):
    clap.train()
    run(clap, clips, Retrieval())
    assert clap.training


def test_protocol_describes_the_metric(clap, clips):
    protocol = run(clap, clips, Retrieval()).protocol
    expected = {
        "dataset": "tones",
        "split": "test",
        "clips": "8 of 8",
        "left_out": {},
        "clip_manifest": make_dataset(clips).digest,
        "windows": "as the model was trained",
        "evaluator": "retrieval",
        "captions_per_clip": [1, 2, 3],
        "captions_of_several_clips": 0,
    }
    assert {key: protocol[key] for key in expected} == expected


def test_protocols_differ_where_their_hashes_do(clap, clips):
    one, again, fewer = (run(clap, chosen, Retrieval()).protocol for chosen in (clips, clips, clips[1:]))
    assert one["hash"] == again["hash"] != fewer["hash"]


def copy_clips(clips: list[Clip], folder: Path, sample_rate: int = 16_000) -> list[Clip]:
    """The recordings in another folder, at their own rate of 16 kHz or resampled."""
    folder.mkdir()
    for clip in clips:
        if sample_rate == 16_000:
            shutil.copy(clip.path, folder)
        else:
            waveform = load_waveform(clip.path, sample_rate)
            soundfile.write(folder / clip.path.name, waveform, sample_rate, subtype="FLOAT")
    return [replace(clip, path=folder / clip.path.name) for clip in clips]


def hash_of(clap, clips: list[Clip], **options) -> str:
    return run(clap, clips, Retrieval(), **options).protocol["hash"]


def test_other_sample_rate_is_another_protocol_and_other_folder_is_not(clap, clips, tmp_path):
    whole = hash_of(clap, clips)
    assert hash_of(clap, copy_clips(clips, tmp_path / "copy")) == whole
    assert hash_of(clap, copy_clips(clips, tmp_path / "8k", 8_000)) != whole


def test_shortened_and_recoded_recordings_are_another_protocol(clap, clips, tmp_path):
    for number, (stop, subtype) in enumerate([(-1, "FLOAT"), (None, "PCM_16")]):
        copies = copy_clips(clips, tmp_path / str(number))
        waveform, rate = soundfile.read(copies[3].path, dtype="float32")
        soundfile.write(copies[3].path, waveform[:stop], rate, subtype=subtype)
        assert hash_of(clap, copies) != hash_of(clap, clips)


def test_cache_is_another_protocol_where_it_is_used(clap, clips, tmp_path, monkeypatch):
    cached = run(clap, clips, Retrieval(), cache=str(tmp_path)).protocol
    assert cached["cached_in_16_bits"] == "8 of 8"
    whole = hash_of(clap, clips)
    assert cached["hash"] != whole
    monkeypatch.setattr(WaveformCache, "find_samples", lambda *arguments, **options: None)  # a read-only folder
    assert hash_of(clap, clips, cache=str(tmp_path)) == whole


def test_length_to_which_a_corpus_cuts_its_files_is_another_protocol(clap, clips, monkeypatch):
    whole = hash_of(clap, clips)
    monkeypatch.setattr(Tones, "clip_duration", 1.0)
    protocol = run(clap, clips, Retrieval()).protocol
    assert protocol["cut_to_seconds"] == [1.0] and protocol["hash"] != whole


@pytest.mark.parametrize("change", [{"min_duration": 5.0}, {"max_duration": 8.0}, {"seed": 1}])
def test_other_scenes_are_another_protocol(change):
    """Also with equal ids, captions and labels."""
    digests = []
    for options in ({}, change):
        corpus = Synthetic(num_train=0, num_val=0, num_test=3, **options)
        dataset = ClapDataset(corpus, "test", sample_rate=16_000)
        digests.append(digest_audio(EmbeddedSplit(dataset, torch.zeros(3, 1), [0, 1, 2], {})))
    assert digests[0] != digests[1]


def test_definition_of_an_evaluator_is_in_the_hash(clap, clips):
    class Redefined(Retrieval):
        definition = 7

    loader = make_loader(make_dataset(clips), clap.collate, batch_size=4, num_workers=0, shuffle=False)
    protocols = [
        evaluate_split(clap, loader, {"x": evaluator})["x"].protocol for evaluator in (Retrieval(), Redefined())
    ]
    assert [protocol["definition"] for protocol in protocols] == [1, 7]
    assert protocols[0]["hash"] != protocols[1]["hash"]


def test_commit_is_recorded_beside_the_hash(clap, clips, monkeypatch):
    protocols = []
    for commit in ("abc", "def"):
        monkeypatch.setattr("clap.evaluation.evaluator.describe_code", lambda commit=commit: {"commit": commit})
        protocols.append(run(clap, clips, Retrieval()).protocol)
    assert [protocol["recorded_by"]["commit"] for protocol in protocols] == ["abc", "def"]
    assert protocols[0]["hash"] == protocols[1]["hash"]


def test_wording_of_a_problem_is_not_in_the_hash(clap, clips):
    protocol = run(clap, clips, Retrieval()).protocol
    hashes = [hash_protocol(protocol | {"left_out": left}) for left in ({"a": "x"}, {"a": "y"}, {"b": "x"})]
    assert hashes[0] == hashes[1] != hashes[2]


def test_overridden_windows_enter_the_protocol(tiny_clap, clips):
    clap = tiny_clap()
    clap.set_windows("mean")
    assert run(clap, clips, Retrieval()).protocol["windows"] == "mean"


def test_skipped_clips_are_counted_and_named(clap, clips, tmp_path):
    gone = Clip("gone", ("x",), tmp_path / "gone.wav")
    protocol = run(clap, [*clips, write_bad(tmp_path), gone], Retrieval(), max_bad_fraction=0.2).protocol
    assert protocol["clips"] == "8 of 10"
    assert protocol["left_out"]["gone"] == "missing" and "cannot be decoded" in protocol["left_out"]["bad"]


def test_folder_of_the_recordings_is_not_in_the_protocol(clap, clips, tmp_path):
    (tmp_path / "other").mkdir()
    bad = [write_bad(folder) for folder in (tmp_path, tmp_path / "other")]
    one, other = (run(clap, [*clips, clip], Retrieval(), max_bad_fraction=0.2).protocol for clip in bad)
    assert one["hash"] == other["hash"]
    assert one["left_out"]["bad"].startswith("cannot be decoded")


def test_too_many_skipped_clips_stop(clap, clips, tmp_path):
    with pytest.raises(
        ValueError, match=r"1 of 9 clips of tones \(test\) cannot be used, the first is bad \(.*bad.wav"
    ):
        run(clap, [*clips, write_bad(tmp_path)], Retrieval(), max_bad_fraction=0.1)


def test_no_usable_clip_stops_whatever_the_fraction(clap, tmp_path):
    with pytest.raises(ValueError, match="1 of 1 clips"):
        run(clap, [write_bad(tmp_path)], Retrieval(), max_bad_fraction=1.0)


# Scores


@pytest.mark.parametrize("evaluator", [Retrieval(), ZeroShot()], ids=["retrieval", "zero_shot"])
def test_metrics_are_the_means_of_their_scores(clap, clips, evaluator):
    result = run(clap, clips, evaluator)
    assert result.metrics.keys() - result.scores.keys() == {
        name for name in result.metrics if name.endswith(("median_rank", "log_likelihood"))
    }
    for metric, scores in result.scores.items():
        assert scores.mean == pytest.approx(result.metrics[metric], abs=1e-12)


def test_scores_belong_to_the_clip_of_their_query(clap, clips):
    result = run(clap, clips, Retrieval())
    owners = [row for row, clip in enumerate(clips) for _ in clip.captions]
    assert result.clip_ids == [clip.id for clip in clips]
    assert_array_equal(result.scores["test/tones/text_to_audio/recall_at_1"].clips, owners)
    assert_array_equal(result.scores["test/tones/audio_to_text/recall_at_1"].clips, range(8))
    ranks = result.per_query["text_to_audio_rank"]
    assert_array_equal(result.scores["test/tones/text_to_audio/recall_at_5"].values, ranks <= 5)


def test_scores_of_zero_shot_are_the_hits_of_labelled_clips(clap, clips):
    some = [*(Clip(clip.id, clip.captions, clip.path) for clip in clips[:3]), *clips[3:]]
    result = run(clap, some, ZeroShot())
    assert result.clip_ids == [clip.id for clip in clips[3:]]
    scores = result.scores["test/tones/zero_shot/accuracy"]
    assert_array_equal(scores.values, result.per_query["hit"])
    assert_array_equal(scores.clips, range(5))


# Files


def test_per_query_values_are_read_back(clap, clips, tmp_path):
    result = run(clap, clips, Retrieval())
    write_results(tmp_path / "evaluation", {"retrieval": result})
    with np.load(tmp_path / "evaluation" / "test-tones-retrieval.npz", allow_pickle=False) as stored:
        assert stored["clip_id"].tolist() == [clip.id for clip in clips]
        recall = np.mean(stored["text_to_audio_rank"] <= 1)
    assert recall == pytest.approx(result.metrics["test/tones/text_to_audio/recall_at_1"])


def test_protocols_of_other_evaluators_are_kept(clap, clips, tmp_path):
    write_results(tmp_path, {"retrieval": run(clap, clips, Retrieval())})
    write_results(tmp_path, {"zero_shot": run(clap, clips, ZeroShot())})
    protocols = json.loads((tmp_path / "protocol.json").read_text())
    assert set(protocols) == {"test-tones-retrieval", "test-tones-zero_shot"}


def test_metrics_of_all_evaluators_are_merged(clap, clips):
    results = {"retrieval": run(clap, clips, Retrieval()), "zero_shot": run(clap, clips, ZeroShot())}
    assert len(merge_metrics(results)) == sum(len(result.metrics) for result in results.values())


def test_mixed_rates_and_channels_are_fine(clap, clips, tmp_path):
    soundfile.write(tmp_path / "a.flac", np.stack([make_tone(300.0, 1.0, sample_rate=44_100)] * 2, axis=1), 44_100)
    assert run(clap, [*clips, Clip("a", ("x",), tmp_path / "a.flac")], Retrieval()).protocol["clips"] == "9 of 9"


# Several corpora


def evaluate_two(clap, first: list[Clip], second: list[Clip], **options):
    corpora = [Tones(first), Tones(second)]
    corpora[1].name = "others"
    dataset = ClapDataset(corpora, "test", sample_rate=16_000, settings=DatasetSettings(**options))
    loader = make_loader(dataset, clap.collate, batch_size=4, num_workers=0, shuffle=False)
    return evaluate_split(clap, loader, {"retrieval": Retrieval()})


def test_each_corpus_is_evaluated_as_if_it_were_alone(clap, clips):
    together = evaluate_two(clap, clips[:5], clips[5:])
    assert list(together) == ["tones/retrieval", "others/retrieval"]
    alone = run(clap, clips[:5], Retrieval())
    assert together["tones/retrieval"].protocol == alone.protocol
    assert merge_metrics(together).items() >= alone.metrics.items()
    assert {name.split("/")[1] for name in merge_metrics(together)} == {"tones", "others"}


def test_corpora_have_files_of_their_own(clap, clips, tmp_path):
    write_results(tmp_path, evaluate_two(clap, clips[:5], clips[5:]))
    assert {path.name for path in tmp_path.glob("*.npz")} == {"test-tones-retrieval.npz", "test-others-retrieval.npz"}


def test_unreadable_clip_is_counted_where_it_belongs(clap, clips, tmp_path):
    results = evaluate_two(clap, clips[:5], [*clips[5:], write_bad(tmp_path)], max_bad_fraction=0.5)
    assert results["tones/retrieval"].protocol["clips"] == "5 of 5"
    assert results["others/retrieval"].protocol["clips"] == "3 of 4"
    assert list(results["others/retrieval"].protocol["left_out"]) == ["bad"]


def test_protocol_has_the_number_of_published_clips(clap, clips, monkeypatch):
    assert "published_clips" not in run(clap, clips, Retrieval()).protocol
    monkeypatch.setattr(Tones, "counts", {"test": 975})
    protocol = run(clap, clips, Retrieval()).protocol
    assert (protocol["clips"], protocol["published_clips"]) == ("8 of 8", 975)
