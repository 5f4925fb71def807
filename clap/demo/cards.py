"""The HTML of answers on the page: messages, players with a spectrogram, and scores of labels."""

import html
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from clap.demo.excerpt import Excerpt
from clap.plotting import PALETTE

LINES = 6  # labels in the plot over time, by their highest score; the first colors are readable on white and black
WIDTH, HEIGHT = 1000, 140  # of the plot, in units of its own


@dataclass(frozen=True)
class FoundSound:
    """A result of a search, from `start` to `end` seconds of a recording; `problem` replaces an excerpt if unreadable.

    `path` is relative to the folder of the index.
    """

    path: str
    score: float
    start: float
    end: float
    excerpt: Excerpt | None
    problem: str = ""


def escape(text: str | os.PathLike) -> str:
    """Text for HTML; undecodable bytes of file names become escapes."""
    return html.escape(os.fspath(text).encode("utf-8", errors="backslashreplace").decode())


def message(text: str, *, is_error: bool = True) -> str:
    """A box with a sentence."""
    return f'<div class="clap-message{" clap-error" if is_error else ""}" role="status">{escape(text)}</div>'


def show_sounds(sounds: Sequence[FoundSound], query: str) -> str:
    """Results of a search, best first."""
    scores = [sound.score for sound in sounds]
    cards = "".join(show_sound(rank, sound, scores) for rank, sound in enumerate(sounds, start=1))
    count = f"{len(sounds)} sound{'' if len(sounds) == 1 else 's'}"
    return f'<p class="clap-note">{count} closest to “{escape(query)}”</p><div class="clap-grid">{cards}</div>'


def show_sound(rank: int, sound: FoundSound, scores: Sequence[float]) -> str:
    """A card with rank, name, score and player."""
    path = Path(sound.path)
    folder = "" if path.parent == Path() else f'<div class="clap-folder">{escape(path.parent)}{os.sep}</div>'
    excerpt = sound.excerpt
    is_part = excerpt is not None and sound.end - sound.start < excerpt.end - excerpt.start - 0.05
    where = f"{clock(sound.start)} – {clock(sound.end)}" if excerpt is None or is_part or excerpt.start else ""
    body = message(sound.problem) if excerpt is None else show_player(excerpt, segment=(sound.start, sound.end))
    return (
        f'<article class="clap-card clap-sound"><header title="{escape(sound.path)}">'
        f'<span class="clap-rank">{rank}</span>'
        f'<div class="clap-name"><strong>{escape(path.name)}</strong>{folder}</div>'
        f'<div class="clap-score" title="cosine similarity">{sound.score:.3f}{show_bar(sound.score, scores)}</div>'
        f"</header>{body}<footer>{where}</footer></article>"
    )


def show_bar(score: float, scores: Sequence[float], color: str = "") -> str:
    """A bar from the lowest of the scores, or 0 if all are positive, to the highest."""
    low, high = min(0.0, *scores), max(scores)
    width = 100 * (score - low) / (high - low) if high > low else 0.0
    style = f"width:{width:.1f}%" + (f";background:{color}" if color else "")
    return f'<div class="clap-bar"><div style="{style}"></div></div>'


def show_player(excerpt: Excerpt, *, segment: tuple[float, float] | None = None, plot: str = "") -> str:
    """Spectrogram, plot and player of an excerpt; playback starts at the segment, which is framed."""
    duration = excerpt.end - excerpt.start
    start, end = segment or (excerpt.start, excerpt.end)
    left, right = (100 * min(max((at - excerpt.start) / duration, 0.0), 1.0) for at in (start, end))
    frame = ""
    if right - left < 99.5:
        frame = f'<div class="clap-segment" style="left:{left:.2f}%;width:{right - left:.2f}%"></div>'
    return (
        f'<div class="clap-player" data-duration="{duration:.3f}"><div class="clap-picture">'
        f'<img src="{address(excerpt.picture)}" alt="spectrogram">{plot}{frame}<div class="clap-playhead"></div></div>'
        f'<div class="clap-times"><span>{clock(excerpt.start)}</span><span>{clock(excerpt.end)}</span></div>'
        f'<audio controls preload="metadata" src="{address(excerpt.audio)}#t={max(start - excerpt.start, 0.0):.2f}">'
        "</audio></div>"
    )


def show_scores(
    name: str, excerpt: Excerpt, labels: Sequence[str], times: np.ndarray, scores: np.ndarray, notes: Sequence[str]
) -> str:
    """Scores of labels for a recording, the highest first, with a plot over time if it has several windows.

    times (n, 2) in seconds, scores (n, labels).
    """
    highest = scores.max(axis=0)
    order = np.argsort(-highest, kind="stable")
    colors = dict(zip(order.tolist(), PALETTE[:LINES], strict=False)) if len(times) > 1 else {}
    plot = draw_lines(times, scores, colors, excerpt.end) if colors else ""
    rows = ""
    for label in order.tolist():
        start = times[scores[:, label].argmax(), 0]
        seek = f'<button class="clap-seek" data-seek="{start:.2f}">▶ {clock(start)}</button>' if len(times) > 1 else ""
        dot = f'<i style="background:{colors[label]}"></i>' if label in colors else ""
        rows += (
            f'<tr><td class="clap-label">{dot}{escape(labels[label])}</td>'
            f"<td>{show_bar(highest[label], highest, colors.get(label, ''))}</td>"
            f'<td class="clap-number">{highest[label]:.3f}</td><td class="clap-number">{seek}</td></tr>'
        )
    what = "highest score and its window" if len(times) > 1 else "score"
    return (
        "".join(message(note, is_error=False) for note in notes)
        + f'<article class="clap-card clap-sound"><header><div class="clap-name"><strong>{escape(name)}</strong>'
        f'<div class="clap-folder">{clock(excerpt.end)}, {len(times)} window{"s" if len(times) > 1 else ""}</div></div>'
        f"</header>{show_player(excerpt, plot=plot)}"
        f'<table class="clap-table"><caption>{what}, cosine similarity</caption>{rows}</table></article>'
    )


def draw_lines(times: np.ndarray, scores: np.ndarray, colors: dict[int, str], duration: float) -> str:
    """SVG of scores over time, as wide as the spectrogram above it; a point is in the middle of its window."""
    shown = scores[:, list(colors)]
    low, high = float(shown.min()), float(shown.max())
    low, high = low - 0.05 * (high - low) - 1e-6, high + 0.05 * (high - low) + 1e-6
    x = times.mean(axis=1) / duration * WIDTH
    lines = "".join(
        f'<polyline points="{" ".join(points(x, (high - scores[:, label]) / (high - low) * HEIGHT))}" '
        f'style="stroke:{color}"/>'
        for label, color in reversed(colors.items())
    )
    zero = high / (high - low) * HEIGHT
    axis = f'<line x1="0" x2="{WIDTH}" y1="{zero:.1f}" y2="{zero:.1f}"/>' if 0 < zero < HEIGHT else ""
    return (
        f'<div class="clap-plot"><svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="scores over time">{axis}{lines}</svg><span>{high:.2f}</span><span>{low:.2f}</span></div>'
    )


def points(x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    """Coordinates of an SVG polyline."""
    return (f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def address(path: Path) -> str:
    """The address, relative to the page, of a file that the page may serve."""
    return f"gradio_api/file={quote(str(path))}"


def clock(seconds: float) -> str:
    """Seconds as 0:07.5, 1:02 or 1:00:05; tenths below a minute, of which the last digits are dropped if zero."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"
