"""Configs of published models: sizes from tensors, the rest from tables."""

import published_models as models
import pytest
import torch

from clap.published.keys import find_family, rename
from clap.published.layouts import describe, read_preprocessor


def describe_checkpoint(shapes: models.Shapes) -> dict:
    weights = {key.removeprefix("module."): torch.empty(shape, device="meta") for key, shape in shapes.items()}
    family = find_family(list(weights), "a.pt")
    return describe(rename(weights, family), family.name, {}, "a.pt")


@pytest.mark.parametrize(
    ("name", "width", "depths", "text_dim"),
    [("laion_630k", 96, [2, 2, 6, 2], 768), ("laion_music", 128, [2, 2, 12, 2], 768)],
)
def test_real_sizes_of_laion(name: str, width: int, depths: list[int], text_dim: int) -> None:
    config = describe_checkpoint(models.FULL_SIZE[name][0])
    audio, text = config["audio_encoder"], config["text_encoder"]["model"]
    assert (audio["embed_dim"], audio["depths"], audio["num_heads"]) == (width, depths, [4, 8, 16, 32])
    assert (audio["patch_size"], audio["window_size"], config["embed_dim"]) == (4, 8, 512)
    assert (text["hidden_size"], text["num_attention_heads"], text["num_hidden_layers"]) == (text_dim, 12, 12)
    assert (text["intermediate_size"], text["max_position_embeddings"], text["vocab_size"]) == (3072, 514, 50265)


def test_real_sizes_of_msclap() -> None:
    config = describe_checkpoint(models.FULL_SIZE["msclap_2022"][0])
    assert config["audio_encoder"]["width"] == 64 and config["embed_dim"] == 1024
    assert config["text_encoder"]["model"]["model_type"] == "bert"
    sizes = describe_checkpoint(models.FULL_SIZE["msclap_2023"][0])["text_encoder"]["model"]
    assert (sizes["n_embd"], sizes["n_head"], sizes["n_layer"], sizes["n_inner"]) == (768, 12, 12, 3072)


FRONTENDS = {  # rate, hop, window, fill, scale, class, 16 bits
    "laion_htsat_roberta": (48000, 480, 10.0, "repeat_pad", "slaney", "LogMelSpectrogram", True),
    "laion_htsat_aff_roberta": (48000, 480, 10.0, "repeat_pad", "htk", "TorchaudioLogMel", True),
    "laion_pann_aff_roberta": (48000, 480, 10.0, "repeat_pad", "htk", "TorchaudioLogMel", True),
    "msclap_2022": (44100, 320, 5.0, "repeat", "slaney", "LogMelSpectrogram", False),
    "msclap_2023": (44100, 320, 7.0, "repeat", "slaney", "MSClap2023LogMel", False),
    "clapcap": (44100, 320, 7.0, "repeat", "slaney", "MSClap2023LogMel", False),
    "customclap_htsat_iaff_gpt2": (48000, 480, 10.0, "repeat", "htk", "TorchaudioLogMel", False),
    "customclap_cnn14_roberta": (48000, 480, 10.0, "repeat", "htk", "TorchaudioLogMel", False),
    "panns_32k": (32000, 320, 10.0, "repeat_pad", "slaney", "LogMelSpectrogram", False),
    "panns_16k": (16000, 160, 10.0, "repeat_pad", "slaney", "LogMelSpectrogram", False),
}


@pytest.mark.parametrize("name", FRONTENDS)
def test_frontend_of_each_family(name: str) -> None:
    frontend = describe_checkpoint((models.CLAPS | models.TOWERS)[name][0])["audio_encoder"]["frontend"]
    rate, hop, window, fill, scale, cls, int16 = FRONTENDS[name]
    assert (frontend["sample_rate"], frontend["hop_length"], frontend["window"]) == (rate, hop, window)
    assert (frontend["fill"], frontend.get("mel_scale", "slaney")) == (fill, scale)
    assert (frontend["_target_"].rpartition(".")[2], frontend.get("int16", False)) == (cls, int16)


FUSIONS = {
    "laion_htsat_roberta": ("OneWindow", None),
    "laion_htsat_channel_map": ("GlobalAndLocal", None),
    "laion_htsat_daf_bert": ("GlobalAndLocal", "DAF"),
    "laion_htsat_aff_roberta": ("GlobalAndLocal", "AFF"),
    "laion_htsat_iaff_roberta": ("GlobalAndLocal", "IAFF"),
    "laion_pann_aff_roberta": ("GlobalAndLocal", "AFF"),
}


@pytest.mark.parametrize("name", FUSIONS)
def test_fusion_is_detected_by_the_keys(name: str) -> None:
    node = describe_checkpoint(models.CLAPS[name][0])["fusion"]
    merge = (node.get("merge") or {}).get("_target_")
    policy, merge_name = FUSIONS[name]
    assert node["_target_"] == f"clap.fusion.{policy}" and merge == (merge_name and f"clap.fusion.{merge_name}")


def test_fusion_in_one_dimension_is_refused() -> None:
    shapes = models.CLAPS["laion_htsat_roberta"][0] | {"module.audio_branch.mel_conv1d.0.weight": (64, 64, 5)}
    with pytest.raises(ValueError, match="a.pt: fusion in one dimension"):
        describe_checkpoint(shapes)


def test_unsupported_text_tower_is_refused() -> None:
    shapes = models.custom_clap(models.cnn14, models.BERT, audio_dim=64)
    with pytest.raises(ValueError, match="a.pt: a bert text tower is not supported for custom_clap"):
        describe_checkpoint(shapes)


def test_preprocessor_sets_rate_window_and_mel_scale() -> None:
    frontend = read_preprocessor(
        {"sampling_rate": 16000, "max_length_s": 5, "truncation": "fusion", "padding": "repeat"}, False
    )
    assert (frontend["sample_rate"], frontend["window"], frontend["fill"]) == (16000, 5.0, "repeat")
    assert frontend["mel_scale"] == "htk"
    assert (
        "mel_scale" not in read_preprocessor({}, fused=False)
        and read_preprocessor({}, fused=True)["mel_scale"] == "htk"
    )
