"""The config of a published model: sizes from the shapes of its tensors, preprocessing by family.

The tables contain what the tensors do not determine, with quirks needed for equal outputs; new models do not use them.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clap.config import flatten
from clap.published.keys import AUDIO, TEXT

Node = dict[str, Any]

LAION = {"sample_rate": 48000, "hop_length": 480, "window": 10.0, "fill": "repeat_pad", "int16": True}
MS = {"sample_rate": 44100, "hop_length": 320, "fill": "repeat"}
FUSED = {"_target_": "clap.published.frontends.TorchaudioLogMel", "mel_scale": "htk"}
MS_2023 = MS | {"_target_": "clap.published.frontends.MSClap2023LogMel", "window": 7.0}
FRONTENDS: dict[str, Node] = {
    "laion": LAION,
    "laion fused": LAION | FUSED,
    "msclap cnn14": MS | {"window": 5.0},
    "msclap htsat": MS_2023,
    "clapcap htsat": MS_2023,
    "custom_clap": {"sample_rate": 48000, "hop_length": 480, "window": 10.0, "fill": "repeat"} | FUSED,
}
# AudioSet towers by the number of rows of their filter bank, n_fft / 2 + 1.
AUDIOSET: dict[int, Node] = {
    513: {"sample_rate": 32000, "hop_length": 320, "n_fft": 1024, "f_max": 14000.0},
    257: {"sample_rate": 16000, "hop_length": 160, "n_fft": 512, "f_max": 8000.0},
    129: {"sample_rate": 8000, "hop_length": 80, "n_fft": 256, "f_max": 4000.0},
}
COMMON = {"_target_": "clap.audio.LogMelSpectrogram", "n_fft": 1024, "n_mels": 64, "f_min": 50.0, "f_max": 14000.0}
HTSAT, CNN14 = "htsat", "cnn14"

# (family, kind of text tower) -> maximum tokens, pooling of hidden states, text appended to the caption
END = " <|endoftext|>"
TEXTS: dict[tuple[str, str], Node] = {
    ("laion", "roberta"): {"max_length": 77, "pooling": "pooler", "suffix": None},
    ("laion", "bert"): {"max_length": 77, "pooling": "pooler", "suffix": None},
    ("huggingface", "roberta"): {"max_length": 77, "pooling": "pooler", "suffix": None},
    ("msclap", "bert"): {"max_length": 100, "pooling": "first", "suffix": None},
    ("msclap", "gpt2"): {"max_length": 77, "pooling": "last_nonzero", "suffix": END},
    ("custom_clap", "roberta"): {"max_length": 77, "pooling": "first", "suffix": None},
    ("custom_clap", "gpt2"): {"max_length": 77, "pooling": "last_nonzero", "suffix": END},
}
TOKENIZERS = {"roberta": "roberta-base", "bert": "bert-base-uncased", "gpt2": "gpt2"}
NORM_EPS = {"roberta": 1e-5, "bert": 1e-12}
# The only supported values in config.json of a Hugging Face folder.
FIXED = {
    "projection_hidden_act": "relu",
    "audio_config.hidden_act": "gelu",
    "audio_config.layer_norm_eps": 1e-5,
    "audio_config.enable_patch_layer_norm": True,
    "text_config.position_embedding_type": "absolute",
    "text_config.is_decoder": False,
}
# Keys of its text tower that tensors do not determine: defaults of transformers for keys missing in config.json.
TEXT_DEFAULTS = {
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
HEAD_DIM = 64  # of every published text tower; tensors do not determine the number of heads


def describe(weights: Mapping[str, Tensor], family: str, files: Mapping[str, Node], where: str) -> Node:
    """The config of the model to which renamed weights belong.

    Args:
        files: parsed `config.json` and `preprocessor_config.json` of the folder, empty if missing.

    Raises:
        ValueError: the checkpoint has a tower of an unsupported kind.
    """
    audio, fusion = describe_audio(weights, family, files, where)
    config: Node = {"audio_encoder": audio, "fusion": fusion, "init_logit_scale": 1 / 0.07}
    config["text_encoder"] = describe_text(weights, family, files, where) if has_prefix(weights, TEXT) else None
    if family != "audioset":
        config["embed_dim"] = weights["audio_projection.linear1.weight"].shape[0]
        config["projection"] = describe_projection(weights)
    return config


def has_prefix(weights: Mapping[str, Tensor], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in weights)


def describe_projection(weights: Mapping[str, Tensor]) -> Node:
    name = "ResidualProjection" if "audio_projection.layer_norm.weight" in weights else "MLPProjection"
    node: Node = {"_target_": f"clap.model.{name}", "_partial_": True}
    return node | ({"bias": "audio_projection.linear1.bias" in weights} if name == "ResidualProjection" else {})


def describe_audio(
    weights: Mapping[str, Tensor], family: str, files: Mapping[str, Node], where: str
) -> tuple[Node, Node]:
    """Nodes of the audio encoder and of its fusion."""
    kind = CNN14 if f"{AUDIO}conv_block1.conv1.weight" in weights else HTSAT
    sizes = describe_cnn14(weights) if kind == CNN14 else describe_htsat(weights, where)
    fusion = describe_fusion(weights, where)
    if family == "huggingface":
        check_fixed(files["config.json"], where)
        frontend = read_preprocessor(files["preprocessor_config.json"], is_fused(weights))
        sizes |= {"image_size": files["config.json"].get("audio_config", {}).get("spec_size", 256)}
    elif family == "audioset":
        bins = weights.get(f"{AUDIO}logmel_extractor.melW")
        rows = 513 if bins is None else len(bins)
        frontend = AUDIOSET[rows] | {"window": 10.0, "fill": "repeat_pad"}
    else:
        names = [f"{family} {'fused' if is_fused(weights) else ''}".strip(), f"{family} {kind}", family]
        frontend = FRONTENDS[next(name for name in names if name in FRONTENDS)]
    return {**sizes, "frontend": COMMON | frontend, "spec_augment": None}, fusion


def check_fixed(config: Node, where: str) -> None:
    for key, value in flatten(config):
        if key in FIXED and value != FIXED[key]:
            raise ValueError(f"{where}: config.json sets {key}={value}; only {FIXED[key]} is supported")
    stride, size = (config.get("audio_config", {}).get(key, 4) for key in ("patch_stride", "patch_size"))
    if stride not in (size, [size, size]):
        raise ValueError(f"{where}: config.json sets patch_stride={stride} and patch_size={size}; they must be equal")


def is_fused(weights: Mapping[str, Tensor]) -> bool:
    """Whether the encoder fuses a global view and three local views."""
    first = weights.get(f"{AUDIO}trunk.patch_embed.proj.weight", weights.get(f"{AUDIO}conv_block1.conv1.weight"))
    return first.shape[1] == 4 or any(".local_proj." in key for key in weights)


def describe_cnn14(weights: Mapping[str, Tensor]) -> Node:
    width = weights[f"{AUDIO}conv_block1.conv1.weight"].shape[0]
    return {"_target_": "clap.audio_encoder.cnn14.Cnn14", "width": width}


def describe_htsat(weights: Mapping[str, Tensor], where: str) -> Node:
    proj = weights.get(f"{AUDIO}trunk.patch_embed.proj.weight")
    if proj is None:
        raise ValueError(f"{where}: the audio tower is neither HTS-AT (patch_embed.proj) nor Cnn14 (conv_block1)")
    blocks = re.compile(rf"^{re.escape(AUDIO)}trunk\.layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table$")
    tables = {(int(m[1]), int(m[2])): value for key, value in weights.items() if (m := blocks.match(key))}
    stages = range(1 + max(stage for stage, _ in tables))
    return {
        "_target_": "clap.audio_encoder.htsat.HTSAT",
        "embed_dim": proj.shape[0],
        "depths": [1 + max(block for stage, block in tables if stage == i) for i in stages],
        "num_heads": [tables[i, 0].shape[1] for i in stages],
        "patch_size": proj.shape[2],
        "window_size": (1 + round(len(tables[0, 0]) ** 0.5)) // 2,  # (2 window - 1) ** 2 relative positions
    }


def describe_fusion(weights: Mapping[str, Tensor], where: str) -> Node:
    if has_prefix(weights, f"{AUDIO}mel_conv1d") or any(".mel_conv1d." in key for key in weights):
        raise ValueError(f"{where}: fusion in one dimension (mel_conv1d) is not supported; choose another checkpoint")
    if not is_fused(weights):
        return {"_target_": "clap.fusion.OneWindow"}
    node: Node = {"_target_": "clap.fusion.GlobalAndLocal", "merge": None}
    attention = next((value for key, value in weights.items() if key.endswith("merge.local_att.0.weight")), None)
    if attention is not None:
        hidden, channels = attention.shape[:2]
        node["merge"] = {"_target_": "clap.fusion.AFF", "_partial_": True, "reduction": channels // hidden}
        if any(".merge.local_att2." in key for key in weights):
            node["merge"] |= {"_target_": "clap.fusion.IAFF", "shared_global_att": True}
    elif any(".local_proj." in key for key in weights):
        node["merge"] = {"_target_": "clap.fusion.DAF", "_partial_": True}
    return node


def read_preprocessor(values: Node, fused: bool) -> Node:
    """The frontend node of a Hugging Face folder; in transformers, the truncation determines the mel scale."""
    rate = values.get("sampling_rate", 48000)
    frontend = {
        "sample_rate": rate,
        "hop_length": values.get("hop_length", 480),
        "n_fft": values.get("fft_window_size", 1024),
        "n_mels": values.get("feature_size", 64),
        "f_min": float(values.get("frequency_min", 50)),
        "f_max": float(values.get("frequency_max", 14000)),
        "window": float(values.get("max_length_s", 10)),
        "_target_": "clap.published.frontends.TransformersLogMel",
        "fill": {"repeatpad": "repeat_pad"}.get(values.get("padding", "repeatpad"), values.get("padding")),
    }
    is_fusion = values.get("truncation", "fusion" if fused else "rand_trunc") == "fusion"
    return frontend | ({"mel_scale": "htk"} if is_fusion else {})


def describe_text(weights: Mapping[str, Tensor], family: str, files: Mapping[str, Node], where: str) -> Node:
    kind = "roberta" if family == "huggingface" else find_text_kind(weights)
    if (family, kind) not in TEXTS:
        raise ValueError(f"{where}: a {kind} text tower is not supported for {family} checkpoints")
    sizes = describe_gpt2(weights) if kind == "gpt2" else describe_bert(weights, kind)
    if family == "huggingface":
        stated = files["config.json"].get("text_config", {})
        sizes |= {key: stated.get(key, default) for key, default in TEXT_DEFAULTS.items()}
    return {
        "_target_": "clap.text_encoder.TextEncoder",
        "pretrained": False,
        "model": {"model_type": kind, **sizes},
        "tokenizer": TOKENIZERS[kind],
        **TEXTS[family, kind],
    }


def find_text_kind(weights: Mapping[str, Tensor]) -> str:
    if f"{TEXT}wte.weight" in weights:
        return "gpt2"
    types = weights.get(f"{TEXT}embeddings.token_type_embeddings.weight")
    return "unknown" if types is None else "bert" if len(types) == 2 else "roberta"


def describe_bert(weights: Mapping[str, Tensor], kind: str) -> Node:
    """Sizes of a BERT or RoBERTa, with the keys of its transformers config."""
    vocab_size, hidden_size = weights[f"{TEXT}embeddings.word_embeddings.weight"].shape
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": count_layers(weights, f"{TEXT}encoder.layer."),
        "num_attention_heads": max(1, hidden_size // HEAD_DIM),
        "intermediate_size": len(weights[f"{TEXT}encoder.layer.0.intermediate.dense.weight"]),
        "max_position_embeddings": len(weights[f"{TEXT}embeddings.position_embeddings.weight"]),
        "type_vocab_size": len(weights[f"{TEXT}embeddings.token_type_embeddings.weight"]),
        "layer_norm_eps": NORM_EPS[kind],
    }


def describe_gpt2(weights: Mapping[str, Tensor]) -> Node:
    vocab_size, width = weights[f"{TEXT}wte.weight"].shape
    return {
        "vocab_size": vocab_size,
        "n_embd": width,
        "n_layer": count_layers(weights, f"{TEXT}h."),
        "n_head": max(1, width // HEAD_DIM),
        "n_inner": weights[f"{TEXT}h.0.mlp.c_fc.weight"].shape[1],
        "n_positions": len(weights[f"{TEXT}wpe.weight"]),
    }


def count_layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in weights if key.startswith(prefix))
