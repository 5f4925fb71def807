"""Recordings kept on disk as they are needed: decoded, mono, at the model's rate, in 16 bits."""

import contextlib
import hashlib
import logging
import os
from pathlib import Path

import numpy as np

from clap.audio import choose_part, load_waveform

log = logging.getLogger(__name__)

HEADER = 4  # bytes: the float32 that full scale of the 16 bits stands for


class WaveformCache:
    """What `load_waveform` gives, from a folder in which each recording is decoded once.

    A file is named by the content of its recording and the rate, so a changed recording is decoded anew, and jobs and
    corpora share one folder. It is memory-mapped: only the part that is needed is read. Interrupted writing leaves no
    file behind; if the folder cannot be written to, recordings are decoded every time.

    Args:
        folder: made if it does not exist; may be deleted at any time.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)

    def load(
        self,
        path: str | os.PathLike,
        sample_rate: int,
        *,
        max_duration: float | None = None,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Mono float32 (samples,) at `sample_rate`, rounded to 16 bits; see `load_waveform`."""
        try:
            content = hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
        except OSError:
            return load_waveform(path, sample_rate)  # raises what is wrong
        file = self.folder / content[:2] / f"{content}-{sample_rate}"
        if not file.exists():
            self.write(file, load_waveform(path, sample_rate))
        if not file.exists():
            return load_waveform(path, sample_rate, max_duration=max_duration, rng=rng)
        samples = np.memmap(file, "<i2", mode="r", offset=HEADER)
        start, count = choose_part(len(samples), sample_rate, max_duration, rng)
        return samples[start : start + count].astype(np.float32) * (np.fromfile(file, "<f4", 1) / 32767)

    def write(self, file: Path, waveform: np.ndarray) -> None:
        """Write to a file of another name first: a process that reads or is killed never sees half of one."""
        full_scale = np.float32(max(1.0, np.abs(waveform).max()))
        temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            samples = (waveform / full_scale * 32767).round().astype("<i2")
            temporary.write_bytes(full_scale.astype("<f4").tobytes() + samples.tobytes())
            temporary.replace(file)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            log.warning("dataset.cache=%s cannot be written to (%s); going on without", self.folder, error)
