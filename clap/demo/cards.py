"""The HTML of answers on the page: messages, players with a spectrogram, and scores of labels."""

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from clap.demo.excerpt import Excerpt

TRACKS = 12  # labels in the plot over time, those with the highest scores
WIDTH, HEIGHT = 1000, 100  # of a track, in units of its own


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


def show_notes(notes: Sequence[str]) -> str:
    return "".join(message(note, is_error=False) for note in notes)


def show_sounds(sounds: Sequence[FoundSound], query: str, notes: Sequence[str] = ()) -> str:
    """Results of a search, best first."""
    scores = [sound.score for sound in sounds]
    cards = "".join(show_sound(rank, sound, scores) for rank, sound in enumerate(sounds, start=1))
    count = f"{len(sounds)} sound{'' if len(sounds) == 1 else 's'}"
    heading = f'<p class="clap-note">{count} closest to “{escape(query)}”</p>'
    return show_notes(notes) + heading + f'<div class="clap-grid">{cards}</div>'


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


def show_bar(score: float, scores: Sequence[float]) -> str:
    """A bar from the lowest of the scores, or 0 if all are positive, to the highest."""
    low, high = min(0.0, *scores), max(scores)
    width = 100 * (score - low) / (high - low) if high > low else 0.0
    return f'<div class="clap-bar"><div style="width:{width:.1f}%"></div></div>'


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
    is_long, highest = len(times) > 1, scores.max(axis=0)
    order = np.argsort(-highest, kind="stable").tolist()
    shown = order[:TRACKS]
    plot = draw_tracks(times, scores[:, shown], [labels[label] for label in shown], excerpt.end) if is_long else ""
    rows = ""
    for label in order:
        start = times[scores[:, label].argmax(), 0]
        seek = f'<button class="clap-seek" data-seek="{start:.2f}">▶ {clock(start)}</button>' if is_long else ""
        rows += (
            f'<tr><td class="clap-label">{escape(labels[label])}</td><td>{show_bar(highest[label], highest)}</td>'
            f'<td class="clap-number">{highest[label]:.3f}</td><td class="clap-number">{seek}</td></tr>'
        )
    what = "highest score over time, and where" if is_long else "score"
    return (
        f'{show_notes(notes)}<article class="clap-card clap-sound"><header>'
        f'<div class="clap-name"><strong>{escape(name)}</strong>'
        f'<div class="clap-folder">{clock(excerpt.end)}, {len(times)} window{"s" if is_long else ""}</div></div>'
        f"</header>{show_player(excerpt, plot=plot)}"
        f'<table class="clap-table"><caption>{what}, cosine similarity</caption>{rows}</table></article>'
    )


def draw_tracks(times: np.ndarray, scores: np.ndarray, names: Sequence[str], duration: float) -> str:
    """An SVG of each label's score over time, one below the other, as wide as the spectrogram above them.

    scores (n, labels) at the middle of their windows; all labels have the same scale.
    """
    low, high = float(scores.min()), float(scores.max())
    x = times.mean(axis=1) / duration * WIDTH
    heights = (scores - low) / max(high - low, 1e-6) * HEIGHT
    tracks = ""
    for name, height in zip(names, heights.T, strict=True):
        corners = [(0.0, 0.0), (0.0, height[0]), *zip(x, height, strict=True), (WIDTH, height[-1]), (WIDTH, 0.0)]
        points = " ".join(f"{across:.1f},{HEIGHT - up:.1f}" for across, up in corners)
        tracks += (
            f'<div class="clap-track"><svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none">'
            f'<polygon points="{points}"/></svg><span>{escape(name)}</span></div>'
        )
    return tracks


def address(path: Path) -> str:
    """The address, relative to the page, of a file that the page may serve."""
    return f"gradio_api/file={quote(str(path))}"


def clock(seconds: float) -> str:
    """Seconds as 7.5 s, 1:02 or 1:00:05."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"
