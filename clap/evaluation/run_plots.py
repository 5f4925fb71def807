"""Plots of a run: training curves, validation metrics, similarity matrix, log-mels with retrieved captions.

Every function writes one PNG.
"""

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter
from torch import Tensor

from clap.audio import mel_frequencies
from clap.audio_encoder.base import LogMelEncoder
from clap.dataset.clips import ClapDataset, Item
from clap.model import Clap
from clap.plotting import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    draw_curve,
    new_figure,
    save_placeholder,
    save_png,
    style_axes,
)
from clap.run_folder import HISTORY, read_history

TRAINING_PANELS = {  # metric: axis label, colour, whether it is noisy
    "train/loss": ("loss", BLUE, True),
    "train/learning_rate": ("learning rate", ORANGE, False),
    "train/logit_scale": ("logit scale", GREEN, False),
    "train/clips_per_second": ("clips / s", PURPLE, True),
}
QUALITY_CURVES = {  # last part of a metric's name: legend, colour
    "recall_at_1": ("recall at 1", BLUE),
    "recall_at_5": ("recall at 5", ORANGE),
    "recall_at_10": ("recall at 10", GREEN),
    "mean_average_precision_at_10": ("mAP at 10", RED),
    "accuracy": ("accuracy", PURPLE),
}
FREQUENCY_TICKS = (100, 250, 500, 1000, 2000, 4000, 8000, 16000)  # Hz
MAX_PANELS = 6  # clips whose log-mel is drawn
MAX_MATRIX = 64  # clips that a similarity matrix shows
MAX_LABELS = 24  # clips up to which its rows and columns are labelled
RANGE_DB = 80.0  # below the loudest cell, log-mels are drawn black
CAPTION_WIDTH = 52  # characters on a line under a log-mel panel
CAPTION_LINES = 2


@dataclass(frozen=True)
class RetrievedCaption:
    """One caption that a clip retrieved, and whether it belongs to the clip."""

    caption: str
    score: float
    is_own: bool


def plot_run(run_dir: Path, clap: Clap, dataset: ClapDataset) -> None:
    """All plots of a run: its curves, and the captions that a few clips of `dataset` retrieve."""
    folder, history = run_dir / "plots", read_history(run_dir / HISTORY)
    plot_training_curves(history, folder / "training.png")
    plot_recall_curves(history, folder / "quality.png")
    items, clips, rows = [], [], [torch.empty(0, clap.embed_dim)]
    for index in range(min(len(dataset), MAX_MATRIX)):  # one at a time: a fusion reads whole clips, which may be long
        item = dataset[index]
        if item.problem is not None:
            continue
        clips.append(dataset.clips[item.index])
        rows.append(clap.get_audio_embeddings(item.waveform, clap.sample_rate).cpu())
        if len(items) < MAX_PANELS:
            items.append(item)
    audio = torch.cat(rows)
    captions = [clip.captions[0] for clip in clips]
    text = clap.get_text_embeddings(captions).cpu()
    plot_similarity(audio @ text.T, folder / "similarity.png", captions=captions, clip_ids=[clip.id for clip in clips])
    if isinstance(clap.audio_encoder, LogMelEncoder):
        plot_retrieved(folder / "retrieved.png", clap, items=items, audio=audio, dataset=dataset)


def plot_retrieved(path: Path, clap: Clap, *, items: Sequence[Item], audio: Tensor, dataset: ClapDataset) -> None:
    """Log-mels of a few clips above the captions that they retrieve from the whole split."""
    gallery = list(dict.fromkeys(dataset.captions))
    scores = audio[: len(items)] @ clap.get_text_embeddings(gallery).cpu().T  # (items, gallery)
    frontend = clap.audio_encoder.frontend
    log_mels, captions, retrieved = [], [], []
    for item, row in zip(items, scores, strict=True):
        own = dataset.clips[item.index].captions
        log_mels.append(frontend.to("cpu")(torch.from_numpy(item.waveform)[None])[0])
        captions.append(own[0])
        best = row.topk(min(3, len(gallery)))
        retrieved.append(
            [RetrievedCaption(gallery[i], s, gallery[i] in own) for s, i in zip(*map(Tensor.tolist, best), strict=True)]
        )
    frontend.to(clap.device)
    plot_log_mels(
        log_mels,
        path,
        captions=captions,
        retrieved=retrieved,
        sample_rate=frontend.sample_rate,
        hop_length=frontend.hop_length,
        f_min=frontend.f_min,
        f_max=frontend.f_max,
        mel_scale=frontend.mel_scale,
    )


def plot_training_curves(history: Sequence[dict], path: Path) -> None:
    """Loss, learning rate, logit scale and speed by step, one panel each.

    Args:
        history: [{"step": int, "metrics": {name: value}}], as in metrics.jsonl.
    """
    names = [name for name in TRAINING_PANELS if any(name in entry["metrics"] for entry in history)]
    if not names:
        return save_placeholder(path, title="Training", reason="no training metric has been logged")
    rest = names[1:]
    figure = new_figure(9.0, 4.0 + (2.4 if rest else 0.0), title="Training")
    grid = figure.add_gridspec(2 if rest else 1, max(len(rest), 1), height_ratios=[1.6, 1.0] if rest else None)
    cells = [grid[0, :]] + [grid[1, column] for column in range(len(rest))]
    for name, cell in zip(names, cells, strict=True):
        axes = figure.add_subplot(cell)
        label, color, is_noisy = TRAINING_PANELS[name]
        draw_curve(axes, *select_curve(history, name), color=color, is_noisy=is_noisy)
        style_axes(axes, xlabel="step", ylabel=label)
    return save_png(figure, path)


def plot_recall_curves(history: Sequence[dict], path: Path) -> None:
    """Recall, mAP and accuracy of validation by step: one panel for each data set and direction or task.

    Args:
        history: [{"step": int, "metrics": {name: value}}], as in metrics.jsonl; values are fractions.
    """
    panels = group_quality(history)
    if not panels:
        return save_placeholder(path, title="Validation", reason="no validation metric has been logged")
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = new_figure(5.0 * columns + 0.5, 3.8 * rows + 0.4, title="Validation")
    for axes, (prefix, names) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels.items(), strict=False):
        for name in names:
            label, color = QUALITY_CURVES[name.rpartition("/")[2]]
            axes.plot(*select_curve(history, name), color=color, marker="o", markersize=4, label=label, clip_on=False)
        axes.set_title(" · ".join(prefix.split("/")).replace("_", " "), fontsize=11, color=INK)
        axes.set_ylim(0.0, 1.0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        style_axes(axes, xlabel="step", ylabel="share of queries")
        axes.legend(fontsize=9, framealpha=0.8, edgecolor="none")
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    return save_png(figure, path)


def plot_similarity(similarity: Tensor, path: Path, *, captions: Sequence[str], clip_ids: Sequence[str]) -> None:
    """Cosine similarity of clips (rows) and one caption each (columns); a frame marks each clip's own caption.

    similarity (clips, texts) with clip i's own caption in column i; the first 64 are drawn.

    Raises:
        ValueError: captions or clip_ids do not fit the matrix.
    """
    matrix = as_array(similarity)
    if matrix.shape != (len(clip_ids), len(captions)) or len(clip_ids) != len(captions):
        raise ValueError(
            f"similarity is {matrix.shape} with {len(clip_ids)} clip_ids and {len(captions)} captions; "
            "give one caption a clip, (clips, clips)"
        )
    if not matrix.size:
        return save_placeholder(path, title="Similarity", reason="there is no clip")
    shown = min(len(matrix), MAX_MATRIX)
    count = f"{shown} of {len(matrix)} clips"
    matrix = matrix[:shown, :shown]
    wins = int((matrix.argmax(axis=1) == np.arange(shown)).sum())
    figure = new_figure(10.0, 8.6, title=f"Audio-text similarity ({count})")
    axes = figure.add_subplot()
    image = axes.imshow(matrix, cmap="viridis", interpolation="nearest")
    for index in range(shown):
        axes.add_patch(Rectangle((index - 0.5, index - 0.5), 1, 1, fill=False, edgecolor="white", linewidth=1.0))
    label_matrix(axes, clip_ids[:shown], captions[:shown])
    axes.set_title(f"the clip's own caption (framed) scores highest in {wins} of {shown} rows", fontsize=10, color=GREY)
    figure.colorbar(image, ax=axes, label="cosine similarity", shrink=0.8)
    return save_png(figure, path)


def plot_log_mels(
    log_mels: Sequence[Tensor],
    path: Path,
    *,
    captions: Sequence[str],
    retrieved: Sequence[Sequence[RetrievedCaption]],
    sample_rate: int,
    hop_length: int,
    f_min: float,
    f_max: float,
    mel_scale: str,
) -> None:
    """A grid of clips: log-mel spectrogram, own caption above, the best retrieved captions and their scores below.

    Args:
        log_mels: one (time, n_mels) in dB for each clip.
        captions: each clip's own caption.
        retrieved: for each clip its retrieved captions, best first; a green tick marks its own.
        mel_scale: slaney or htk.
    """
    if not log_mels:
        return save_placeholder(path, title="Log-mels", reason="there is no clip")
    columns = 2 if len(log_mels) == 4 else min(len(log_mels), 3)
    rows = -(-len(log_mels) // columns)
    figure = new_figure(4.9 * columns + 0.6, 5.0 * rows + 0.4, title="Own caption above, best-scoring captions below")
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[2.6, 1.3] * rows)
    loudest = max(float(log_mel.max()) for log_mel in log_mels)
    panels = []
    for index, log_mel in enumerate(log_mels):
        row, column = divmod(index, columns)
        axes = figure.add_subplot(grid[2 * row, column])
        num_frames, n_mels = log_mel.shape
        mesh = axes.pcolormesh(
            np.arange(num_frames) * hop_length / sample_rate,
            mel_frequencies(n_mels, f_min=f_min, f_max=f_max, mel_scale=mel_scale),
            as_array(log_mel).T,
            vmin=loudest - RANGE_DB,
            vmax=loudest,
            cmap="magma",
        )
        axes.set_yscale("symlog", linthresh=1000.0, base=2)  # linear below 1 kHz, as the mel scale nearly is
        axes.set_title(wrap(captions[index]), fontsize=10, color=INK, loc="left")
        label_log_mel(axes, f_min=f_min, f_max=f_max, is_first=column == 0)
        panels.append(axes)
        draw_retrieved(figure.add_subplot(grid[2 * row + 1, column]), retrieved[index])
    figure.colorbar(mesh, ax=panels, label="level (dB)", shrink=0.6, aspect=30, pad=0.015)
    return save_png(figure, path)


def select_curve(history: Sequence[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric."""
    points = [(entry["step"], entry["metrics"][name]) for entry in history if name in entry["metrics"]]
    steps, values = np.array(points, dtype=float).T
    return steps, values


def group_quality(history: Sequence[dict]) -> dict[str, list[str]]:
    """{val/<dataset>/<task>: its metric names}, in the order of QUALITY_CURVES."""
    names = {name for entry in history for name in entry["metrics"]}
    panels: dict[str, list[str]] = defaultdict(list)
    for last in QUALITY_CURVES:
        for name in sorted(names):
            prefix, _, end = name.rpartition("/")
            if end == last and name.startswith("val/"):
                panels[prefix].append(name)
    return dict(sorted(panels.items(), reverse=True))


def label_matrix(axes: Axes, clip_ids: Sequence[str], captions: Sequence[str]) -> None:
    """Ids and captions at the axes of a small matrix; axis names alone for a large one."""
    axes.tick_params(length=0, labelsize=8, colors=INK)
    if len(clip_ids) > MAX_LABELS:
        axes.set(xlabel="caption", ylabel="clip")
        return
    axes.set_yticks(range(len(clip_ids)), [shorten(clip_id, 24) for clip_id in clip_ids])
    axes.set_xticks(range(len(captions)), [shorten(caption, 32) for caption in captions])
    axes.tick_params(axis="x", labelrotation=50)
    for label in axes.get_xticklabels():
        label.set(horizontalalignment="right", rotation_mode="anchor")


def label_log_mel(axes: Axes, *, f_min: float, f_max: float, is_first: bool) -> None:
    """Round ticks in Hz and seconds; only the first panel of a row has a label at its frequency axis."""
    axes.set(xlabel="time (s)", ylabel="frequency (Hz)" if is_first else "")
    axes.set_yticks([tick for tick in FREQUENCY_TICKS if f_min <= tick <= f_max])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(colors=INK, labelsize=9)


def draw_retrieved(axes: Axes, retrieved: Sequence[RetrievedCaption]) -> None:
    """Retrieved captions with their scores, one below the other; the clip's own in green behind a tick."""
    axes.set_axis_off()
    for place, item in enumerate(retrieved):
        mark, color = ("✓", GREEN) if item.is_own else ("·", GREY)
        height = 0.95 - place / max(len(retrieved), 3)
        for left, text in ((0.0, mark), (0.04, f"{item.score:.2f}"), (0.15, wrap(item.caption))):
            axes.text(left, height, text, color=color, fontsize=9, verticalalignment="top", linespacing=1.15)


def wrap(text: str) -> str:
    """Text on at most two lines, the rest cut; dollar signs are escaped, or they would start a formula."""
    lines = textwrap.wrap(text, CAPTION_WIDTH, max_lines=CAPTION_LINES, placeholder=" …")
    return "\n".join(lines).replace("$", r"\$")


def shorten(text: str, width: int) -> str:
    """Text cut to `width` characters."""
    text = text if len(text) <= width else text[: width - 1].rstrip() + "…"
    return text.replace("$", r"\$")


def as_array(tensor: Tensor) -> np.ndarray:
    """Values on the host as float32."""
    return tensor.detach().cpu().float().numpy()
