"""The served model: captions and recordings in, embeddings or class probabilities out.

`register.py` copies this package next to the checkpoint; MLflow loads both through `_load_pyfunc`.
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

from clap.device import choose_device
from clap.model import Clap
from clap.prompts import TEMPLATES, find_problem
from clap.tracking.store import MlflowException
from clap.waveform import AudioError

DEFAULT_PARAMS = {"class_names": [], "templates": list(TEMPLATES)}


class ServedClap:
    """Answers requests: tables whose rows have either a caption in `text` or a recording in `audio`.

    A recording is a WAV, FLAC, OGG, Opus or MP3 file in base64, or from Python its bytes.
    """

    def __init__(self, clap: Clap) -> None:
        self.clap = clap.to(choose_device("auto"))
        self._lock = threading.Lock()  # requests come from many threads, and the model uses all cores for one

    def predict(self, rows: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """One row of answers per row, in order.

        By default the column `embedding` with lists of embed_dim floats of unit norm. With `class_names` in params, one
        column per class with its probability, the softmax of the logits; all rows must be audio. `templates` are the
        prompts of a class with `{}` for its name; their embeddings are averaged.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE, HTTP status 400, with the invalid row and the reason.
        """
        try:
            captions, recordings = read_rows(rows)
            class_names, templates = read_params(params or {})
            if class_names and captions:
                raise ValueError(
                    f"row {min(captions)} is text; with class_names every row must be audio; remove the row"
                )
            with self._lock:
                embedding = self.embed(captions, recordings)
                if not class_names:
                    return pd.DataFrame({"embedding": embedding.tolist()}, index=rows.index)
                logits = self.clap.compute_similarity(embedding, self.clap.embed_classes(class_names, templates))
                return pd.DataFrame(logits.softmax(dim=1).tolist(), columns=class_names, index=rows.index)
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error

    def embed(self, captions: Mapping[int, str], recordings: Mapping[int, bytes]) -> Tensor:
        """Embeddings (rows, embed_dim) of captions and recordings by row position."""
        embedding = torch.empty(len(captions) + len(recordings), self.clap.embed_dim, device=self.clap.device)
        if captions:
            embedding[list(captions)] = self.clap.get_text_embeddings(list(captions.values()))
        if recordings:
            with write_temporary_files(recordings) as paths:
                embedding[list(recordings)] = self.clap.get_audio_embeddings(paths)
        return embedding


def read_rows(rows: pd.DataFrame) -> tuple[dict[int, str], dict[int, bytes]]:
    """Captions and recordings by row position."""
    if rows.empty:  # MLflow drops unknown columns
        raise ValueError("no row has text or audio; name the columns text or audio")
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
    """Whether a cell is None or a missing value of pandas."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def check_caption(value: object, position: int) -> str:
    if problem := find_problem(value):
        raise ValueError(f"row {position}: text {problem}")
    return value


def decode_base64(value: object, position: int) -> bytes:
    """The bytes of an audio file."""
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode("".join(str(value).split()), validate=True)  # the program base64 wraps lines
    except ValueError as error:
        raise ValueError(
            f"row {position}: audio is {str(value)[:20]!r}, which is not base64 ({error}); "
            "give the bytes of an audio file in base64, not a path or an address"
        ) from None


def read_params(params: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Class names, possibly none, and templates."""
    class_names, templates = (list(params.get(name, default)) for name, default in DEFAULT_PARAMS.items())
    if class_names and (len(set(class_names)) < max(2, len(class_names)) or not all(class_names)):
        raise ValueError(
            f"class_names={class_names} must be two or more distinct names that are not empty; set class_names"
        )
    if not templates or not all(template and "{}" in template for template in templates):
        raise ValueError(
            f"templates={templates} must be one or more texts, each with {{}} for the class; set templates"
        )
    if not class_names and templates != DEFAULT_PARAMS["templates"]:
        raise ValueError(f"templates={templates} require class_names; set class_names")
    return class_names, templates


@contextmanager
def write_temporary_files(recordings: Mapping[int, bytes]) -> Iterator[list[Path]]:
    """Write recordings to temporary files; an AudioError names the row instead of the file."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"row {position}") for position in recordings]
        for path, content in zip(paths, recordings.values(), strict=True):
            path.write_bytes(content)
        try:
            yield paths
        except AudioError as error:
            raise AudioError(str(error).replace(f"{folder}{os.sep}", "")) from None


def _load_pyfunc(path: str) -> ServedClap:
    """Entry point of MLflow, called with the checkpoint folder."""
    return ServedClap(Clap.from_ckpt(path))
