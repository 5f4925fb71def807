"""Write a model as a Hugging Face ClapModel folder, if that architecture has all of its parts.

Keys are mapped by the table that is used for reading (`keys.HUGGING_FACE`).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from clap import lora
from clap.audio import LogMelSpectrogram
from clap.audio_encoder.htsat import HTSAT
from clap.checkpoint import WEIGHTS
from clap.fusion import AFF, MeanOfWindows, OneWindow
from clap.published.frontends import MSClap2023LogMel, TorchaudioLogMel
from clap.published.keys import FAMILIES, UNUSED, rename_key
from clap.published.load import SCALES, no_weights
from clap.published.sources import CONFIG

HEADS = ("query", "key", "value")  # separate tensors in ClapModel, one tensor in HTSAT
# Keys that ClapTextConfig shares with RobertaConfig.
TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
FILLS = {"repeat_pad": "repeatpad", "repeat": "repeat", "pad": "pad"}
AMIN = 1e-10  # of ClapFeatureExtractor
FUSED_MELS = 64  # mel bins of ClapFeatureExtractor's global view, whatever its feature_size


def list_obstacles(clap: nn.Module) -> list[str]:
    """The parts of a Clap that ClapModel does not have."""
    obstacles = list_audio_obstacles(clap.audio_encoder)
    if lora.adapted_layers(clap):
        obstacles.append("low-rank adapters (read the model from a checkpoint, which merges them)")
    text = clap.text_encoder
    if text is None:
        obstacles.append("a model without text encoder")
    elif text.transformer.config.model_type != "roberta":
        obstacles.append(f"a {text.transformer.config.model_type} text encoder (only roberta)")
    elif text.pooling != "pooler":
        obstacles.append(f"text_encoder.pooling={text.pooling} (only pooler)")
    elif text.tokenizer.suffix is not None:
        obstacles.append("text_encoder.suffix")
    if (name := type(clap.audio_projection).__name__) != "MLPProjection":
        obstacles.append(name)
    return obstacles


def list_audio_obstacles(encoder: nn.Module) -> list[str]:
    if not isinstance(encoder, HTSAT):
        return [type(encoder).__name__]
    patch_embed = encoder.trunk.patch_embed
    merge = getattr(patch_embed, "merge", None)
    if patch_embed.in_channels > 1:
        return ["fusion by channels (channel_map)"]
    if encoder.fusion.merge is not None and type(merge) is not AFF:
        return [f"fusion by {type(merge).__name__}"]
    sizes = describe_trunk(encoder)
    stages = len(sizes["depths"])
    side = encoder.image_size // sizes["patch_size"] // 2 ** (stages - 1)  # tokens of the last stage
    if side % sizes["window_size"]:
        return [f"a last stage {side} tokens wide, not a multiple of window_size={sizes['window_size']}"]
    if side % (encoder.image_size // encoder.frontend.n_mels):
        return [f"image_size={encoder.image_size} folded from n_mels={encoder.frontend.n_mels}"]
    return []


def describe_trunk(encoder: HTSAT) -> dict[str, Any]:
    """Sizes of HTS-AT, with the keys of ClapAudioConfig."""
    layers, proj = encoder.trunk.layers, encoder.trunk.patch_embed.proj
    patch_size = proj.kernel_size[0]
    return {
        "patch_embeds_hidden_size": proj.out_channels,
        "depths": [len(layer.blocks) for layer in layers],
        "num_attention_heads": [layer.blocks[0].attn.num_heads for layer in layers],
        "num_hidden_layers": len(layers),
        "hidden_size": encoder.output_dim,
        "spec_size": encoder.image_size,
        "num_mel_bins": encoder.frontend.n_mels,
        "patch_size": patch_size,
        "patch_stride": [patch_size, patch_size],
        "window_size": layers[0].blocks[0].attn.window_size[0],
    }


def describe_config(clap: nn.Module) -> ClapConfig:
    audio = describe_trunk(clap.audio_encoder) | {"drop_path_rate": clap.config["audio_encoder"].get("drop_path", 0.1)}
    if clap.audio_encoder.fusion.merge is not None:
        merge = clap.audio_encoder.trunk.patch_embed.merge
        hidden, channels = merge.local_att[0].weight.shape[:2]
        audio |= {"enable_fusion": True, "fusion_type": None, "aff_block_r": channels // hidden}
    text = {key: getattr(clap.text_encoder.transformer.config, key) for key in TEXT_KEYS}
    return ClapConfig(
        audio_config=audio,
        text_config=text,
        projection_dim=clap.embed_dim,
        projection_hidden_act="relu",
        logit_scale_init_value=clap.config["init_logit_scale"],
        architectures=["ClapModel"],
        dtype="float32",
    )


def describe_extractor(clap: nn.Module) -> tuple[ClapFeatureExtractor, list[str]]:
    """The extractor closest to a model's frontend, and the settings of frontend and fusion that it does not support."""
    encoder = clap.audio_encoder
    frontend: LogMelSpectrogram = encoder.frontend
    fused = encoder.fusion.merge is not None
    window = frontend.num_samples / frontend.sample_rate
    unsupported = {
        f"int16={frontend.int16}": frontend.int16,
        type(frontend).__name__: isinstance(frontend, TorchaudioLogMel | MSClap2023LogMel),
        f"amin={frontend.amin:g}": frontend.amin != AMIN,
        f"mel_scale={frontend.mel_scale}": frontend.mel_scale != ("htk" if fused else "slaney"),
        f"n_mels={frontend.n_mels} with fusion": fused and frontend.n_mels != FUSED_MELS,
        f"window={window:g} s, not an integer": not window.is_integer(),
        "fusion=mean": isinstance(encoder.fusion, MeanOfWindows),
        "the middle window of longer clips (a random one is used)": isinstance(encoder.fusion, OneWindow),
    }
    extractor = ClapFeatureExtractor(
        feature_size=frontend.n_mels,
        sampling_rate=frontend.sample_rate,
        hop_length=frontend.hop_length,
        max_length_s=max(1, round(window)),
        fft_window_size=frontend.n_fft,
        frequency_min=frontend.f_min,
        frequency_max=frontend.f_max,
        truncation="fusion" if fused else "rand_trunc",
        padding=FILLS[frontend.fill],
    )
    return extractor, [name for name, is_unsupported in unsupported.items() if is_unsupported]


def to_huggingface(clap: nn.Module, config: ClapConfig) -> dict[str, Tensor]:
    """A model's weights under the keys of ClapModel, which must match one to one.

    Raises:
        ValueError: a tensor has no counterpart, or one of another size.
    """
    with no_weights():
        expected = ClapModel(config).state_dict()
    family = next(family for family in FAMILIES if family.name == "huggingface")
    own = dict(clap.state_dict()) | {"logit_scale_t": second_logit_scale(clap)}
    weights, used = {}, set()
    for key, like in expected.items():
        name, part = re.subn(r"\.attn\.(query|key|value)\.", ".attn.qkv.", rename_key(key, family))
        if name not in own and UNUSED.search(name):
            weights[key] = like  # buffer that depends on sizes only
            continue
        if name not in own or own[name].numel() != like.numel() * (3 if part else 1):
            raise ValueError(f"{key} of ClapModel has no counterpart in this model")
        value = own[name].chunk(3)[HEADS.index(key.split(".")[-2])] if part else own[name]
        weights[key] = value.to("cpu", copy=True).contiguous().view(like.shape)
        used.add(name)
    if left := sorted(own.keys() - used):
        raise ValueError(f"{left[0]} has no counterpart in ClapModel")
    return {key: value.contiguous() for key, value in weights.items()}


def second_logit_scale(clap: nn.Module) -> Tensor:
    """ClapModel's scale of logits_per_text: that of the published file, or logit_scale if training has changed it."""
    published: Mapping[str, float] = clap.config.get(SCALES) or {}
    scale = clap.logit_scale.detach()
    unchanged = published.get("audio") == scale.item()
    return torch.tensor(published["text"]) if unchanged else scale


def write_huggingface(clap: nn.Module, folder: Path) -> list[str]:
    """Write config.json, preprocessor_config.json and model.safetensors of a Clap without obstacles.

    Returns the settings that ClapFeatureExtractor does not support.
    """
    config = describe_config(clap)
    weights = to_huggingface(clap, config)
    extractor, unsupported = describe_extractor(clap)
    folder.mkdir()
    (folder / CONFIG).write_text(config.to_json_string(use_diff=False))
    extractor.save_pretrained(folder)
    safetensors.torch.save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return unsupported
