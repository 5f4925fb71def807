"""A model's tokenizer as one tokenizer.json, which the tokenizers package reads without transformers and torch."""

from pathlib import Path

import tokenizers
from tokenizers.processors import Sequence, TemplateProcessing

from clap.tokenizer import Tokenizer

CAPTIONS = (
    "a dog barks",
    "Rain on a tin roof, then thunder: 2 loud claps!",
    "café music – someone's voice & a whistle",
    " ".join(["a siren wails while an engine idles"] * 40),  # longer than any caption of the corpora
)


def write_tokenizer(tokenizer: Tokenizer, path: Path) -> tokenizers.Tokenizer:
    """Write tokenizer.json with the cut to max_length, the end token and the padding of the model; returns it.

    `encode_batch(captions)` then gives the ids and the mask of `tokenizer(captions)`.

    Raises:
        ValueError: the files of the tokenizer are not those of the tokenizers package, or its ids differ.
        FileNotFoundError: they are missing.
    """
    backend = getattr(tokenizer.read(), "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"tokenizer {tokenizer.name!r} has no tokenizer.json; set --tokenizer to a folder with one")
    portable = tokenizers.Tokenizer.from_str(backend.to_str())
    if ending := find_ending(tokenizer):
        template = TemplateProcessing(single=["$A", *(token for token, _ in ending)], special_tokens=ending)
        before = portable.post_processor
        portable.post_processor = template if before is None else Sequence([before, template])
    portable.enable_truncation(tokenizer.max_length)
    pad_token = tokenizer.backend.convert_ids_to_tokens(tokenizer.pad_id)
    portable.enable_padding(pad_id=tokenizer.pad_id, pad_token=pad_token)
    check_ids(tokenizer, portable)
    portable.save(str(path))
    return portable


def find_ending(tokenizer: Tokenizer) -> list[tuple[str, int]]:
    """The tokens that the model appends to every caption, with their ids."""
    backend = tokenizer.backend
    if tokenizer.suffix is not None:
        plain, ended = (backend(text)["input_ids"] for text in ("a", "a" + tokenizer.suffix))
        ids = ended[len(plain) :]
    else:
        ids = [backend.eos_token_id] if tokenizer.append_end else []
    return list(zip(backend.convert_ids_to_tokens(ids), ids, strict=True))


def choose_captions(tokenizer: Tokenizer) -> list[str]:
    """The captions to compare: all, or with a suffix of several tokens those that are not cut.

    The model cuts the suffix with the caption, and tokenizer.json only the caption.
    """
    if tokenizer.suffix is None:
        return list(CAPTIONS)
    rows = tokenizer.backend([caption + tokenizer.suffix for caption in CAPTIONS])["input_ids"]
    return [caption for caption, row in zip(CAPTIONS, rows, strict=True) if len(row) <= tokenizer.max_length]


def check_ids(tokenizer: Tokenizer, portable: tokenizers.Tokenizer) -> None:
    """ValueError if tokenizer.json does not give the ids of the model's tokenizer."""
    captions = choose_captions(tokenizer)
    ids, mask = tokenizer(captions)
    rows = portable.encode_batch(captions)
    if [row.ids for row in rows] != ids.tolist() or [row.attention_mask for row in rows] != mask.long().tolist():
        raise ValueError(f"tokenizer {tokenizer.name!r}: tokenizer.json gives other ids than the model's tokenizer")
