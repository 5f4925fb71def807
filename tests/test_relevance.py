"""Annotated relevance: retrieval by a file of right answers equals plain loops, and invalid files are refused."""

import csv
from pathlib import Path

import pytest
from conftest import CAPTIONS
from retrieval_cases import ALL_METRICS, Tones, loop_metrics

from clap.corpus import Clip
from clap.dataset.clips import ClapDataset
from clap.dataset.dataset_settings import DatasetSettings
from clap.evaluation.embedded_split import EmbeddedSplit, Splits
from clap.evaluation.evaluator import run_evaluator
from clap.evaluation.relevance import Relevance
from clap.evaluation.results import Evaluation
from clap.evaluation.retrieval import Retrieval

LISTED = {0: [3, 1], 2: [2], 5: [0, 4, 5, 6], 7: [7, 1]}  # caption -> relevant clips, as DCASE 2025 annotates them
GRADES = {0: {0: 96, 3: 71, 5: 0}, 2: {2: 40.5}, 5: {1: 1, 4: 100, 5: 100}, 6: {0: 0}}


@pytest.fixture(scope="module")
def clap(tiny_clap):
    return tiny_clap()


@pytest.fixture(scope="module")
def clips(tones) -> list[Clip]:
    return [Clip(f"Tone {i} [a,b].wav", (CAPTIONS[i], f"again  {CAPTIONS[i]}"), tones[i]) for i in range(8)]


@pytest.fixture(scope="module")
def audio_embedding(clap, clips):
    return clap.get_audio_embeddings([clip.path for clip in clips])


def write_csv(path: Path, *rows: list[object]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def write_listed(path: Path, clips: list[Clip], listed: dict[int, list[int]] = LISTED) -> Path:
    names = {i: [clips[row].id for row in rows] for i, rows in listed.items()}
    return write_csv(path, ["query", "audio_filenames"], *([CAPTIONS[i], str(own)] for i, own in names.items()))


def write_grades(path: Path, clips: list[Clip]) -> Path:
    rows = [[CAPTIONS[i], clips[row].id, grade] for i, own in GRADES.items() for row, grade in own.items()]
    return write_csv(path, ["query", "audio_filename", "relevance"], *rows)


def evaluate(clap, clips: list[Clip], audio_embedding, path: Path | None, *, skipped: int | None = None) -> Evaluation:
    dataset = ClapDataset(Tones(clips), "test", sample_rate=16_000, window=None, settings=DatasetSettings())
    rows = [row for row in range(len(clips)) if row != skipped]
    split = EmbeddedSplit(dataset, audio_embedding[rows], rows, {} if skipped is None else {skipped: "unreadable"})
    evaluator = Retrieval(metrics=ALL_METRICS, relevance=path)
    evaluator.check(dataset)
    return run_evaluator(clap, Splits(split), "retrieval", evaluator)


def test_listed_clips_are_right_answers(tmp_path, clap, clips, audio_embedding):
    """The own clip is not, where the file does not list it; every caption of the file is one query."""
    found = evaluate(clap, clips, audio_embedding, write_listed(tmp_path / "a.csv", clips))
    scores = (audio_embedding @ clap.get_text_embeddings([CAPTIONS[i] for i in LISTED]).T).tolist()
    pairs = [(row, text) for text, rows in enumerate(LISTED.values()) for row in rows]
    expected = loop_metrics(scores, pairs, [1] * len(pairs), once=True)
    assert found.metrics == pytest.approx({f"test/tones/{name}": value for name, value in expected.items()})
    assert found.scores["test/tones/text_to_audio/recall_at_1"].clips.tolist() == list(LISTED)
    assert found.scores["test/tones/audio_to_text/recall_at_1"].clips.tolist() == [*range(8)]
    assert found.protocol["relevance"]["queries"] == "4 of 4" and not found.protocol["relevance"]["graded"]


def test_grades_order_right_answers(tmp_path, clap, clips, audio_embedding):
    """Pairs without a row and with grade 0 are wrong answers; a caption without a right answer is no query."""
    found = evaluate(clap, clips, audio_embedding, write_grades(tmp_path / "a.csv", clips))
    texts = [0, 2, 5]
    scores = (audio_embedding @ clap.get_text_embeddings([CAPTIONS[i] for i in texts]).T).tolist()
    graded = [(row, place, grade) for place, i in enumerate(texts) for row, grade in GRADES[i].items() if grade]
    expected = loop_metrics(scores, [pair[:2] for pair in graded], [pair[2] for pair in graded], once=True)
    assert found.metrics == pytest.approx({f"test/tones/{name}": value for name, value in expected.items()})
    assert found.protocol["relevance"] | {"manifest": ""} == {
        "queries": "3 of 4", "relevant_pairs": 6, "graded": True, "manifest": "",
    }  # fmt: skip


def test_skipped_clip_is_no_answer(tmp_path, clap, clips, audio_embedding):
    """Clip 2 is the only answer of its caption; the caption of a skipped clip counts for its best answer."""
    found = evaluate(clap, clips, audio_embedding, write_listed(tmp_path / "a.csv", clips), skipped=2)
    assert found.protocol["relevance"]["queries"] == "3 of 4"
    found = evaluate(clap, clips, audio_embedding, write_listed(tmp_path / "a.csv", clips), skipped=0)
    assert found.scores["test/tones/text_to_audio/recall_at_1"].clips.tolist() == [2, 1, 4, 6]


def test_hash_is_that_of_the_annotations(tmp_path, clap, clips, audio_embedding):
    paths = [write_listed(tmp_path / "a.csv", clips), write_listed(tmp_path / "b.csv", clips, {0: [3], 2: [2]})]
    paths += [write_listed(tmp_path / "c.csv", clips, dict(reversed(LISTED.items()))), None]
    first, fewer, reordered, without = (evaluate(clap, clips, audio_embedding, path).protocol["hash"] for path in paths)
    assert first == reordered and len({first, fewer, without}) == 3


def test_white_space_and_file_names_do_not_matter(tmp_path, clips):
    path = write_csv(
        tmp_path / "a.csv", ["query", "audio_filenames"], [f" again {CAPTIONS[1]} ", "['Tone 1 [a,b].wav ']"]
    )
    moved = [Clip(f"folder/{clip.id}", clip.captions, clip.path) for clip in clips]
    dataset = ClapDataset(Tones(moved), "test", sample_rate=16_000, window=None, settings=DatasetSettings())
    relevance = Relevance(path)
    relevance.check(dataset)
    found = relevance.gallery(dataset, dataset.clips)
    assert (found.texts, found.pair_clips, found.text_clips) == ([f"again  {CAPTIONS[1]}"], [1], [1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [["query", "files"], ["a", "['a']"]],
            "the columns are query, files; evaluation.retrieval.relevance reads query,",
        ),
        ([["query", "audio_filenames"], ["a", "a.wav"]], r"line 2: audio_filenames is 'a.wav'; give a list of names"),
        ([["query", "audio_filenames"], ["a", "[]"]], "line 2: audio_filenames is"),
        ([["query", "audio_filenames"], ["a", "__import__('os').getcwd()"]], "line 2: audio_filenames is"),
        ([["query", "audio_filenames"], ["a", "['x']"], ["a ", "['y']"]], "line 3: query is given twice"),
        ([["query", "audio_filenames"], [" ", "['x']"]], "line 2: query is empty"),
        ([["query", "audio_filename", "relevance"], ["a", "x", "high"]], "line 2: relevance is 'high'; give a number"),
        ([["query", "audio_filename", "relevance"], ["a", "x", "-1"]], "line 2: relevance is '-1'"),
        ([["query", "audio_filename", "relevance"], ["a", "x", "nan"]], "line 2: relevance is 'nan'"),
        ([["query", "audio_filename", "relevance"], ["a", "", "1"]], "line 2: audio_filename is empty"),
        (
            [["query", "audio_filename", "relevance"], ["a", "x", 1], ["a", "x", 2]],
            "line 3: x has a relevance for this",
        ),
        ([["query", "audio_filenames"]], "a.csv"),
    ],
)
def test_invalid_file_is_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        Relevance(write_csv(tmp_path / "a.csv", *rows))


def test_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="evaluation.retrieval.relevance=.*none.csv is not a file; give a CSV"):
        Retrieval(relevance=tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("query", "name", "message"),
    [
        (
            "something else",
            "Tone 1 [a,b].wav",
            r"line 2: 'something else' is not a caption of tones \(test\); annotate",
        ),
        (CAPTIONS[0], "Tone 9.wav", r"line 2: 'Tone 9.wav' is not a clip of tones \(test\); give ids"),
    ],
)
def test_unknown_caption_or_clip_is_refused(tmp_path, clips, query, name, message):
    dataset = ClapDataset(Tones(clips), "test", sample_rate=16_000, window=None, settings=DatasetSettings())
    path = write_csv(tmp_path / "a.csv", ["query", "audio_filenames"], [query, str([name])])
    with pytest.raises(ValueError, match=message):
        Retrieval(relevance=path).check(dataset)


def test_query_without_a_clip_is_refused(tmp_path, clips):
    path = write_listed(tmp_path / "a.csv", clips, {0: [3]})
    dataset = ClapDataset(Tones(clips), "test", sample_rate=16_000, window=None, settings=DatasetSettings())
    with pytest.raises(ValueError, match=r"no query has a relevant clip in tones \(test\)"):
        Relevance(path).gallery(dataset, clips[:2])
