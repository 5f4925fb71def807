"""Small and full-size checkpoints of every published family: keys and shapes are listed, values depend on the key only.

The keys are those of files written by the code of each family. `python tests/published_models.py` writes the expected
outputs, next to this file.
"""

import json
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import librosa
import numpy as np
import psutil
import torch
from pinned_starts import pinned_starts
from safetensors.torch import save_file
from torch import Tensor, nn

from clap.audio_encoder.base import LogMelEncoder
from clap.config.build import build
from clap.fusion import Views
from clap.model import Clap
from clap.published.load import load_weights, read_audio_tower

OUTPUTS = Path(__file__).with_suffix(".safetensors")
PITCHES = (220.0, 330.0, 180.0)
Shapes = dict[str, tuple[int, ...]]
MEL_BINS = 64
BANKS = {  # n_fft, f_max of a filter bank at each rate
    48000: (1024, 14000),
    44100: (1024, 14000),
    32000: (1024, 14000),
    16000: (512, 8000),
}


def linear(name: str, rows: int, columns: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name: str, width: int) -> Shapes:
    running = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,), f"{name}.num_batches_tracked": ()}
    return norm(name, width) | running


def conv(name: str, *shape: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def merge(root: str, fusion: str | None, channels: int, reduction: int) -> Shapes:
    """Attentional fusion: a branch on each position, and one on pooled features, whose layers are numbered from 1."""
    hidden, shapes = max(1, channels // reduction), {}
    for turn in {"aff": ("",), "iaff": ("", "2")}.get(fusion, ()):
        for branch, first in (("local", 0), ("global", 1)):
            name = f"{root}.{branch}_att{turn}"
            shapes |= conv(f"{name}.{first}", hidden, channels, 1, 1) | batch_norm(f"{name}.{first + 1}", hidden)
            shapes |= conv(f"{name}.{first + 3}", channels, hidden, 1, 1) | batch_norm(f"{name}.{first + 4}", channels)
    return shapes


def spectrogram(root: str, rate: int | None) -> Shapes:
    """The filter bank, without the constant Fourier kernels, which a loader does not need."""
    return {f"{root}logmel_extractor.melW": (BANKS[rate][0] // 2 + 1, MEL_BINS)} if rate else {}


def htsat(
    root: str,
    *,
    rate: int | None,
    width: int = 8,
    depths: Sequence[int] = (1, 2, 1, 1),
    heads: Sequence[int] = (2, 2, 4, 4),
    fusion: str | None = None,
    classes: int = 3,
) -> Shapes:
    channels = 4 if fusion == "channel_map" else 1
    shapes = spectrogram(root, rate) | batch_norm(f"{root}bn0", MEL_BINS)
    shapes |= conv(f"{root}patch_embed.proj", width, channels, 4, 4) | norm(f"{root}patch_embed.norm", width)
    if fusion in ("daf", "aff", "iaff"):
        shapes |= conv(f"{root}patch_embed.mel_conv2d", width, 1, 4, 12)
        shapes |= merge(f"{root}patch_embed.fusion_model", fusion, width, 4)
    for stage, depth in enumerate(depths):
        dim = width * 2**stage
        for block in range(depth):
            name = f"{root}layers.{stage}.blocks.{block}"
            shapes |= norm(f"{name}.norm1", dim) | norm(f"{name}.norm2", dim)
            shapes |= {f"{name}.attn.relative_position_bias_table": (225, heads[stage])}
            shapes |= {f"{name}.attn.relative_position_index": (64, 64)}
            shapes |= linear(f"{name}.attn.qkv", 3 * dim, dim) | linear(f"{name}.attn.proj", dim, dim)
            shapes |= linear(f"{name}.mlp.fc1", 4 * dim, dim) | linear(f"{name}.mlp.fc2", dim, 4 * dim)
        if stage < 3:
            shapes |= norm(f"{root}layers.{stage}.downsample.norm", 4 * dim)
            shapes |= linear(f"{root}layers.{stage}.downsample.reduction", 2 * dim, 4 * dim, bias=False)
    shapes |= norm(f"{root}norm", dim) | conv(f"{root}tscam_conv", classes, dim, 2, 3)
    return shapes | linear(f"{root}head", classes, classes)


def cnn14(root: str, *, rate: int | None, width: int = 2, fusion: str | None = None, classes: int = 3) -> Shapes:
    shapes = spectrogram(root, rate) | batch_norm(f"{root}bn0", MEL_BINS)
    channels = 1
    for block in range(6):
        dim = width * 2**block
        name = f"{root}conv_block{block + 1}"
        shapes |= conv(f"{name}.conv1", dim, channels, 3, 3, bias=False) | conv(
            f"{name}.conv2", dim, dim, 3, 3, bias=False
        )
        shapes |= batch_norm(f"{name}.bn1", dim) | batch_norm(f"{name}.bn2", dim)
        channels = dim
    shapes |= linear(f"{root}fc1", dim, dim) | linear(f"{root}fc_audioset", classes, dim)
    if fusion:
        shapes |= conv(f"{root}mel_conv2d.0", width, 1, 5, 5) | batch_norm(f"{root}mel_conv2d.1", width)
        shapes |= merge(f"{root}fusion_model", fusion, width, 2)
    return shapes


def bert(root: str, *, types: int, width: int = 16, layers: int = 2, tokens: int = 60, positions: int = 110) -> Shapes:
    """RoBERTa has one token type, BERT two."""
    names = {"word": tokens, "position": positions, "token_type": types}
    shapes = {f"{root}embeddings.{name}_embeddings.weight": (rows, width) for name, rows in names.items()}
    shapes |= norm(f"{root}embeddings.LayerNorm", width)
    for i in range(layers):
        name = f"{root}encoder.layer.{i}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{name}.attention.{part}", width, width)
        shapes |= norm(f"{name}.attention.output.LayerNorm", width) | norm(f"{name}.output.LayerNorm", width)
        shapes |= linear(f"{name}.intermediate.dense", 4 * width, width) | linear(
            f"{name}.output.dense", width, 4 * width
        )
    return shapes | linear(f"{root}pooler.dense", width, width)


def gpt2(root: str, *, width: int = 16, layers: int = 2, tokens: int = 60, positions: int = 90) -> Shapes:
    shapes = {f"{root}wte.weight": (tokens, width), f"{root}wpe.weight": (positions, width)} | norm(
        f"{root}ln_f", width
    )
    for i in range(layers):
        name = f"{root}h.{i}"
        shapes |= norm(f"{name}.ln_1", width) | norm(f"{name}.ln_2", width)
        for part, rows, columns in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            shapes |= {f"{name}.{part}.weight": (rows, columns), f"{name}.{part}.bias": (columns,)}
    return shapes


def laion(tower: partial, text: partial, *, audio_dim: int, text_dim: int = 16, embed_dim: int = 8) -> Shapes:
    shapes = tower("audio_branch.", rate=48000) | text("text_branch.")
    for kind, dim in (("audio", audio_dim), ("text", text_dim)):
        shapes |= linear(f"{kind}_projection.0", embed_dim, dim) | linear(f"{kind}_projection.2", embed_dim, embed_dim)
        for layer in (0, 3):
            shapes |= linear(f"{kind}_transform.sequential.{layer}", embed_dim, embed_dim)
    return {f"module.{key}": shape for key, shape in (shapes | {"logit_scale_a": (), "logit_scale_t": ()}).items()}


def residual(root: str, dim: int, embed_dim: int, *, names: tuple[str, str], bias: bool) -> Shapes:
    shapes = linear(f"{root}{names[0]}", embed_dim, dim, bias=bias)
    return shapes | linear(f"{root}{names[1]}", embed_dim, embed_dim, bias=bias) | norm(f"{root}layer_norm", embed_dim)


def msclap(tower: Shapes, text: partial, *, audio_dim: int, text_dim: int = 16, embed_dim: int = 8) -> Shapes:
    project = partial(residual, embed_dim=embed_dim, names=("linear1", "linear2"), bias=False)
    audio = project("audio_encoder.projection.", audio_dim) | tower
    return (
        audio | text("caption_encoder.base.") | project("caption_encoder.projection.", text_dim) | {"logit_scale": ()}
    )


def custom_clap(tower: partial, text: partial, *, audio_dim: int, text_dim: int = 16, embed_dim: int = 8) -> Shapes:
    project = partial(residual, embed_dim=embed_dim, names=("fc1", "fc2"), bias=True)
    audio = tower("audio_encoder.base.", rate=None) | project("audio_encoder.projection.", audio_dim)
    return audio | text("text_encoder.base.") | project("text_encoder.projection.", text_dim) | {"logit_scale": ()}


def clapcap() -> Shapes:
    shapes = htsat("clap.base.htsat.", rate=32000)
    shapes |= residual("clap.projection.", 64, 8, names=("linear1", "linear2"), bias=False)
    shapes |= {"clap_project.prefix_const": (4, 16), "gpt.lm_head.weight": (60, 16)}
    return shapes | linear("clap_project.linear", 64, 8) | gpt2("gpt.transformer.")


ROBERTA, BERT = partial(bert, types=1), partial(bert, types=2)
# name: shapes of all keys, and the key under which the file stores them
CLAPS: dict[str, tuple[Shapes, str]] = {
    "laion_htsat_roberta": (laion(htsat, ROBERTA, audio_dim=64), "state_dict"),
    "laion_htsat_aff_roberta": (laion(partial(htsat, fusion="aff"), ROBERTA, audio_dim=64), "state_dict"),
    "laion_htsat_iaff_roberta": (laion(partial(htsat, fusion="iaff"), ROBERTA, audio_dim=64), "state_dict"),
    "laion_htsat_daf_bert": (laion(partial(htsat, fusion="daf"), BERT, audio_dim=64), "state_dict"),
    "laion_htsat_channel_map": (laion(partial(htsat, fusion="channel_map"), ROBERTA, audio_dim=64), "state_dict"),
    "laion_pann_roberta": (laion(cnn14, ROBERTA, audio_dim=64), "state_dict"),
    "laion_pann_aff_roberta": (laion(partial(cnn14, fusion="aff"), ROBERTA, audio_dim=64), "state_dict"),
    "msclap_2022": (msclap(cnn14("audio_encoder.base.", rate=44100), BERT, audio_dim=64), "model"),
    "msclap_2023": (msclap(htsat("audio_encoder.base.htsat.", rate=32000), gpt2, audio_dim=64), "model"),
    "customclap_htsat_iaff_gpt2": (custom_clap(partial(htsat, fusion="iaff"), gpt2, audio_dim=64), "model"),
    "customclap_cnn14_roberta": (custom_clap(cnn14, ROBERTA, audio_dim=64), "model"),
    "clapcap": (clapcap(), "model"),
}
TOWERS: dict[str, tuple[Shapes, str]] = {
    "panns_32k": (cnn14("", rate=32000), "model"),
    "panns_16k": (cnn14("", rate=16000), "model"),
    "htsat_audioset": (htsat("sed_model.", rate=32000), "state_dict"),
}
TINY, BASE = ({"width": w, "depths": d, "heads": (4, 8, 16, 32)} for w, d in ((96, (2, 2, 6, 2)), (128, (2, 2, 12, 2))))
FULL_BERT = {"width": 768, "layers": 12, "tokens": 50265, "positions": 514}
FULL_SIZE = {
    "laion_630k": (
        laion(partial(htsat, **TINY), partial(ROBERTA, **FULL_BERT), audio_dim=768, text_dim=768, embed_dim=512),
        "state_dict",
    ),
    "laion_music": (
        laion(partial(htsat, **BASE), partial(ROBERTA, **FULL_BERT), audio_dim=1024, text_dim=768, embed_dim=512),
        "state_dict",
    ),
    "msclap_2022": (
        msclap(
            cnn14("audio_encoder.base.", rate=44100, width=64),
            partial(BERT, **FULL_BERT | {"tokens": 30522, "positions": 512}),
            audio_dim=2048,
            text_dim=768,
            embed_dim=1024,
        ),
        "model",
    ),
    "msclap_2023": (
        msclap(
            htsat("audio_encoder.base.htsat.", rate=32000, **TINY),
            partial(gpt2, width=768, layers=12, tokens=50257, positions=1024),
            audio_dim=768,
            text_dim=768,
            embed_dim=1024,
        ),
        "model",
    ),
}


def fill_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Values derived from each key, such that no operation of the model is an identity or saturates."""
    return {key: fill_tensor(key, shape) for key, shape in shapes.items()}


def fill_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    key = key.removeprefix("module.")
    if key.endswith("melW"):
        rate = 16000 if shape[0] == 257 else 48000 if key.startswith("audio_branch") else 32000
        rate = 44100 if key == "audio_encoder.base.logmel_extractor.melW" else rate
        n_fft, f_max = BANKS[rate]
        bank = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=MEL_BINS, fmin=50, fmax=f_max)
        return torch.tensor(bank.T.copy())
    if key.endswith(("num_batches_tracked", "relative_position_index")):
        return torch.zeros(shape, dtype=torch.long)
    if key.startswith("logit_scale"):
        return torch.tensor(2.5)
    noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith("running_var"):
        return torch.from_numpy(0.5 + np.abs(noise))
    if key.endswith(("bias_table", "bias", "running_mean")):
        return torch.from_numpy(0.2 * noise)
    if len(shape) == 1:  # the weight of a norm
        return torch.from_numpy(1 + 0.2 * noise)
    if "_embeddings" in key or ".wte" in key or ".wpe" in key:
        return torch.from_numpy(0.02 * noise)
    return torch.from_numpy(noise * (1.5 / np.prod(shape[1:]) ** 0.5).astype(np.float32))


def write_checkpoint(folder: Path, name: str) -> Path:
    """Write a file in the format of the family's training code."""
    shapes, wrapper = (CLAPS | TOWERS)[name]
    path = folder / f"{name}.pt"
    torch.save({"epoch": 3, "name": name, wrapper: fill_shapes(shapes), "optimizer": {"state": {}}}, path)
    return path


def text_settings(name: str) -> dict[str, int]:
    """Settings with two attention heads in the text tower; tensors do not determine their number."""
    if name == "clapcap":
        return {}
    is_gpt2 = "gpt2" in name or name == "msclap_2023"
    return {f"text_encoder.model.{'n_head' if is_gpt2 else 'num_attention_heads'}": 2}


def make_waveform(seconds: float, sample_rate: int, pitch: float) -> Tensor:
    """A rising tone with a periodic level down to near silence, (samples,); equal on every machine."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    tone = np.sin(2 * np.pi * pitch * (time + 0.15 * time**2)) + 0.4 * np.sin(2 * np.pi * 3.7 * pitch * time)
    level = 0.6 * np.exp(-6 * (1 + np.sin(2 * np.pi * time / 2.3)))  # down to 4e-6, below 16 bits
    return torch.from_numpy((level * tone).astype(np.float32))


def make_tokens(tokens: int = 60) -> tuple[Tensor, Tensor]:
    """Ids (3, 12) and mask of three captions; the last contains an id 0 before its end."""
    lengths = torch.tensor([12, 5, 9])
    ids = (torch.arange(36).view(3, 12) * 7 + 3) % (tokens - 5) + 5
    ids[2, 4] = 0
    mask = torch.arange(12) < lengths[:, None]
    return torch.where(mask, ids, 1), mask


def embed(clap: Clap) -> dict[str, Tensor]:
    """Unit-norm embeddings of three captions and of clips below, at and above the window, by the public API."""
    seconds = clap.audio_encoder.frontend.num_samples / clap.sample_rate
    lengths = (0.27 * seconds, seconds, 1.24 * seconds)
    waveforms = [make_waveform(*clip) for clip in zip(lengths, [clap.sample_rate] * 3, PITCHES, strict=True)]
    with torch.no_grad():
        with pinned_starts(clap.audio_encoder, choose_starts(clap)):
            audio = clap.get_audio_embeddings(waveforms, clap.sample_rate)
        return {"audio": audio} | ({"text": clap.embed_text(*make_tokens())} if clap.text_encoder else {})


def choose_starts(clap: Clap) -> int | list[int]:
    """Possible random starts of the published code for the long clip of `embed`: first sample, or frames if fused."""
    fused = clap.audio_encoder.fusion.num_views == 4
    return [37, 90, 201] if fused else 31234


def encode(encoder: LogMelEncoder) -> Tensor:
    """Features of two clips, each at its own length, as in audio tagging."""
    rows = []
    for seconds, pitch in zip((1.7, 4.0), PITCHES[:2], strict=True):
        log_mel = encoder.frontend(make_waveform(seconds, encoder.sample_rate, pitch)[None])
        row = torch.zeros(1, dtype=torch.long)
        with torch.no_grad():
            rows.append(encoder.encode_views(Views(log_mel[:, None], row.bool(), row)))
    return torch.cat(rows)


def load_clap(folder: Path, name: str) -> Clap:
    return Clap.from_ckpt(write_checkpoint(folder, name), settings=text_settings(name))


def load_tower(source: Path) -> LogMelEncoder:
    audio_encoder, fusion, weights = read_audio_tower(str(source))
    holder = nn.ModuleDict({"audio_encoder": build(audio_encoder, LogMelEncoder, fusion=build(fusion, nn.Module))})
    load_weights(holder, weights, str(source))
    return holder.eval()["audio_encoder"]


def main() -> None:
    """Write the expected outputs; use only code that reproduces the outputs of the published code."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = {}
        for name in CLAPS:
            values = embed(load_clap(Path(folder), name))
            outputs |= {f"{name}/{kind}": value for kind, value in values.items()}
        for name in TOWERS:
            outputs[f"{name}/features"] = encode(load_tower(write_checkpoint(Path(folder), name)))
    save_file({name: value.contiguous() for name, value in outputs.items()}, OUTPUTS)


def measure(path: str) -> None:
    """Print the seconds to load a file, and the peak growth of the process in bytes."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("laion_htsat_aff_roberta", "msclap_2022", "msclap_2023"):  # import lazy modules first
            load_clap(Path(folder), name)
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    clap = Clap.from_ckpt(path)
    seconds = time.perf_counter() - start
    for value in clap.state_dict().values():
        value.sum()
    # Not getrusage, whose peak a process inherits from the one that started it.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps([seconds, int(peak.split()[1]) * 1024 - before]))


if __name__ == "__main__":
    measure(sys.argv[2]) if sys.argv[1:2] == ["measure"] else main()
