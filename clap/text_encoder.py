"""Captions to vectors: a transformer and its tokenizer.

RoBERTa (Liu et al. 2019), GPT-2 (Radford et al. 2019), BERT (Devlin et al. 2019), or any encoder or decoder that the
transformers library knows. Its configuration determines whether it is an encoder or a decoder.
"""

import contextlib
import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AttentionMaskInterface,
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.utils import logging as transformers_logging

from clap.config.values import POOLINGS, choose_weights
from clap.progress import shows_bars
from clap.tokenizer import TRAINED_TOKEN_IDS, Tokenizer

log = logging.getLogger(__name__)

# Workers of a DataLoader are forks; a threaded tokenizer in them warns at every batch.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ALL_POOLINGS = (*POOLINGS, "last_nonzero")  # last_nonzero is for published models only
# Keys of a transformers configuration that do not describe the architecture.
NOT_ARCHITECTURE = {
    "transformers_version",
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "use_cache",
}


def _make_unread(make_mask: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """A function of transformers that makes attention masks, without reading the padding of a batch on a device.

    transformers drops the mask of a batch without padding, and waits for the device to know whether there is padding.
    """

    @functools.wraps(make_mask)
    def make(*args: Any, device: torch.device | str = "cpu", **kwargs: Any) -> Tensor | None:
        if not _reads_values(device):
            kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return make_mask(*args, device=device, **kwargs)

    return make


def _reads_values(device: torch.device | str) -> bool:
    """Whether the values of a tensor on the device can be read without waiting for it."""
    return torch.device(device).type == "cpu"


for _name in ("sdpa", "eager"):  # of all models of this process
    AttentionMaskInterface.register(_name, _make_unread(ALL_MASK_ATTENTION_FUNCTIONS[_name]))


class TextEncoder(nn.Module):
    """Token ids and mask -> one vector per caption: a transformer's hidden states, pooled.

    ids (batch, tokens), mask (batch, tokens) -> (batch, output_dim), width of the transformer. The output of a caption
    does not depend on the padding of its batch.

    Args:
        name: hub name or local folder of the transformer; optional for random weights with a given tokenizer.
        pretrained: True: the weights of `name`; False: random weights of the sizes in `model`; or the name or
            folder of other weights. Weights must be safetensors; code in their folder is never executed.
        model: `model_type` (roberta, gpt2, ...) and sizes, under the keys of its transformers configuration; pretrained
            weights must match them. None: the sizes of the pretrained weights.
        tokenizer: hub name or local folder; None: that of `name`; "train": see Tokenizer.
        max_length: tokens of the longest caption, special tokens included.
        pooling: hidden state of a caption: `first` token, `last` real token, or `mean` over the real tokens. None: last
            for a decoder, first for an encoder trained with masked tokens (its first token is the class token), mean
            for the encoder half of an encoder-decoder. `pooler`: the first token after the dense layer and tanh of
            BERT's next-sentence objective (LAION-CLAP), from random weights if the pretrained weights lack it. For
            published models: `last_nonzero`, the token at the number of nonzero ids minus 1 (MS-CLAP 2023, padded
            with GPT-2's `!`, id 0; a `!` in a caption shifts it).
        suffix: text appended to every caption instead of a decoder's end token (MS-CLAP 2023).

    Attributes:
        output_dim: width of the transformer.
        model_config: plain dict; as `model`, with pretrained=False, it builds the same architecture.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        pretrained: bool | str = True,
        model: dict | None = None,
        tokenizer: str | None = None,
        max_length: int = 77,
        pooling: str | None = None,
        suffix: str | None = None,
    ) -> None:
        super().__init__()
        if pooling not in (None, *ALL_POOLINGS):
            raise ValueError(f"pooling={pooling!r} is not one of {', '.join(ALL_POOLINGS)}; set text_encoder.pooling")
        source = _find_source(name, pretrained=pretrained, tokenizer=tokenizer)
        sizes = dict(model or {}) | (TRAINED_TOKEN_IDS if tokenizer == "train" else {})
        config = _build_config(sizes) if source is None else _read_config(source, sizes)
        config.use_cache = False  # only generation needs the cached keys and values, which cost memory
        self.model_config = _describe_architecture(config)
        make = _build_transformer if source is None else functools.partial(_load_transformer, source)
        self.transformer = make(config, keep_pooler=pooling == "pooler")
        if pooling == "pooler":
            _check_pooler(self.transformer)
        self.output_dim = config.hidden_size
        self.length_step: int | None = None  # see `pad_to_step`
        self.pooling = _choose_pooling(config) if pooling is None else pooling
        _check_max_length(self.transformer, max_length)
        self.tokenizer = Tokenizer(
            name if tokenizer is None else tokenizer,
            vocab_size=config.vocab_size,
            max_length=max_length,
            append_end=_is_decoder(config) and suffix is None,
            suffix=suffix,
        )

    def tokenize(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Captions -> ids (batch, tokens) int64 and mask (batch, tokens) bool, on the CPU."""
        return self.tokenizer(captions)

    def checkpoint_activations(self) -> None:
        """Compute the activations of each layer again in the backward pass instead of keeping them.

        Raises:
            ValueError: the transformer cannot.
        """
        if not self.transformer.supports_gradient_checkpointing:
            name = self.transformer.config.model_type
            raise ValueError(f"{name} has no activation checkpointing; set trainer.activation_checkpointing=false")
        self.transformer.activation_checkpointing_enable({"use_reentrant": False})

    def parts_to_compile(self) -> list[nn.Module]:
        """The modules that `trainer.compile` compiles: the layers, or a transformer without a list of them."""
        lists = [module for module in self.transformer.modules() if isinstance(module, nn.ModuleList)]
        return list(max(lists, key=len, default=[self.transformer]))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        if self.length_step is not None:
            ids, mask = self.pad_to_step(ids, mask)
        output = self.transformer(input_ids=ids, attention_mask=mask.long())
        hidden = output.last_hidden_state
        if self.pooling == "pooler":
            return output.pooler_output
        if self.pooling == "first":
            return hidden[:, 0]
        if self.pooling in ("last", "last_nonzero"):
            counted = mask if self.pooling == "last" else mask & (ids != 0)
            last = counted.long().sum(dim=1) - 1  # (batch,)
            return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
        weights = mask[:, :, None].to(hidden.dtype)  # (batch, tokens, 1)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

    def pad_to_step(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pad ids and mask (batch, tokens) to the next multiple of `length_step`, at most to `max_length`."""
        tokens = ids.shape[1]
        longest = max(tokens, self.tokenizer.max_length)
        missing = min(-(-tokens // self.length_step) * self.length_step, longest) - tokens
        return F.pad(ids, (0, missing), value=self.tokenizer.pad_id), F.pad(mask, (0, missing), value=False)


def _find_source(name: str | None, *, pretrained: bool | str, tokenizer: str | None) -> str | None:
    """Hub name or folder of the weights; None for random weights."""
    if name is None and (pretrained is True or tokenizer is None):
        raise ValueError(
            f"name is missing with pretrained={pretrained}, tokenizer={tokenizer}; set text_encoder.name, or "
            "text_encoder.pretrained=false and text_encoder.tokenizer"
        )
    if pretrained is not False and tokenizer == "train":
        raise ValueError(
            f"tokenizer=train with pretrained={pretrained}: pretrained weights require their own tokenizer; set "
            "text_encoder.pretrained=false, or text_encoder.tokenizer=null"
        )
    return choose_weights("text_encoder", pretrained, name)


def _build_config(sizes: dict) -> PreTrainedConfig:
    if "model_type" not in sizes:
        raise ValueError(
            f"model={sizes} has no model_type, which random weights require; set text_encoder.model (model_type: "
            "roberta, hidden_size: ...), or text_encoder.pretrained=true"
        )
    config = AutoConfig.for_model(**sizes)
    _check_sizes(config, sizes)
    return config


def _read_config(source: str, sizes: dict) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        raise _missing_weights(source) from error
    if sizes.get("model_type", config.model_type) != config.model_type:
        raise ValueError(
            f"the weights of {source!r} have model_type {config.model_type}, text_encoder.model.model_type is "
            f"{sizes['model_type']}; set text_encoder.pretrained to weights of that type, or choose text_encoder=auto"
        )
    _check_sizes(config, sizes)
    config.update({key: value for key, value in sizes.items() if key != "model_type"})
    return config


def _check_sizes(config: PreTrainedConfig, sizes: dict) -> None:
    known = {*type(config)().to_dict(), *config.attribute_map, *TRAINED_TOKEN_IDS, "model_type"}
    unknown = sorted(set(sizes) - known)
    if unknown:
        raise ValueError(
            f"text_encoder.model has the unknown keys {', '.join(unknown)}; {config.model_type} has "
            f"{', '.join(sorted(known - NOT_ARCHITECTURE))}"
        )


def _describe_architecture(config: PreTrainedConfig) -> dict:
    known = {*type(config)().to_dict(), "model_type"} - NOT_ARCHITECTURE  # files on the hub contain other keys
    return {key: value for key, value in config.to_diff_dict().items() if key in known}


def _build_transformer(config: PreTrainedConfig, *, keep_pooler: bool) -> PreTrainedModel:
    transformer = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return _keep_used_part(transformer, keep_pooler=keep_pooler)


def _load_transformer(source: str, config: PreTrainedConfig, *, keep_pooler: bool) -> PreTrainedModel:
    try:
        with quiet_transformers():
            transformer, report = AutoModel.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except OSError as error:
        raise _missing_weights(source) from error
    except RuntimeError as error:
        raise ValueError(
            f"the weights of {source!r} do not have the sizes of text_encoder.model; set the text_encoder of these "
            "weights, text_encoder=auto to use their sizes, or text_encoder.pretrained=false"
        ) from error
    transformer = _keep_used_part(transformer, keep_pooler=keep_pooler)
    absent = sorted(set(report["missing_keys"]) & {key for key, _ in transformer.named_parameters()})
    # Many published models come without the pooler, which only the next-sentence objective trains.
    if new := [key for key in absent if key.split(".")[0] == "pooler"]:
        log.info("text_encoder: random weights in %s, which the weights of %r lack", ", ".join(new), source)
    if absent := [key for key in absent if key not in new]:
        raise ValueError(f"the weights of {source!r} lack {len(absent)} tensors ({', '.join(absent[:3])}, ...)")
    return transformer.train()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Load without transformers' table of missing weights, which are checked here, and without bars off a terminal."""
    verbosity, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if not shows_bars():
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bars:
            transformers_logging.enable_progress_bar()


def _keep_used_part(transformer: PreTrainedModel, *, keep_pooler: bool) -> PreTrainedModel:
    """Remove the decoder half and an unused pooler: their parameters would get weight decay but no gradient."""
    if transformer.config.is_encoder_decoder:
        transformer = transformer.get_encoder()
    if not keep_pooler and getattr(transformer, "pooler", None) is not None:
        transformer.pooler = None
    return transformer


def _check_pooler(transformer: PreTrainedModel) -> None:
    """ValueError unless the transformer has a pooled output, that of a pooler or, as CLIP's, of its own."""
    returned = inspect.signature(type(transformer).forward).return_annotation
    if getattr(transformer, "pooler", None) is None and "WithPooling" not in str(returned):
        name = transformer.config.model_type
        raise ValueError(f"pooling=pooler, but {name} has no pooler; set text_encoder.pooling to first, last or mean")


def _missing_weights(source: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"no weights {source!r}: no such local folder with config.json and model.safetensors, and not found on the "
        "Hugging Face hub or in its cache; set text_encoder.pretrained=FOLDER to a folder with these files, "
        f"text_encoder.pretrained=false for random weights, or go online once to download {source!r}"
    )


def _is_decoder(config: PreTrainedConfig) -> bool:
    """Whether a token sees only the tokens before it."""
    only_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    return not config.is_encoder_decoder and (getattr(config, "is_decoder", False) or only_causal)


def _choose_pooling(config: PreTrainedConfig) -> str:
    if _is_decoder(config):
        return "last"
    has_class_token = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder
    return "first" if has_class_token else "mean"


def _check_max_length(transformer: PreTrainedModel, max_length: int) -> None:
    positions = getattr(transformer.config, "max_position_embeddings", None)
    table = getattr(getattr(transformer, "embeddings", None), "position_embeddings", None)
    if getattr(table, "padding_idx", None) is not None:
        positions -= table.padding_idx + 1  # RoBERTa's first position is padding_idx + 1
    if positions is not None and max_length > positions:
        raise ValueError(
            f"max_length={max_length} exceeds the transformer's {positions} positions; lower text_encoder.max_length"
        )
