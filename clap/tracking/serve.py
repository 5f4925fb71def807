"""What a served model does with a request: captions and recordings in, embeddings or class scores out.

`clap/register.py` puts a copy of this package beside the checkpoint; MLflow loads both through `_load_pyfunc`.
"""

import base64
import math
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from clap.audio import AudioError
from clap.device import choose_device
from clap.model import Clap
from clap.prompts import TEMPLATES
from clap.tracking.store import MlflowException

DEFAULT_PARAMS = {"class_names": [], "templates": list(TEMPLATES)}


class ServedClap:
    """Answers a request: a table whose rows hold either a caption in `text`, or a recording in `audio`.

    A recording is the base64 of a WAV, FLAC, OGG, Opus or MP3 file; called from Python, it may be the file's bytes.
    """

    def __init__(self, clap: Clap) -> None:
        self.clap = clap.to(choose_device("auto"))
        self._lock = threading.Lock()  # the server answers from many threads; the model uses all cores for each

    def predict(self, rows: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """A row of answers for every row, in order.

        Without params the column `embedding`, lists of embed_dim floats of unit norm. With params `class_names`, a
        column for each class with its share of the softmax over the model's logits; all rows are then audio.
        `templates` are the prompts of a class, `{}` standing for its name; their embeddings are averaged.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE, which the server answers with 400, naming the row and what is
                wrong with it.
        """
        try:
            captions, recordings = read_rows(rows)
            class_names, templates = read_params(params or {})
            if class_names and captions:
                raise ValueError(f"row {min(captions)} is text; with class_names every row must be audio")
            with self._lock:
                embedding = self.embed(captions, recordings)
                if not class_names:
                    return pd.DataFrame({"embedding": embedding.tolist()}, index=rows.index)
                logits = self.clap.compute_similarity(embedding, self.clap.embed_classes(class_names, templates))
                return pd.DataFrame(logits.softmax(dim=1).tolist(), columns=class_names, index=rows.index)
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error

    def embed(self, captions: Mapping[int, str], recordings: Mapping[int, bytes]) -> Tensor:
        """Embeddings (rows, embed_dim); the keys are the rows' positions."""
        embedding = torch.empty(len(captions) + len(recordings), self.clap.embed_dim, device=self.clap.device)
        if captions:
            embedding[list(captions)] = self.clap.get_text_embeddings(list(captions.values()))
        if recordings:
            with write_temporary_files(recordings) as paths:
                embedding[list(recordings)] = self.clap.get_audio_embeddings(paths)
        return embedding


def read_rows(rows: pd.DataFrame) -> tuple[dict[int, str], dict[int, bytes]]:
    """Captions and recordings by position."""
    if rows.empty:  # MLflow leaves out columns that it does not know
        raise ValueError("no row has text or audio; name the columns so")
    captions, recordings = {}, {}
    for position, row in enumerate(rows.to_dict("records")):
        given = {name: value for name, value in row.items() if not is_missing(value)}
        if len(given) != 1:
            raise ValueError(
                f"row {position} has {'both text and audio' if given else 'neither text nor audio'}; give one of them"
            )
        if "text" in given:
            captions[position] = check_caption(given["text"], position)
        else:
            recordings[position] = decode_base64(given["audio"], position)
    return captions, recordings


def is_missing(value: object) -> bool:
    """None, and what pandas puts where a row lacks a column."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def check_caption(value: object, position: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"row {position}: text is {value!r}; give a caption, such as 'a dog barks'")
    return value


def decode_base64(value: object, position: int) -> bytes:
    """The bytes of a recording."""
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode("".join(str(value).split()), validate=True)  # `base64` breaks its lines
    except ValueError as error:
        raise ValueError(
            f"row {position}: audio is {str(value)[:20]!r}, which is not base64 ({error}); "
            "give the base64 of an audio file's bytes, no path or address"
        ) from None


def read_params(params: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Class names, of which there may be none, and templates."""
    class_names, templates = (list(params.get(name, default)) for name, default in DEFAULT_PARAMS.items())
    if class_names and (len(set(class_names)) < max(2, len(class_names)) or not all(class_names)):
        raise ValueError(f"class_names={class_names}; give two names or more, each once, none of them empty")
    if not templates or not all(template and "{}" in template for template in templates):
        raise ValueError(f"templates={templates}; give one or more, each with {{}} for the class")
    if not class_names and templates != DEFAULT_PARAMS["templates"]:
        raise ValueError(f"templates={templates} without class_names; give the classes too")
    return class_names, templates


@contextmanager
def write_temporary_files(recordings: Mapping[int, bytes]) -> Iterator[list[Path]]:
    """Recordings as temporary files; an AudioError names the row."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"row {position}") for position in recordings]
        for path, content in zip(paths, recordings.values(), strict=True):
            path.write_bytes(content)
        try:
            yield paths
        except AudioError as error:
            raise AudioError(str(error).replace(f"{folder}{os.sep}", "")) from None


def _load_pyfunc(path: str) -> ServedClap:
    """What MLflow calls with the folder of the checkpoint."""
    return ServedClap(Clap.from_ckpt(path))
