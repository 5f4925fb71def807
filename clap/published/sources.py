"""Sources of published checkpoints: files, folders, URLs and names on the Hugging Face hub. Imports nothing slow."""

import os
from pathlib import Path

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
FOLDER_FILES = (CONFIG, PREPROCESSOR, SAFETENSORS, PICKLED)
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def is_published(source: str | os.PathLike) -> bool:
    """Whether a source is a file, a Hugging Face folder, a hub name or a URL; False for a folder of this package."""
    if is_address(str(source)):
        return True
    path = Path(source)
    if path.is_file() or path.is_dir():
        return path.is_file() or (path / CONFIG).is_file()
    parts = len(path.parts)
    return not path.is_absolute() and (parts == 2 or (parts > 2 and path.suffix in SUFFIXES))


def is_address(source: str) -> bool:
    return str(source).startswith(("http://", "https://"))
