"""Embeds the files of a command line with the model of a checkpoint."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from clap.device import choose_device
from clap.model import Clap
from clap.progress import progress_bar
from clap.sound_index.build import IndexSummary, build_index
from clap.sound_index.events import Event, SegmentScores
from clap.sound_index.record import IndexRecord, check_weights
from clap.sound_index.segments import score_over_time
from clap.sound_index.segments_figure import plot_segments
from clap.sound_index.weights import digest_weights
from clap.waveform import AudioError


class Embedder:
    """The model of a checkpoint on its device.

    Args:
        checkpoint: as for `Clap.from_ckpt`.
        tokenizer: folder of the text encoder's tokenizer, if the checkpoint does not contain one.
        windows: `mean` averages the embeddings of all windows of longer clips.
        batch_size: clips per batch.
    """

    def __init__(
        self, checkpoint: str, *, tokenizer: str | None, windows: str | None, device: str, batch_size: int
    ) -> None:
        settings = {"text_encoder.tokenizer": tokenizer} if tokenizer else None
        target = choose_device(device)
        self.clap = Clap.from_ckpt(checkpoint, settings=settings).to(target)
        self.clap.set_windows(windows)
        self.checkpoint, self.batch_size = checkpoint, batch_size

    def embed_files(self, files: Sequence[str]) -> tuple[list[str], Tensor]:
        """The readable files and their embeddings (files, embed_dim); the others are reported on stderr.

        Raises:
            ValueError: no file is readable.
        """
        rows = {}
        clips = self.clap.embed_each(files, batch_size=self.batch_size)
        for position, row in progress_bar(
            clips, total=len(files), unit="clip", hidden=len(files) <= 2 * self.batch_size
        ):
            if isinstance(row, AudioError):
                tqdm.write(f"skipped: {row}", file=sys.stderr)
            else:
                rows[position] = row.cpu()
        if not rows:
            raise ValueError(f"none of the {len(files)} files is readable, nothing is written; give files that decode")
        order = sorted(rows)
        return [files[position] for position in order], torch.stack([rows[position] for position in order])

    def index_folder(
        self, folder: Path, output: Path, *, window: float | None, hop: float | None, rebuild: bool, retry: bool
    ) -> IndexSummary:
        """`build_index` with this model."""
        options = {"window": window, "hop": hop, "rebuild": rebuild, "retry": retry, "batch_size": self.batch_size}
        return build_index(folder, output, self.clap, checkpoint=self.checkpoint, **options)

    def check_index(self, record: IndexRecord) -> None:
        """ValueError if an index is not of this model."""
        advice = "give the index's model by --checkpoint, or index the folder again with this one"
        check_weights(record, digest_weights(self.clap), self.checkpoint, advice=advice)

    def score_over_time(
        self, path: str, texts: Sequence[str], *, window: float | None, hop: float | None
    ) -> SegmentScores:
        """`score_over_time` with this model."""
        return score_over_time(self.clap, path, texts, window=window, hop=hop, batch_size=self.batch_size)

    def plot_segments(
        self, path: str, segments: SegmentScores, events: Sequence[Event], output: Path, *, threshold: float
    ) -> None:
        """`plot_segments`, with the log-mel of the recording."""
        plot_segments(path, segments, events, output, threshold=threshold)
