"""Tokenizers and transformers of the text side, offline: random weights, trained tokenizers."""

import pickle
from pathlib import Path

import pytest
import torch
from device_reads import NoWaiting
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from clap.text_encoder import TextEncoder
from clap.tokenizer import Tokenizer, thin

CONF = Path(__file__).resolve().parents[1] / "conf"
YAMLS = sorted(path.stem for path in (CONF / "text_encoder").glob("*.yaml"))
CAPTIONS = ["a dog barks", "rain falls on a tin roof while thunder rolls in the distance", "a bell"]
VOCAB_SIZE = 300
ROBERTA = {
    "model_type": "roberta",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 80,
}
GPT2 = {"model_type": "gpt2", "vocab_size": VOCAB_SIZE, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 80}
T5 = {"model_type": "t5", "vocab_size": VOCAB_SIZE, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32}
DISTILBERT = {"model_type": "distilbert", "vocab_size": VOCAB_SIZE, "dim": 16, "n_layers": 1, "n_heads": 2}


def make_encoder(model: dict = ROBERTA, **changes) -> TextEncoder:
    torch.manual_seed(0)
    encoder = TextEncoder(pretrained=False, model=model, **{"tokenizer": "train"} | changes).eval()
    if encoder.tokenizer.name == "train":
        encoder.tokenizer.train(CAPTIONS)
    return encoder


def read_yaml(name: str) -> dict:
    with initialize_config_dir(str(CONF / "text_encoder"), version_base="1.3"):
        config = compose(name, overrides=["name=unused"] if name == "auto" else [])
    return {key: value for key, value in OmegaConf.to_container(config).items() if key != "_target_"}


def save_masked_lm(folder: Path, model: dict = ROBERTA) -> AutoModelForMaskedLM:
    """Save a model as on the hub, with the head of its pretraining and without a pooler."""
    masked_lm = AutoModelForMaskedLM.from_config(AutoConfig.for_model(**model))
    masked_lm.save_pretrained(folder)
    return masked_lm


# Tokenizer


def test_rows_are_padded_to_longest_caption() -> None:
    ids, mask = make_encoder().tokenize(CAPTIONS)
    assert ids.shape == mask.shape == (3, int(mask.sum(dim=1).max()))
    assert ids.shape[1] < 77


def test_mask_marks_real_tokens() -> None:
    ids, mask = make_encoder().tokenize(CAPTIONS)
    assert_close(mask, ids != 1)  # <pad>


def test_encoder_rows_have_class_and_end_token() -> None:
    ids, _ = make_encoder().tokenize(["a dog barks"])
    assert (ids[0, 0].item(), ids[0, -1].item()) == (0, 2)  # <s>, </s>


def test_decoder_rows_close_with_end_token() -> None:
    ids, mask = make_encoder(GPT2).tokenize(CAPTIONS)
    last = ids[torch.arange(3), mask.sum(dim=1) - 1]
    assert last.tolist() == [2, 2, 2]
    assert (ids == 0).sum() == 0  # no <s>


@pytest.mark.parametrize("model", [ROBERTA, GPT2])
def test_long_caption_keeps_end_token(model: dict) -> None:
    ids, _ = make_encoder(model, max_length=6).tokenize(["a dog barks " * 20, "a"])
    assert ids.shape == (2, 6)
    assert ids[0, -1] == 2


def test_decoder_without_pad_token_pads_with_end_token() -> None:
    tokenizer = make_encoder(GPT2).tokenizer
    tokenizer.backend.pad_token = None
    ids, mask = tokenizer(CAPTIONS)
    assert set(ids[~mask].tolist()) == {2}


def test_decoded_ids_give_the_text() -> None:
    tokenizer = make_encoder().tokenizer
    ids, _ = tokenizer(["Élan! 50% louder"])
    assert tokenizer.backend.decode(ids[0], skip_special_tokens=True).strip() == "Élan! 50% louder"


def test_training_is_repeatable() -> None:
    first, second = (make_encoder().tokenizer.backend.get_vocab() for _ in range(2))
    assert first == second


def test_many_captions_are_left_to_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clap.tokenizer.MOST_CACHED", len(CAPTIONS) - 1)
    tokenizer = make_encoder().tokenizer
    tokenizer.cache_captions(CAPTIONS)
    assert set(tokenizer.encode(CAPTIONS)) == set(CAPTIONS)


@pytest.mark.parametrize(("count", "expected"), [(4, [0, 1, 2, 3]), (5, [0, 2, 4]), (11, [0, 4, 8])])
def test_many_captions_are_thinned_evenly(count: int, expected: list[int]) -> None:
    assert thin(map(str, range(count)), 4) == list(map(str, expected))


@pytest.mark.parametrize("model", [ROBERTA, GPT2])
def test_cached_captions_have_the_same_ids(model: dict) -> None:
    tokenizer = make_encoder(model).tokenizer
    expected = tokenizer(CAPTIONS)
    tokenizer.cache_captions(CAPTIONS[1:])
    for before, after in zip(expected, tokenizer(CAPTIONS), strict=True):
        assert_close(before, after, rtol=0, atol=0)


def test_cached_captions_are_not_tokenised_again() -> None:
    tokenizer = make_encoder().tokenizer
    tokenizer.cache_captions(CAPTIONS)
    assert list(tokenizer.encode([*CAPTIONS, "new"])) == ["new"]
    tokenizer.train(["other words"])
    assert set(tokenizer.encode(CAPTIONS)) == set(CAPTIONS)


@pytest.mark.parametrize("model", [ROBERTA, GPT2])
def test_saved_tokenizer_gives_same_ids(model: dict, tmp_path: Path) -> None:
    encoder = make_encoder(model)
    encoder.tokenizer.save(tmp_path)
    reloaded = make_encoder(model, tokenizer=str(tmp_path))
    for before, after in zip(encoder.tokenize(CAPTIONS), reloaded.tokenize(CAPTIONS), strict=True):
        assert_close(after, before)


def test_pickled_tokenizer_is_small() -> None:
    tokenizer = make_encoder().tokenizer
    pickled = pickle.dumps(tokenizer)
    assert len(pickled) < 100_000
    assert_close(pickle.loads(pickled)(CAPTIONS)[0], tokenizer(CAPTIONS)[0])


@pytest.mark.parametrize("blank", ["", " \n"])
def test_blank_caption_is_named_by_position(blank: str) -> None:
    with pytest.raises(ValueError, match="caption 1 of 2"):
        make_encoder().tokenize(["a dog", blank])


def test_single_string_is_not_a_list_of_captions() -> None:
    with pytest.raises(TypeError, match="give a list"):
        make_encoder().tokenize("a dog")


def test_no_captions_are_refused() -> None:
    with pytest.raises(ValueError, match="captions is empty"):
        make_encoder().tokenize([])


def test_untrained_tokenizer_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"tokenizer=train .*train\(captions\)"):
        Tokenizer("train", vocab_size=VOCAB_SIZE)(CAPTIONS)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no/such/folder", "{tmp_path}"])
def test_missing_tokenizer_names_hub_name_and_key(name: str, tmp_path: Path) -> None:
    name = name.format(tmp_path=tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"{name}.*text_encoder\.tokenizer=FOLDER"):
        Tokenizer(name, vocab_size=VOCAB_SIZE)(CAPTIONS)


def test_tokenizer_larger_than_embedding_is_refused(tmp_path: Path) -> None:
    make_encoder().tokenizer.save(tmp_path)
    with pytest.raises(ValueError, match="embedding 100 rows"):
        Tokenizer(str(tmp_path), vocab_size=100)(CAPTIONS)


def test_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"text_encoder\.model\.vocab_size"):
        Tokenizer("train", vocab_size=200).train(CAPTIONS)


# TextEncoder


@pytest.mark.parametrize(
    ("model", "pooling"), [(ROBERTA, "first"), (DISTILBERT, "first"), (GPT2, "last"), (T5, "mean")]
)
def test_architecture_chooses_pooling(model: dict, pooling: str) -> None:
    assert make_encoder(model).pooling == pooling


@pytest.mark.parametrize("model", [ROBERTA, GPT2, T5])
@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_embedding_does_not_depend_on_padding(model: dict, pooling: str) -> None:
    encoder = make_encoder(model, pooling=pooling)
    ids, mask = encoder.tokenize(CAPTIONS[:1])
    wider = torch.nn.functional.pad(ids, (0, 30), value=encoder.tokenizer.pad_id)
    padded = encoder(wider, torch.nn.functional.pad(mask, (0, 30)))
    together = encoder(*encoder.tokenize(CAPTIONS))[:1]
    alone = encoder(ids, mask)
    assert_close(together, alone, atol=1e-6, rtol=0)
    assert_close(padded, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("model", "pooling"), [(ROBERTA, "first"), (GPT2, "last"), (ROBERTA, "mean")])
def test_every_token_changes_the_embedding(model: dict, pooling: str) -> None:
    encoder = make_encoder(model, pooling=pooling)
    ids, mask = encoder.tokenize(["a dog barks loudly"])
    before = encoder(ids, mask)
    for position in range(1, ids.shape[1] - 1):
        changed = ids.clone()
        changed[0, position] = 7
        assert (encoder(changed, mask) - before).abs().max() > 1e-5


@pytest.mark.parametrize("model", [ROBERTA, GPT2, T5, DISTILBERT])
def test_every_parameter_has_a_gradient(model: dict) -> None:
    encoder = make_encoder(model, pooling="mean")
    encoder(*encoder.tokenize(CAPTIONS)).square().sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


def test_seed_fixes_random_weights() -> None:
    for first, second in zip(make_encoder().parameters(), make_encoder().parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("model", [ROBERTA, GPT2])
def test_attention_is_scaled_dot_product(model: dict) -> None:
    assert make_encoder(model).transformer.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("model", [ROBERTA, GPT2, T5])
def test_model_config_rebuilds_the_architecture(model: dict) -> None:
    encoder = make_encoder(model | {"initializer_factor": 0.5} if model is T5 else model)
    rebuilt = make_encoder(OmegaConf.to_container(OmegaConf.create(encoder.model_config)))
    rebuilt.load_state_dict(encoder.state_dict())
    tokens = encoder.tokenize(CAPTIONS)
    assert_close(rebuilt(*tokens), encoder(*tokens))


@pytest.mark.parametrize("name", [name for name in YAMLS if name != "auto"])
def test_yaml_builds_on_meta(name: str) -> None:
    options = read_yaml(name) | {"pretrained": False}
    with torch.device("meta"):
        encoder = TextEncoder(**options)
        embedding = encoder(torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.bool))
    model = options["model"]
    assert embedding.shape == (2, encoder.output_dim) == (2, model.get("hidden_size") or model["n_embd"])


def test_auto_yaml_takes_sizes_from_the_weights(tmp_path: Path) -> None:
    save_masked_lm(tmp_path)
    encoder = TextEncoder(**read_yaml("auto") | {"name": str(tmp_path)})
    assert encoder.output_dim == 16


def test_pretrained_weights_are_loaded(tmp_path: Path) -> None:
    masked_lm = save_masked_lm(tmp_path)
    encoder = TextEncoder(name=str(tmp_path))
    assert_close(encoder.transformer.state_dict(), masked_lm.roberta.state_dict())


def test_pretrained_folder_replaces_the_weights_of_name(tmp_path: Path) -> None:
    masked_lm = save_masked_lm(tmp_path)
    encoder = TextEncoder(name="roberta-base", pretrained=str(tmp_path))
    assert_close(encoder.transformer.state_dict(), masked_lm.roberta.state_dict())


def test_pretrained_model_trains_with_dropout(tmp_path: Path) -> None:
    save_masked_lm(tmp_path)
    assert all(module.training for module in TextEncoder(name=str(tmp_path)).modules())


def test_weights_of_half_precision_become_float32(tmp_path: Path) -> None:
    AutoModel.from_config(AutoConfig.for_model(**ROBERTA)).half().save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in TextEncoder(name=str(tmp_path)).parameters()} == {torch.float32}


def test_missing_weights_name_hub_name_and_key() -> None:
    with pytest.raises(FileNotFoundError, match=r"nobody/none.*text_encoder\.pretrained"):
        TextEncoder(name="nobody/none")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    save_masked_lm(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="safetensors"):
        TextEncoder(name=str(tmp_path))


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    save_masked_lm(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["roberta.encoder.layer.1.output.dense.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors \(encoder\.layer\.1\.output\.dense\.weight"):
        TextEncoder(name=str(tmp_path))


BERT = {key: value for key, value in ROBERTA.items() if key != "model_type"} | {"model_type": "bert"}


@pytest.mark.parametrize("model", [ROBERTA, BERT], ids=["roberta", "bert"])
def test_missing_pooler_starts_from_random_weights(
    model: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    masked_lm = save_masked_lm(tmp_path, model)
    capfd.readouterr()
    with caplog.at_level("INFO", "clap"):
        encoder = TextEncoder(name=str(tmp_path), pooling="pooler")
    assert capfd.readouterr().err == ""  # neither a bar nor transformers' own report
    assert "text_encoder: random weights in pooler.dense.bias, pooler.dense.weight, which" in caplog.text
    assert encoder.transformer.pooler.dense.weight.std() > 0
    own, stored = encoder.transformer.state_dict(), getattr(masked_lm, model["model_type"]).state_dict()
    assert_close({key: own[key] for key in stored}, stored)


def test_stored_pooler_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = AutoModel.from_config(AutoConfig.for_model(**ROBERTA))
    model.save_pretrained(tmp_path)
    with caplog.at_level("INFO", "clap"):
        encoder = TextEncoder(name=str(tmp_path), pooling="pooler")
    assert_close(encoder.transformer.state_dict(), model.state_dict())
    assert "random weights" not in caplog.text


def test_half_a_pooler_is_completed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    AutoModel.from_config(AutoConfig.for_model(**ROBERTA)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["pooler.dense.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level("INFO", "clap"):
        encoder = TextEncoder(name=str(tmp_path), pooling="pooler")
    assert "random weights in pooler.dense.bias, which" in caplog.text
    assert_close(encoder.transformer.pooler.dense.weight, tensors["pooler.dense.weight"])


@pytest.mark.parametrize("model", [GPT2, T5], ids=["gpt2", "t5"])
def test_transformer_without_pooler_refuses_it(model: dict) -> None:
    with pytest.raises(ValueError, match="has no pooler; set text_encoder.pooling to first, last or mean"):
        make_encoder(model, pooling="pooler")


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    save_masked_lm(tmp_path)
    with pytest.raises(ValueError, match="do not have the sizes of text_encoder.model"):
        TextEncoder(name=str(tmp_path), model=ROBERTA | {"hidden_size": 32})


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    save_masked_lm(tmp_path)
    with pytest.raises(ValueError, match="have model_type roberta, text_encoder.model.model_type is gpt2"):
        TextEncoder(name=str(tmp_path), model=GPT2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": None}, "model_type"),
        ({"model": ROBERTA | {"hiden_size": 8}}, "hiden_size"),
        ({"pooling": "max"}, "first, last, mean"),
        ({"max_length": 79}, "78 positions"),
        ({"tokenizer": None}, r"text_encoder\.name"),
        ({"pretrained": "roberta-base"}, "tokenizer=train with pretrained"),
    ],
)
def test_wrong_option_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextEncoder(**{"pretrained": False, "model": ROBERTA, "tokenizer": "train"} | options)


# Stored values of the published code


def load_golden(golden, kind: str, model: dict, prefix: str) -> tuple[TextEncoder, dict[str, Tensor]]:
    _, tensors = golden("text_heads")
    encoder = make_encoder(model | {"vocab_size": 120}, tokenizer="unused")
    prefix = f"ckpt/{kind}/{prefix}"
    weights = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    encoder.transformer.load_state_dict({key: weights[key] for key in encoder.transformer.state_dict()})
    return encoder, tensors


def test_golden_roberta_first_token(golden) -> None:
    sizes = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 48, "max_position_embeddings": 90}
    sizes |= {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
    encoder, tensors = load_golden(golden, "roberta", ROBERTA | sizes, "text_branch.")
    embedding = encoder(tensors["in/roberta/input_ids"], tensors["in/roberta/attention_mask"])
    assert_close(embedding, tensors["out/roberta/last_hidden_state_token0"], atol=2e-5, rtol=1e-5)


def test_golden_gpt2_end_token(golden) -> None:
    sizes = {"n_embd": 24, "n_head": 3, "n_inner": 96, "n_positions": 96}
    encoder, tensors = load_golden(golden, "gpt2", GPT2 | sizes, "base.")
    embedding = encoder(tensors["in/gpt2/input_ids"], tensors["in/gpt2/attention_mask"])
    assert_close(embedding, tensors["out/gpt2/pooled"], atol=2e-5, rtol=1e-5)


# On a device


@pytest.mark.parametrize("model", [ROBERTA, GPT2, T5, DISTILBERT], ids=lambda model: model["model_type"])
def test_step_does_not_wait_for_the_device(model: dict) -> None:
    encoder = make_encoder(model).train()
    ids, mask = (tokens.to("meta") for tokens in encoder.tokenize(CAPTIONS))
    encoder.to("meta")
    with NoWaiting():
        encoder(ids, mask).sum().backward()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("model", [ROBERTA, GPT2], ids=lambda model: model["model_type"])
@torch.no_grad()
def test_mask_of_a_device_gives_the_same_features(model: dict, implementation: str, monkeypatch) -> None:
    """Of a batch without padding too, whose mask is dropped on the CPU."""
    encoder = make_encoder(model)
    encoder.transformer.set_attn_implementation(implementation)
    for captions in (CAPTIONS, CAPTIONS[:1]):
        tokens = encoder.tokenize(captions)
        expected = encoder(*tokens)
        with monkeypatch.context() as patch:
            patch.setattr("clap.text_encoder._reads_values", lambda device: False)
            assert_close(encoder(*tokens), expected)
