"""Families are detected by their keys, and every key is a weight of `Clap` or does not affect embeddings."""

import re

import published_models as models
import pytest
import torch

from clap.published.keys import FAMILIES, UNUSED, find_family, rename

FAMILY = {name: name.split("_")[0] for name in models.CLAPS} | dict.fromkeys(models.TOWERS, "audioset")
FAMILY |= {name: "custom_clap" for name in models.CLAPS if name.startswith("customclap")}
ALL = models.CLAPS | models.TOWERS


def list_keys(name: str) -> list[str]:
    return [key.removeprefix("module.") for key in ALL[name][0]]


@pytest.mark.parametrize("name", ALL)
def test_family_is_detected_by_its_keys(name: str) -> None:
    assert find_family(list_keys(name), "a.pt").name == FAMILY[name]


@pytest.mark.parametrize("name", models.FULL_SIZE)
def test_family_does_not_depend_on_sizes(name: str) -> None:
    keys = [key.removeprefix("module.") for key in models.FULL_SIZE[name][0]]
    assert find_family(keys, "a.pt").name == name.split("_")[0]


def test_htsat_without_prefix_is_detected() -> None:
    keys = [key.removeprefix("sed_model.") for key in list_keys("htsat_audioset")]
    assert find_family(keys, "a.ckpt").name == "audioset"


def test_unknown_keys_are_shown() -> None:
    with pytest.raises(ValueError, match="a.pt: unknown checkpoint.*laion.*; the 5 keys start with k0, k1, k2, k3$"):
        find_family([f"k{i}" for i in range(5)], "a.pt")


@pytest.mark.parametrize("name", ALL)
def test_every_key_is_renamed_or_unused(name: str) -> None:
    weights = {key: torch.zeros(()) for key in list_keys(name)}
    renamed = rename(weights, find_family(list(weights), "a.pt"))
    assert len(renamed) == len(weights)
    own = re.compile(r"^(audio_encoder|text_encoder\.transformer|audio_projection|text_projection)\.|^logit_scale$")
    assert [key for key in renamed if not own.match(key) and not UNUSED.search(key)] == []


def test_weights_do_not_match_unused() -> None:
    """The bias of GPT-2's attention is a weight; the buffer of the same name is not."""
    for key in (
        "text_encoder.transformer.h.0.attn.c_attn.bias",
        "audio_encoder.trunk.layers.0.blocks.0.attn.relative_position_bias_table",
        "text_encoder.transformer.embeddings.token_type_embeddings.weight",
        "text_encoder.transformer.pooler.dense.weight",
        "logit_scale",
    ):
        assert not UNUSED.search(key), key
    for key in ("text_encoder.transformer.h.11.attn.bias", "logit_scale_t", "audio_encoder.head.weight"):
        assert UNUSED.search(key), key


def test_heads_of_hugging_face_are_joined_in_order() -> None:
    root = "audio_model.audio_encoder.layers.0.blocks.0.attention.self"
    weights = {f"{root}.{part}.bias": torch.full((2,), float(i)) for i, part in enumerate(("query", "key", "value"))}
    family = next(family for family in FAMILIES if family.name == "huggingface")
    renamed = rename(weights, family)
    assert list(renamed) == ["audio_encoder.trunk.layers.0.blocks.0.attn.qkv.bias"]
    assert renamed.popitem()[1].tolist() == [0, 0, 1, 1, 2, 2]


def test_renames_do_not_change_the_text_tower() -> None:
    """Both towers of Hugging Face have keys such as `attention.output.dense`."""
    family = next(family for family in FAMILIES if family.name == "huggingface")
    key = "text_model.encoder.layer.3.attention.output.dense.weight"
    assert list(rename({key: torch.zeros(1)}, family)) == [
        f"text_encoder.transformer.{key.removeprefix('text_model.')}"
    ]
