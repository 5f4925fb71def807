"""Recordings of a run to listen to, with what they retrieve."""

from collections.abc import Callable
from pathlib import Path

import soundfile
from conftest import CAPTIONS

from clap import open_loader
from clap.corpus import Clip, Corpus
from clap.dataset.dataset_settings import DatasetSettings
from clap.evaluation.example_clips import format_row, write_example_clips
from clap.evaluation.retrieved_clips import MAX_RECORDINGS, RetrievedText, retrieve_clips


class Tones(Corpus):
    """Clips of the test split alone."""

    name = "tones"

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def clips(self, split: str) -> list[Clip]:
        captions = zip(CAPTIONS, self.paths, strict=True)
        return [Clip(path.stem, (text,), path) for text, path in captions] if split == "test" else []


def test_clips_are_written_with_the_captions_that_they_retrieve(tones: list[Path], tiny_clap: Callable, tmp_path: Path):
    clap, settings = tiny_clap(), DatasetSettings(num_workers=0)
    loader = open_loader(Tones(tones), "test", settings=settings, training=False, **clap.input_format)
    found = retrieve_clips(clap.eval(), loader.dataset)
    write_example_clips(tmp_path / "clips", found, sample_rate=clap.sample_rate)
    names = sorted(path.name for path in (tmp_path / "clips").iterdir())
    assert names == [*(f"{number}.flac" for number in range(1, MAX_RECORDINGS + 1)), "index.html"]
    info = soundfile.info(tmp_path / "clips" / "2.flac")
    assert (info.samplerate, 0 < info.duration <= 10.0) == (clap.sample_rate, True)
    page = (tmp_path / "clips" / "index.html").read_text(encoding="utf-8")
    assert page.count("<audio") == MAX_RECORDINGS
    assert all(caption in page for caption in CAPTIONS[:MAX_RECORDINGS])


def test_row_escapes_texts_and_marks_the_own_caption():
    best = [RetrievedText("a <b>", 0.5, is_own=True), RetrievedText("c", 0.25, is_own=False)]
    row = format_row("1.flac: <id>", b"fLaC", own=["a <b>"], best=best)
    assert row == (
        '<tr><td>1.flac: &lt;id&gt;</td><td><audio controls src="data:audio/flac;base64,ZkxhQw=="></audio></td>'
        "<td>a &lt;b&gt;</td><td>0.50 ✓ a &lt;b&gt;<br>0.25 c</td></tr>"
    )
