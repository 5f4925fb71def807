"""Texts from a language model of the transformers library: an encoder-decoder, or a decoder with or without a chat."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from clap.device import choose_device
from clap.text_encoder import quiet_transformers

DIGESTED = (".safetensors", ".json", ".model", ".txt", ".jinja")  # suffixes of the files of a model


class Rewriter:
    """A language model on its device.

    Args:
        model: hub name or folder; weights must be safetensors, and code in the folder is never executed.
        count: texts for each prompt.
        max_new_tokens: of a text; a longer one is cut off.
        temperature: of sampling; 0 takes the most likely token each time.

    Raises:
        FileNotFoundError: the model is neither a local folder nor on the hub or in its cache.
        ValueError: it is not a language model, lacks weights, or has no end token.
    """

    def __init__(self, model: str, *, device: str, count: int, max_new_tokens: int, temperature: float) -> None:
        self.source, self.count = model, count
        try:
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
            kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            with quiet_transformers():
                self.model, report = kind.from_pretrained(
                    model, use_safetensors=True, trust_remote_code=False, dtype="auto", output_loading_info=True
                )
        except OSError as error:
            raise FileNotFoundError(
                f"--model {model}: no local folder with config.json, model.safetensors and a tokenizer, and not found "
                "on the Hugging Face hub or in its cache; give a folder, or go online once to download it"
            ) from error
        except ValueError as error:
            raise ValueError(
                f"--model {model} is not a language model ({error}); give one that generates text"
            ) from None
        if absent := sorted(report["missing_keys"]):
            raise ValueError(f"--model {model} lacks {len(absent)} tensors ({absent[0]}, ...); give a language model")
        self.revision = digest_folder(Path(model)) if Path(model).is_dir() else config._commit_hash
        self.is_decoder = not config.is_encoder_decoder
        self.positions = getattr(config, "max_position_embeddings", None)
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            raise ValueError(f"--model {model} has no end token, so that no text ends; give another model")
        self.ends = torch.tensor([ends] if isinstance(ends, int) else ends)
        self.tokenizer.padding_side = "left" if self.is_decoder else "right"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.to(choose_device(device)).eval()
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        self.options = {"max_new_tokens": max_new_tokens, "num_return_sequences": count, "num_beams": 1, **sampling}

    @torch.inference_mode()
    def write_texts(self, prompts: Sequence[str], *, seed: Sequence[int]) -> list[list[str | None]]:
        """`count` texts for each prompt; None for one that was cut off. Prompts and seed determine the texts.

        Raises:
            ValueError: a prompt is too long for the model.
        """
        if chat := self.tokenizer.chat_template is not None:
            messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
            prompts = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
            )
        tokens = self.tokenizer(prompts, padding=True, add_special_tokens=not chat, return_tensors="pt")
        length, new = tokens.input_ids.shape[1], self.options["max_new_tokens"]
        total = length + new if self.is_decoder else max(length, new)
        if self.positions is not None and total > self.positions:
            raise ValueError(
                f"{self.source} has {self.positions} positions, fewer than a prompt of {length} tokens and "
                f"--max-new-tokens {new} need; shorten the prompt: {max(prompts, key=len)[:80]!r}"
            )
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
        device = self.model.device
        rows = self.model.generate(
            input_ids=tokens.input_ids.to(device),
            attention_mask=tokens.attention_mask.to(device),
            pad_token_id=self.tokenizer.pad_token_id,
            **self.options,
        ).cpu()
        rows = rows[:, length if self.is_decoder else 1 :]  # without the prompt, or the token that starts a decoder
        ended = torch.isin(rows, self.ends).any(dim=1).tolist()
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        found = [text if has_end else None for text, has_end in zip(texts, ended, strict=True)]
        return [found[first : first + self.count] for first in range(0, len(found), self.count)]


def digest_folder(folder: Path) -> str:
    """Digest of the names and contents of the files of a model, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in DIGESTED):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]
