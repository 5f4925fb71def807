"""Key tables: the keys that identify a family of checkpoints, and the renames to the keys of `Clap`.

A rename is a regular expression and its replacement; the renames of a family are applied to every key in order. Renamed
keys that match UNUSED do not affect embeddings and are skipped; all others are weights of `Clap`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Rename = tuple[str, str | Callable[[re.Match], str]]

AUDIO, TEXT = "audio_encoder.", "text_encoder.transformer."

HTSAT: tuple[Rename, ...] = (
    (rf"^{AUDIO}(layers|patch_embed|norm)\b", rf"{AUDIO}trunk.\1"),
    (r"layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) + 1}.downsample"),
)
FUSED: tuple[Rename, ...] = (
    (rf"^({AUDIO}.*)mel_conv2d", r"\1local_proj"),
    (rf"^({AUDIO}.*)fusion_model", r"\1merge"),
)
TOWER = (*HTSAT, *FUSED)  # changes no key of Cnn14
HUGGING_FACE: tuple[Rename, ...] = (
    (r"^audio_model\.audio_encoder\.", AUDIO),
    (r"^text_model\.", TEXT),
    (rf"^{AUDIO}batch_norm", f"{AUDIO}bn0"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (rf"^({AUDIO}.*)attention\.self", r"\1attn"),
    (rf"^({AUDIO}.*)attention\.output\.dense", r"\1attn.proj"),
    (rf"^({AUDIO}.*)intermediate\.dense", r"\1mlp.fc1"),
    (rf"^({AUDIO}.*blocks\.\d+)\.output\.dense", r"\1.mlp.fc2"),
)
# In any family: derived buffers, tagging heads, constants of the spectrogram, parts of non-contrastive objectives.
UNUSED = re.compile(
    rf"^{AUDIO}(spectrogram_extractor|logmel_extractor|tscam_conv|head|fc_audioset)\."
    rf"|^{AUDIO}.*(relative_position_index|attn_mask)$"
    rf"|^{TEXT}(embeddings\.(position_ids|token_type_ids)|h\.\d+\.attn\.(bias|masked_bias))$"
    r"|^(audio|text)_transform\.|^logit_scale_t$|^captioner\."
)
MEL = f"{AUDIO}logmel_extractor.melW"  # (n_fft / 2 + 1, n_mels), the filter bank of training


@dataclass(frozen=True)
class Family:
    """One published layout of keys.

    Args:
        patterns: regular expressions; a file in which each matches a key is of this family.
        renames: from its keys to those of `Clap`.
    """

    name: str
    patterns: tuple[str, ...]
    renames: tuple[Rename, ...]


FAMILIES = (  # the first whose patterns all match
    Family(
        "clapcap",  # only the audio tower; the captioner is skipped
        (r"^clap_project\.", r"^gpt\."),
        (
            (r"^clap\.base\.htsat\.", AUDIO),
            (r"^clap\.projection\.", "audio_projection."),
            (r"^(clap_project|gpt)\.", r"captioner.\1."),
            *TOWER,
        ),
    ),
    Family(
        "huggingface",
        (r"^audio_model\.audio_encoder\.", r"^audio_projection\.linear1\."),
        ((r"^logit_scale_a$", "logit_scale"), *HUGGING_FACE, *TOWER),
    ),
    Family(
        "msclap",
        (r"^caption_encoder\.projection\.linear1\.", r"^audio_encoder\.base\."),
        (
            (r"^audio_encoder\.projection\.", "audio_projection."),
            (r"^audio_encoder\.base\.(htsat\.)?", AUDIO),
            (r"^caption_encoder\.projection\.", "text_projection."),
            (r"^caption_encoder\.base\.", TEXT),
            *TOWER,
        ),
    ),
    Family(
        "custom_clap",
        (r"^audio_encoder\.projection\.fc1\.", r"^text_encoder\.base\."),
        (
            (r"^(audio|text)_encoder\.projection\.fc(\d)\.", r"\1_projection.linear\2."),
            (r"^(audio|text)_encoder\.projection\.", r"\1_projection."),
            (r"^audio_encoder\.base\.", AUDIO),
            (r"^text_encoder\.base\.", TEXT),
            *TOWER,
        ),
    ),
    Family(
        "laion",
        (r"^audio_branch\.", r"^logit_scale_a$"),
        (
            (r"^audio_branch\.", AUDIO),
            (r"^text_branch\.", TEXT),
            (r"^(audio|text)_projection\.0\.", r"\1_projection.linear1."),
            (r"^(audio|text)_projection\.2\.", r"\1_projection.linear2."),
            (r"^logit_scale_a$", "logit_scale"),
            *TOWER,
        ),
    ),
    Family("audioset", (r"^sed_model\.",), ((r"^sed_model\.", AUDIO), *TOWER)),
    Family("audioset", (r"^conv_block1\.conv1\.weight$", r"^fc_audioset\."), ((r"^", AUDIO), *TOWER)),
    Family("audioset", (r"^patch_embed\.proj\.weight$", r"^tscam_conv\."), ((r"^", AUDIO), *TOWER)),
)


def find_family(keys: Sequence[str], where: str) -> Family:
    """The family of a checkpoint.

    Raises:
        ValueError: it is of an unknown family; the message shows its first keys.
    """
    for family in FAMILIES:
        if all(any(re.search(pattern, key) for key in keys) for pattern in family.patterns):
            return family
    names = ", ".join(dict.fromkeys(family.name for family in FAMILIES))
    raise ValueError(
        f"{where}: unknown checkpoint, not one of {names}; the {len(keys)} keys start with {', '.join(keys[:4])}"
    )


def rename(weights: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Weights under the keys of `Clap`; query, key and value of Hugging Face are joined.

    Raises:
        ValueError: two keys name the same weight.
    """
    renamed, origin = {}, {}
    for original, value in weights.items():
        key = rename_key(original, family)
        if key in renamed:
            raise ValueError(f"{origin[key]} and {original} are the same weight, {key}")
        renamed[key], origin[key] = value, original
    return join_heads(renamed)


def rename_key(key: str, family: Family) -> str:
    """Our name of one of a family's keys."""
    for pattern, replacement in family.renames:
        key = re.sub(pattern, replacement, key)
    return key


def join_heads(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """query, key, value (width, ...) -> qkv (3 * width, ...)."""
    for key in [key for key in weights if re.search(rf"^{AUDIO}.*\.attn\.query\.", key)]:
        parts = [weights.pop(key.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        weights[key.replace(".query.", ".qkv.")] = torch.cat(parts)
    return weights
