"""Small corpora as their publishers serve them, and downloads of them through the addresses of the yamls."""

import functools
import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import py7zr
import soundfile
from conftest import make_tone
from download_server import FileServer
from omegaconf import OmegaConf

from clap.config.compose import compose_yamls
from clap.dataset.registry import find_corpus
from clap.download.addresses import ADDRESSES, resolve_addresses
from clap.download.remote import Result
from clap.download.run import download_corpus

RATE = 8_000
CLOTHO = {"development": 4, "validation": 2, "evaluation": 2}
VIDEOS = {"train": ["aaaaaaaaaa1", "aaaaaaaaaa2"], "val": ["bbbbbbbbbb1"], "test": ["cccccccccc1", "cccccccccc2"]}
START = 3  # seconds, of the clip in each video


def compose_addresses(name: str, overrides: list[str]) -> dict:
    """The addresses as `python -m clap download` composes them."""
    return resolve_addresses(compose_yamls(overrides, folder=ADDRESSES, name=name))


def without_checksums(name: str) -> dict[str, str]:
    """Overrides that skip the published checksums."""
    return {f"files.{key}.checksum": "" for key in OmegaConf.load(ADDRESSES / f"{name}.yaml").files}


def download(name: str, root: Path, overrides: Mapping[str, object], **options: object) -> Result:
    """Download with overrides of the yaml, applied without Hydra, which is slower."""
    settings = OmegaConf.load(ADDRESSES / f"{name}.yaml")
    for key, value in overrides.items():
        OmegaConf.update(settings, key, value)
    open_corpus = functools.partial(find_corpus, name)
    return download_corpus(name, root, OmegaConf.to_container(settings, resolve=True), open_corpus, **options)


def read_files(folder: Path) -> dict[str, bytes]:
    """Every file except the manifest and scratch files of the download."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes() for name, path in files.items() if not name.startswith(("download.jsonl", ".download"))
    }


def write_clotho(folder: Path) -> None:
    """The files of a small Clotho, as on Zenodo."""
    for number, (split, count) in enumerate(CLOTHO.items()):
        names = [f"{split} no. {i}.wav" for i in range(count)]
        captions = [f"{name},{','.join(f'caption {i} of {name}' for i in range(5))}" for name in names]
        header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
        (folder / f"clotho_captions_{split}.csv").write_text("\n".join([header, *captions, ""]))
        metadata = [f"{name},rain;roof,{100 * number + i}" for i, name in enumerate(names)]
        (folder / f"clotho_metadata_{split}.csv").write_text("\n".join(["file_name,keywords,sound_id", *metadata, ""]))
        with py7zr.SevenZipFile(folder / f"clotho_audio_{split}.7z", "w") as archive:
            for i, name in enumerate(names):
                soundfile.write(folder / "clip.wav", make_tone(200.0 + i, 6.0, sample_rate=RATE, seed=number), RATE)
                archive.write(folder / "clip.wav", f"{split}/{name}")


def write_audiocaps(folder: Path) -> None:
    """Index files and videos of a small AudioCaps."""
    numbers = itertools.count()
    for split, videos in VIDEOS.items():
        lines = [
            f"{next(numbers)},{video},{START},caption {i} of {video}"
            for video in videos
            for i in range(1 if split == "train" else 5)
        ]
        text = "\n".join(["audiocap_id,youtube_id,start_time,caption", *lines, ""])
        (folder / f"{split}.csv").write_text(text)
        for seed, video in enumerate(videos):
            noise = np.random.default_rng(seed).integers(-9000, 9000, 15 * RATE).astype(np.int16)
            soundfile.write(folder / f"{video}.wav", noise, RATE)


@functools.cache
def read_mirror(write: Callable[[Path], None]) -> dict[str, bytes]:
    """Content of the files of a mirror by name; they are made once per process."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def serve_clotho(server: FileServer) -> dict[str, object]:
    """Serve Clotho; returns the overrides of its addresses."""
    for name, content in read_mirror(write_clotho).items():
        (server.folder / name).write_bytes(content)
    return {"server": server.address} | without_checksums("clotho")


def serve_audiocaps(server: FileServer) -> dict[str, object]:
    """Serve AudioCaps; returns the overrides of its addresses."""
    for name, content in read_mirror(write_audiocaps).items():
        (server.folder / name).write_bytes(content)
    return {"lists.v1": server.address, "videos.address": f"{server.address}/VIDEO.wav", "videos.pause": 0.0}
