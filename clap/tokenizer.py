"""Captions to token ids: a transformers tokenizer, or a BPE trained on the captions."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from clap.prompts import check_texts

CHUNK = 10_000  # captions per tokenizer call, which temporarily needs kilobytes per caption
MOST_CACHED = 50_000  # captions whose ids are kept, which takes a few seconds; a worker needs 0.1 ms for another
MOST_LEARNED = 200_000  # captions that a BPE is learned from, in a few seconds
# A trained tokenizer numbers these 0 to 4, as RoBERTa does.
SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
TRAINED_TOKEN_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


class Tokenizer:
    """Captions -> token ids and mask, padded to the batch's longest caption.

    captions, list of n strings -> ids (n, tokens) int64, mask (n, tokens) bool, True on real tokens. Padding is on the
    right. A caption longer than max_length is cut before its end token. Files are read at first use, so a model can be
    built without them. A collate function can hold the object, which has no weights.

    Args:
        name: hub name or local folder, or "train": a byte-level BPE, trained by `train(captions)`.
        vocab_size: rows of the transformer's embedding table, which no token id may exceed.
        max_length: tokens of the longest row, special tokens included.
        append_end: append an end token; for a decoder, whose last real token attends to the full caption.
        suffix: text appended to every caption instead, as in MS-CLAP 2023.
    """

    def __init__(
        self,
        name: str,
        *,
        vocab_size: int,
        max_length: int = 77,
        append_end: bool = False,
        suffix: str | None = None,
    ) -> None:
        self.name = name
        self.vocab_size = vocab_size
        self.max_length = max_length
        self.append_end = append_end
        self.suffix = suffix
        self._backend: PreTrainedTokenizerFast | None = None
        self._cache: dict[str, np.ndarray] = {}  # caption -> ids (tokens,)

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        _check_captions(captions)
        new = self.encode(captions)
        rows = [torch.from_numpy(new[text] if text in new else self._cache[text]) for text in captions]
        lengths = torch.tensor([len(row) for row in rows])
        ids = pad_sequence(rows, batch_first=True, padding_value=self.pad_id).long()
        return ids, torch.arange(ids.shape[1]) < lengths[:, None]

    def cache_captions(self, captions: Iterable[str]) -> None:
        """Tokenise captions once, before a loader forks its workers, which then share the ids.

        More than MOST_CACHED captions are left to the workers.
        """
        captions = list(itertools.islice(captions, MOST_CACHED + 1))
        if len(captions) <= MOST_CACHED:
            self._cache |= self.encode(captions)

    def encode(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """Token ids (tokens,) int32 of the captions that are not cached."""
        captions = [caption for caption in dict.fromkeys(captions) if caption not in self._cache]
        if not captions:
            return {}
        if self.suffix is not None:
            rows = self.backend([caption + self.suffix for caption in captions])["input_ids"]
            rows = [[*row[: self.max_length - 1], row[-1]] if len(row) > self.max_length else row for row in rows]
        else:
            max_length = self.max_length - self.append_end
            rows = self.backend(captions, truncation=True, max_length=max_length)["input_ids"]
        if self.append_end:
            end = self.backend.eos_token_id
            rows = [row if row[-1:] == [end] else [*row, end] for row in rows]
        return {caption: np.array(row, dtype=np.int32) for caption, row in zip(captions, rows, strict=True)}

    @property
    def backend(self) -> PreTrainedTokenizerFast:
        """The transformers tokenizer, read on first access."""
        return self.read()

    def read(self) -> PreTrainedTokenizerFast:
        """Read the files at the first call.

        Raises:
            FileNotFoundError: they are missing.
        """
        if self._backend is None:
            self._backend = self._load()
        return self._backend

    @property
    def is_available(self) -> bool:
        """Whether the files can be read."""
        try:
            self.read()
        except FileNotFoundError:
            return False
        return True

    @property
    def pad_id(self) -> int:
        """The pad token's id; GPT-2 has none and is padded with its end token, which the mask excludes."""
        pad_id = self.backend.pad_token_id
        return self.backend.eos_token_id if pad_id is None else pad_id

    def train(self, captions: Iterable[str]) -> None:
        """Learn a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) of at most vocab_size tokens.

        Of more than MOST_LEARNED captions it reads at least half as many, evenly spaced.
        """
        captions = iter(captions)
        if (first := next(captions, None)) is None:
            raise ValueError("captions is empty; a tokenizer is trained on one or more")
        captions = thin(itertools.chain([first], captions), MOST_LEARNED)
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        smallest = len(alphabet) + len(SPECIAL_TOKENS)
        if self.vocab_size < smallest:
            raise ValueError(
                f"vocab_size={self.vocab_size} is below the {smallest} bytes and special tokens of a byte-level "
                "BPE; raise text_encoder.model.vocab_size"
            )
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=list(SPECIAL_TOKENS.values()),
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        )
        bpe.train_from_iterator((check_texts(chunk, "caption") for chunk in cut_chunks(captions)), trainer)
        if not self.append_end:
            ends = [("<s>", TRAINED_TOKEN_IDS["bos_token_id"]), ("</s>", TRAINED_TOKEN_IDS["eos_token_id"])]
            bpe.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
        self._backend, self._cache = PreTrainedTokenizerFast(tokenizer_object=bpe, **SPECIAL_TOKENS), {}

    @property
    def needs_training(self) -> bool:
        """Whether `train` must be called before the first use."""
        return self.name == "train" and self._backend is None

    def load(self, folder: str | Path) -> None:
        """Use the files of a folder, which are read immediately, because a running training may replace them."""
        self.name = str(folder)
        self._backend, self._cache = self._load(), {}

    def save(self, folder: str | Path) -> None:
        """Write the files; `Tokenizer(folder)` then gives the same ids offline."""
        self.backend.save_pretrained(str(folder))

    def _load(self) -> PreTrainedTokenizerFast:
        if self.name == "train":
            raise RuntimeError("text_encoder.tokenizer=train is not trained yet; call tokenizer.train(captions) first")
        try:
            backend = AutoTokenizer.from_pretrained(self.name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"no tokenizer {self.name!r}: no such local folder with tokenizer files, and not found on the Hugging "
                "Face hub or in its cache; set text_encoder.tokenizer=FOLDER to a folder with its files "
                "(tokenizer.json, tokenizer_config.json), in Python Clap.from_ckpt(..., settings="
                f"{{'text_encoder.tokenizer': FOLDER}}), or go online once to download {self.name!r}"
            ) from error
        if len(backend) > self.vocab_size:
            raise ValueError(
                f"tokenizer {self.name!r} has {len(backend)} tokens, the transformer's embedding {self.vocab_size} "
                "rows; set text_encoder.tokenizer to the one of these weights, or text_encoder.model.vocab_size"
            )
        if backend.eos_token_id is None and (self.append_end or backend.pad_token_id is None):
            raise ValueError(
                f"tokenizer {self.name!r} has no end token, which ends or pads captions; set eos_token in its files"
            )
        return backend


def thin(captions: Iterable[str], most: int) -> list[str]:
    """All captions, or every second, fourth, eighth, ... of them, so that there are `most` or fewer."""
    kept, step = [], 1
    for number, caption in enumerate(captions):
        if number % step == 0:
            kept.append(caption)
        if len(kept) > most:
            kept, step = kept[::2], 2 * step
    return kept


def cut_chunks(captions: Iterable[str]) -> Iterator[list[str]]:
    """Lists of at most CHUNK captions."""
    captions = iter(captions)
    while chunk := list(itertools.islice(captions, CHUNK)):
        yield chunk


def _check_captions(captions: list[str]) -> None:
    if isinstance(captions, str):
        raise TypeError(f"captions={captions!r} is one string; give a list of captions")
    if not len(captions):
        raise ValueError("captions is empty; give at least one caption")
    check_texts(captions, "caption")
