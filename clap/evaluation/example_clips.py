"""Recordings of a few clips of a run beside the captions or classes that they retrieve, to listen to."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import soundfile

from clap.atomic import write_atomic
from clap.dataset.clips import ClapDataset
from clap.evaluation.clip_plots import RetrievedCaption, has_classes, retrieve, take_turns
from clap.model import Clap

MAX_CLIPS, MAX_SECONDS = 6, 10.0
PAGE = """<!doctype html><meta charset="utf-8"><title>Clips</title>
<style>body {{font: 14px sans-serif}} td, th {{padding: 6px 12px; text-align: left; vertical-align: top}}</style>
<table><tr><th>clip</th><th>recording</th><th>own {what}</th><th>best-scoring {what}</th></tr>
{rows}
</table>
"""


def write_example_clips(folder: Path, clap: Clap, dataset: ClapDataset) -> None:
    """Write a few clips of a dataset, at most ten seconds of each, as FLAC, and index.html, which plays them.

    The page has the recordings in it, because MLflow shows a page without the files beside it.
    """
    by_class = has_classes(dataset.clips)
    texts = sorted({label for clip in dataset.clips for label in clip.all_labels}) if by_class else dataset.captions
    texts = list(dict.fromkeys(texts))
    text_embedding = (clap.embed_classes(texts) if by_class else clap.get_text_embeddings(texts)).cpu()
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in take_turns(dataset.clips) if by_class else range(len(dataset)):
        item = dataset[index]
        if item.problem is not None:
            continue
        clip, name = dataset.clips[item.index], f"{len(rows) + 1}.flac"
        own = clip.all_labels if by_class else clip.captions
        scores = (clap.get_audio_embeddings(item.waveform, clap.sample_rate).cpu() @ text_embedding.T)[0]  # (texts,)
        sound = io.BytesIO()
        samples = item.waveform[: round(MAX_SECONDS * clap.sample_rate)]
        soundfile.write(sound, samples, clap.sample_rate, format="FLAC")
        write_atomic(folder / name, sound.getvalue())
        rows.append(format_row(f"{name}: {clip.id}", sound.getvalue(), own=own, best=retrieve(scores, texts, own)))
        if len(rows) == MAX_CLIPS:
            break
    page = PAGE.format(what="classes" if by_class else "captions", rows="\n".join(rows))
    write_atomic(folder / "index.html", page.encode())


def format_row(name: str, sound: bytes, *, own: Sequence[str], best: Sequence[RetrievedCaption]) -> str:
    """A row of the page."""
    player = f'<audio controls src="data:audio/flac;base64,{base64.b64encode(sound).decode()}"></audio>'
    retrieved = (f"{item.score:.2f} {'✓ ' * item.is_own}{html.escape(item.caption)}" for item in best)
    cells = (html.escape(name), player, "<br>".join(map(html.escape, own)), "<br>".join(retrieved))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
