"""Plots of a few clips of a split: their similarity to texts, and their log-mels with the best-scoring texts."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator
from torch import Tensor

from clap.audio import mel_frequencies
from clap.audio_encoder.base import LogMelEncoder
from clap.audio_model import AudioModel
from clap.dataset.item import Item
from clap.evaluation.retrieved_clips import RetrievedClips, RetrievedText
from clap.plotting import GREEN, GREY, INK, escape, fit_text, new_figure, save_placeholder, save_png
from clap.prompts import TEMPLATES

FREQUENCY_TICKS = (100, 250, 500, 1000, 2000, 4000, 8000, 16000)  # Hz
MAX_MATRIX = 64  # rows and columns of a similarity matrix of captions, and classes up to which all are shown
MAX_LABELS = 24  # captions up to which rows and columns are labelled
RANGE_DB = 80.0  # below the loudest cell, log-mels are drawn black
CAPTION_WIDTH = 52  # characters on a line under a log-mel panel
CAPTION_LINES = 2


def plot_clips(folder: Path, clap: AudioModel, found: RetrievedClips) -> None:
    """similarity.png and, of encoders with a log-mel, retrieved.png of a few clips."""
    path, own = folder / "similarity.png", found.own()
    similarity = found.audio_embedding @ found.text_embedding.T  # (clips, texts)
    if found.by_class:
        prompts = () if clap.text_encoder is None else TEMPLATES
        options = {"class_names": found.texts, "labels": own, "num_clips": found.num_clips, "prompts": prompts}
        plot_class_similarity(similarity, path, **options)
    else:
        first = [captions[0] for captions in own]
        columns = [found.texts.index(caption) for caption in first]
        plot_similarity(similarity[:, columns], path, captions=first, clip_ids=[clip.id for clip in found.clips])
    if isinstance(clap.audio_encoder, LogMelEncoder):
        what = ("class", "classes") if found.by_class else ("caption", "captions")
        plot_items(
            folder / "retrieved.png",
            clap,
            items=found.items,
            captions=[", ".join(texts) if found.by_class else texts[0] for texts in own[: len(found.items)]],
            retrieved=found.retrieved(),
            title="Own {} above, best-scoring {} below".format(*what),
        )


def plot_items(
    path: Path,
    clap: AudioModel,
    *,
    items: Sequence[Item],
    captions: Sequence[str],
    retrieved: Sequence[Sequence[RetrievedText]],
    title: str,
) -> None:
    """`plot_log_mels` of loaded clips, on the encoder's own log-mel."""
    frontend = clap.audio_encoder.frontend.to("cpu")
    log_mels = [frontend(torch.from_numpy(item.waveform)[None])[0] for item in items]
    frontend.to(clap.device)
    plot_log_mels(
        log_mels,
        path,
        captions=captions,
        retrieved=retrieved,
        title=title,
        sample_rate=frontend.sample_rate,
        hop_length=frontend.hop_length,
        f_min=frontend.f_min,
        f_max=frontend.f_max,
        mel_scale=frontend.mel_scale,
    )


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


def plot_class_similarity(
    similarity: Tensor,
    path: Path,
    *,
    class_names: Sequence[str],
    labels: Sequence[Sequence[str]],
    num_clips: int,
    prompts: Sequence[str] = TEMPLATES,
) -> None:
    """Cosine similarity of clips (rows, grouped by class) and classes (columns); frames mark the classes of a clip.

    Above 64 classes, those of the shown clips are drawn.

    Args:
        similarity: (clips, classes), or probabilities of a classifier.
        prompts: of the classes; none of a classifier.
        labels: the classes of each clip, one or more.
        num_clips: of the split, for the title.

    Raises:
        ValueError: class_names or labels do not fit the matrix.
    """
    matrix = as_array(similarity)
    if matrix.shape != (len(labels), len(class_names)):
        raise ValueError(
            f"similarity is {matrix.shape} with {len(labels)} labels and {len(class_names)} class_names; "
            "give (clips, classes)"
        )
    if not matrix.size:
        return save_placeholder(path, title="Similarity", reason="there is no clip")
    wins = sum(class_names[best] in own for best, own in zip(matrix.argmax(axis=1), labels, strict=True))
    order = sorted(range(len(labels)), key=lambda row: class_names.index(labels[row][0]))
    found = {name for own in labels for name in own}
    columns = [i for i, name in enumerate(class_names) if len(class_names) <= MAX_MATRIX or name in found]
    place = {class_names[column]: new for new, column in enumerate(columns)}
    title = f"{'Audio-class similarity' if prompts else 'Class probabilities'} ({len(labels)} of {num_clips} clips"
    title += ")" if len(columns) == len(class_names) else f", {len(columns)} of {len(class_names)} classes)"
    figure = new_figure(max(10.0, 0.15 * len(columns)), 8.6, title=title)
    axes = figure.add_subplot()
    image = axes.imshow(matrix[np.ix_(order, columns)], cmap="viridis", interpolation="nearest", aspect="auto")
    for new, row in enumerate(order):
        for name in labels[row]:
            corner = (place[name] - 0.5, new - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=0.7))
    label_classes(axes, [labels[row][0] for row in order], [class_names[column] for column in columns])
    own = "the clip's own class" if max(map(len, labels)) == 1 else "one of the clip's own classes"
    subtitle = f"{own} (framed) scores highest of {len(class_names)} for {wins} of {len(labels)} clips"
    subtitle += f', prompt "{", ".join(prompts)}"' if prompts else ""
    axes.set_title(subtitle, fontsize=10, color=GREY)
    figure.colorbar(image, ax=axes, label="cosine similarity" if prompts else "probability", shrink=0.8)
    return save_png(figure, path)


def plot_log_mels(
    log_mels: Sequence[Tensor],
    path: Path,
    *,
    captions: Sequence[str],
    retrieved: Sequence[Sequence[RetrievedText]],
    title: str,
    sample_rate: int,
    hop_length: int,
    f_min: float,
    f_max: float,
    mel_scale: str,
) -> None:
    """A grid of clips: log-mel spectrogram, own caption or class above, the best-scoring ones with their scores below.

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
    figure = new_figure(4.9 * columns + 0.6, 5.0 * rows + 0.4, title=title)
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


def label_matrix(axes: Axes, clip_ids: Sequence[str], captions: Sequence[str]) -> None:
    """Ids and captions at the axes of a small matrix; axis names alone for a large one."""
    axes.tick_params(length=0, labelsize=8, colors=INK)
    if len(clip_ids) > MAX_LABELS:
        axes.set(xlabel="caption", ylabel="clip")
        return
    axes.set_yticks(range(len(clip_ids)), [fit_text(clip_id, 24) for clip_id in clip_ids])
    axes.set_xticks(range(len(captions)), [fit_text(caption, 32) for caption in captions])
    axes.tick_params(axis="x", labelrotation=50)
    for label in axes.get_xticklabels():
        label.set(horizontalalignment="right", rotation_mode="anchor")


def label_classes(axes: Axes, groups: Sequence[str], class_names: Sequence[str]) -> None:
    """A line between the rows of two classes, the name of a class in the middle of its rows and under its column."""
    starts = [row for row, name in enumerate(groups) if row == 0 or groups[row - 1] != name]
    ends = [*starts[1:], len(groups)]
    axes.hlines([start - 0.5 for start in starts[1:]], -0.5, len(class_names) - 0.5, color="white", linewidth=0.5)
    middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
    axes.set_yticks(middles, [fit_text(groups[start], 24) for start in starts], fontsize=min(9.0, 380 / len(starts)))
    size = min(9.0, max(400 / len(class_names), 6.0))  # points; above 64 classes the picture is wider
    axes.set_xticks(range(len(class_names)), [fit_text(name, 24) for name in class_names], rotation=90, fontsize=size)
    axes.set(xlabel="class", ylabel="clips by class")
    axes.tick_params(length=0, colors=INK)


def label_log_mel(axes: Axes, *, f_min: float, f_max: float, is_first: bool) -> None:
    """Round ticks in Hz and seconds; only the first panel of a row has a label at its frequency axis."""
    axes.set(xlabel="time (s)", ylabel="frequency (Hz)" if is_first else "")
    axes.set_yticks([tick for tick in FREQUENCY_TICKS if f_min <= tick <= f_max])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(colors=INK, labelsize=9)


def draw_retrieved(axes: Axes, retrieved: Sequence[RetrievedText]) -> None:
    """Retrieved captions with their scores, one below the other; the clip's own in green behind a tick."""
    axes.set_axis_off()
    for place, item in enumerate(retrieved):
        mark, color = ("✓", GREEN) if item.is_own else ("·", GREY)
        height = 0.95 - place / max(len(retrieved), 3)
        for left, text in ((0.0, mark), (0.04, f"{item.score:.2f}"), (0.15, wrap(item.text))):
            axes.text(left, height, text, color=color, fontsize=9, verticalalignment="top", linespacing=1.15)


def wrap(text: str) -> str:
    """Text on at most two lines, the rest cut; dollar signs are escaped, or they would start a formula."""
    lines = textwrap.wrap(text, CAPTION_WIDTH, max_lines=CAPTION_LINES, placeholder=" …")
    return escape("\n".join(lines))


def as_array(tensor: Tensor) -> np.ndarray:
    """Values on the host as float32."""
    return tensor.detach().cpu().float().numpy()
