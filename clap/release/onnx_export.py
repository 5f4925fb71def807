"""Exports a model to ONNX: both towers with the log-mel spectrogram, the tokenizer and a config, in one folder.

onnxruntime, tokenizers and numpy then compute embeddings without torch. The folder is written only if its embeddings
equal those of the model.
"""

import contextlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clap import __version__, checkpoint
from clap.fusion import OneWindow
from clap.release.export_folder import AUDIO, CONFIG, TEXT, TOKENIZER, check_folder
from clap.release.parity import TOLERANCE, compare_audio, compare_text
from clap.release.portable_tokenizer import write_tokenizer
from clap.release.towers import AudioTower, TextTower
from clap.waveform import SHORTEST

OPSET = 18  # has STFT, and is the version that torch.onnx translates to
FORMAT = "clap-onnx 1"
FILLS = {
    "pad": "zeros up to the window",
    "repeat": "repeated up to the window, the last repeat cut",
    "repeat_pad": "complete repeats, then zeros up to the window",
}
MIDDLE_WINDOW = "the middle window"


def export_onnx(clap: nn.Module, output: str | os.PathLike, *, licence: str | None = None) -> dict[str, Any]:
    """Write audio.onnx, text.onnx, tokenizer.json and config.json to a folder, atomically; returns the config.

    A model without text encoder gives audio.onnx and config.json.

    Args:
        clap: the model, on the CPU.
        output: a new folder, or an earlier export to replace.
        licence: of the weights, stored in config.json.

    Raises:
        ValueError: a part of the model cannot be exported, or embeddings differ by more than TOLERANCE. Nothing is
            written.
        FileNotFoundError: the tokenizer's files are missing.
        OSError: the folder holds other files, which are kept, or cannot be written.
    """
    output = Path(output).resolve()
    check_folder(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    clap = clap.eval()
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        folder = Path(scratch)
        parity = {} if clap.text_encoder is None else {"text_embedding": export_text(clap, folder)}
        parity = {"audio_embedding": export_audio(clap, folder), **parity}
        config = describe_export(clap, parity, licence)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

        def move(target: Path) -> None:
            for path in folder.iterdir():
                path.rename(target / path.name)

        checkpoint.write_folder(output, move)
    return config


def export_audio(clap: nn.Module, folder: Path) -> float:
    """Write audio.onnx; returns its largest difference from the model."""
    samples = round(2.3 * clap.audio_encoder.window * clap.sample_rate)
    example = (torch.zeros(3, samples), torch.tensor([samples, samples // 2, samples // 3]))
    shapes = {"waveform": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}}
    trace(AudioTower(clap), example, shapes, "audio_embedding", folder / AUDIO)
    return check_difference(compare_audio(clap, folder / AUDIO), "audio encoder")


def export_text(clap: nn.Module, folder: Path) -> float:
    """Write text.onnx and tokenizer.json; returns the largest difference from the model."""
    portable = write_tokenizer(clap.tokenizer, folder / TOKENIZER)
    ids, mask = clap.tokenizer(["a dog barks", "rain on a roof, then thunder", "wind"])
    shapes = {name: {0: "batch", 1: "tokens"} for name in ("token_ids", "token_mask")}
    trace(TextTower(clap), (ids, mask.long()), shapes, "text_embedding", folder / TEXT)
    return check_difference(compare_text(clap, folder / TEXT, portable), "text encoder")


def trace(tower: nn.Module, example: tuple[Tensor, ...], shapes: dict, output: str, path: Path) -> None:
    """Write a tower as an ONNX graph for any batch size and length.

    Args:
        shapes: name of each input -> names of its dynamic dimensions.

    Raises:
        ValueError: an operation of the model has no translation.
    """
    part = type(tower.encoder).__name__
    try:
        with torch.no_grad(), quiet_export():
            program = torch.onnx.export(
                tower.eval(),
                example,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                input_names=list(shapes),
                output_names=[output],
                verbose=False,
            )
    except Exception as error:  # torch.export, torch.onnx and onnxscript raise various types
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ValueError(
            f"{part} cannot be exported to ONNX ({reason}); exported are HTS-AT, Cnn14 and timm backbones, and the "
            "text encoders of transformers that torch.export traces, such as GPT-2, RoBERTa and BERT"
        ) from error
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with paths of this machine
    program.save(path)


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Without warnings of torch.onnx about names of dimensions and about itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def check_difference(difference: float, part: str) -> float:
    """ValueError if embeddings of an exported tower are not those of the model."""
    if difference > TOLERANCE:
        raise ValueError(
            f"embeddings of the exported {part} differ by {difference:.2g} from those of the model, allowed are "
            f"{TOLERANCE:g}; nothing is written. Other versions of torch, onnxscript and onnxruntime may agree"
        )
    return difference


def describe_export(clap: nn.Module, parity: dict[str, float], licence: str | None) -> dict[str, Any]:
    """The content of config.json: what a program needs to know to use the graphs."""
    encoder, frontend = clap.audio_encoder, clap.audio_encoder.frontend
    is_cut = isinstance(encoder.fusion, OneWindow) and encoder.windows is None
    config = {
        "format": FORMAT,
        "clap_version": __version__,
        "licence": licence,
        "embed_dim": clap.embed_dim,
        "logit_scale": clap.logit_scale.exp().item(),
        "sample_rate": clap.sample_rate,
        "channels": "mean",
        "window_samples": frontend.num_samples,
        "shortest_samples": round(SHORTEST * clap.sample_rate),
        "shorter_clips": FILLS[frontend.fill],
        "longer_clips": MIDDLE_WINDOW if is_cut else encoder.describe_longer(),
        "audio": {
            "file": AUDIO,
            "encoder": type(encoder).__name__,
            "inputs": {"waveform": ["float32", "batch", "samples"], "lengths": ["int64", "batch"]},
            "outputs": {"audio_embedding": ["float32", "batch", clap.embed_dim]},
        },
    }
    if clap.text_encoder is not None:
        config["text"] = {
            "file": TEXT,
            "encoder": clap.text_encoder.transformer.config.model_type,
            "tokenizer": TOKENIZER,
            "max_tokens": clap.tokenizer.max_length,
            "inputs": {name: ["int64", "batch", "tokens"] for name in ("token_ids", "token_mask")},
            "outputs": {"text_embedding": ["float32", "batch", clap.embed_dim]},
        }
    return config | {"opset": OPSET, "largest_difference": parity}
