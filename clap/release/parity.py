"""Compares exported towers, run by onnxruntime, with the model that they were exported from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soxr
import tokenizers
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from clap.dataset.scenes.planning import SHORTEST_SCENE, plan_scene
from clap.dataset.scenes.rendering import render_scene
from clap.dataset.scenes.sounds import RENDER_RATE
from clap.release.portable_tokenizer import choose_captions
from clap.waveform import SHORTEST

try:
    from onnxruntime import InferenceSession
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}; install the packages of ONNX export: pip install onnx onnxscript onnxruntime"
    ) from None

TOLERANCE = 1e-4  # largest absolute difference between values of unit-norm embeddings
DURATIONS = (0.04, 0.55, 1.0, 1.003, 1.4, 2.7)  # of the compared sounds, in windows of the model


def compare_audio(clap: nn.Module, path: Path) -> float:
    """Largest absolute difference of embeddings of synthetic scenes and silence, alone and in batches.

    Args:
        clap: the model, on the CPU.
        path: exported audio tower.
    """
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    sounds = make_sounds(clap.sample_rate, clap.audio_encoder.window)
    batches = [[sound] for sound in sounds[:4]] + [sounds[2:4], sounds]
    return max(compare_waveforms(clap, session, batch) for batch in batches)


def compare_waveforms(clap: nn.Module, session: InferenceSession, waveforms: Sequence[Tensor]) -> float:
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    batch = pad_sequence(list(waveforms), batch_first=True)
    (found,) = session.run(None, {"waveform": batch.numpy(), "lengths": lengths.numpy()})
    with clap.inference():
        return largest_difference(clap.embed_audio(batch, lengths), found)


def make_sounds(sample_rate: int, window: float) -> list[Tensor]:
    """Synthetic scenes of DURATIONS windows from the first event on, and silence: waveforms (samples,)."""
    sounds, rng = [], np.random.default_rng(0)
    for factor in DURATIONS:
        duration = max(factor * window, SHORTEST)
        drawn = max(duration, SHORTEST_SCENE) + 0.1  # more than needed, so that rounding leaves enough samples
        plan = plan_scene(rng, drawn, drawn)
        scene = np.roll(render_scene(plan, rng), -round(plan.events[0].start * RENDER_RATE))
        sounds.append(torch.from_numpy(soxr.resample(scene, RENDER_RATE, sample_rate)[: round(duration * sample_rate)]))
    return [*sounds, torch.zeros(len(sounds[1]))]


def compare_text(clap: nn.Module, path: Path, portable: tokenizers.Tokenizer) -> float:
    """Largest absolute difference of embeddings of captions, alone and in a batch, from the text on.

    Args:
        path: exported text tower.
        portable: exported tokenizer.
    """
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    captions = choose_captions(clap.tokenizer)
    differences = []
    for batch in [*([caption] for caption in captions), captions[:2], captions]:
        rows = portable.encode_batch(batch)
        inputs = {"token_ids": [row.ids for row in rows], "token_mask": [row.attention_mask for row in rows]}
        (found,) = session.run(None, {name: np.array(value, dtype=np.int64) for name, value in inputs.items()})
        differences.append(largest_difference(clap.get_text_embeddings(batch), found))
    return max(differences)


def largest_difference(expected: Tensor, found: np.ndarray) -> float:
    """Largest absolute difference; infinite if a value is not finite."""
    difference = float(np.abs(expected.numpy() - found).max())
    return difference if np.isfinite(difference) else float("inf")
