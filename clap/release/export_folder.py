"""The files of an exported folder, and the packages that export needs. Imports nothing slow."""

import importlib.util
from pathlib import Path

from clap.checkpoint import refuse_other_files

AUDIO, TEXT, TOKENIZER, CONFIG = "audio.onnx", "text.onnx", "tokenizer.json", "config.json"
FILES = (AUDIO, TEXT, TOKENIZER, CONFIG, f"{AUDIO}.data", f"{TEXT}.data")  # .data: the weights of a graph above 2 GB
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """ValueError if a package of the extra `onnx` is not installed."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"{', '.join(missing)} not installed; install the packages of export: pip install {' '.join(PACKAGES)}"
        )


def check_folder(folder: Path) -> None:
    """FileExistsError if a folder holds other files than an earlier export."""
    refuse_other_files(folder, FILES)
