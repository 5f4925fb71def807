"""Small tars in webdataset's layout."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000


def encode_noise(seed: int, *, suffix: str = "flac", duration: float = 0.1) -> bytes:
    """A recording of noise."""
    content = io.BytesIO()
    noise = 0.1 * np.random.default_rng(seed).standard_normal(round(duration * RATE))
    soundfile.write(content, noise, RATE, format=suffix.upper())
    return content.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes | str | dict]]) -> Path:
    """Write members in this order; a dict becomes JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, value in members:
            value = json.dumps(value) if isinstance(value, dict) else value
            value = value.encode() if isinstance(value, str) else value
            info = tarfile.TarInfo(name)
            info.size = len(value)
            tar.addfile(info, io.BytesIO(value))
    return path


def write_shards(folder: Path, counts: Iterable[int], *, split: str = "train") -> list[Path]:
    """Shards with these numbers of clips, each with an audible and a written number of its own."""
    paths, number = [], 0
    for shard, count in enumerate(counts):
        members = []
        for _ in range(count):
            members += [(f"{number:04}.flac", encode_noise(number)), (f"{number:04}.json", {"text": f"noise {number}"})]
            number += 1
        paths.append(write_tar(folder / split / f"{shard:03}.tar", members))
    return paths
