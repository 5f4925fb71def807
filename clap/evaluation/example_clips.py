"""Recordings of a few clips of a run next to the captions or classes that they retrieve, to listen to."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import soundfile

from clap.atomic import write_atomic
from clap.evaluation.retrieved_clips import RetrievedClips, RetrievedText

MAX_SECONDS = 10.0  # of a recording
PAGE = """<!doctype html><meta charset="utf-8"><title>Clips</title>
<style>body {{font: 14px sans-serif}} td, th {{padding: 6px 12px; text-align: left; vertical-align: top}}</style>
<table><tr><th>clip</th><th>recording</th><th>own {what}</th><th>best-scoring {what}</th></tr>
{rows}
</table>
"""


def write_example_clips(folder: Path, found: RetrievedClips, *, sample_rate: int) -> None:
    """Write the recordings, at most ten seconds of each, as FLAC, and index.html, which plays them.

    The page has the recordings in it, because MLflow shows a page without the files next to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for item, clip, own, best in zip(found.items, found.clips, found.own(), found.retrieved(), strict=False):
        name, sound = f"{len(rows) + 1}.flac", io.BytesIO()
        soundfile.write(sound, item.waveform[: round(MAX_SECONDS * sample_rate)], sample_rate, format="FLAC")
        write_atomic(folder / name, sound.getvalue())
        rows.append(format_row(f"{name}: {clip.id}", sound.getvalue(), own=own, best=best))
    page = PAGE.format(what="classes" if found.by_class else "captions", rows="\n".join(rows))
    write_atomic(folder / "index.html", page.encode())


def format_row(name: str, sound: bytes, *, own: Sequence[str], best: Sequence[RetrievedText]) -> str:
    """A row of the page."""
    player = f'<audio controls src="data:audio/flac;base64,{base64.b64encode(sound).decode()}"></audio>'
    retrieved = (f"{item.score:.2f} {'✓ ' * item.is_own}{html.escape(item.text)}" for item in best)
    cells = (html.escape(name), player, "<br>".join(map(html.escape, own)), "<br>".join(retrieved))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
