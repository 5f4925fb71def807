"""Outputs of frozen encoders, computed once for each clip and caption and shared by runs (`trainer.cache_frozen`).

What is cached is the output of an encoder, before its projection. It is exact because a frozen encoder is in evaluation
mode: it has no dropout, no masks and no random windows of its own. A folder holds the outputs of one encoder with given
weights, settings, code and precision; a key in it is the audio that is read of a clip, or the token ids of a caption.
"""

import inspect
import json
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clap.dataset.clips import ClapDataset
from clap.dataset.feature_store import FeatureStore, Rows, Use
from clap.dataset.frozen_audio import FrozenAudio, find_unknown, is_identified, is_longer
from clap.dataset.loader import Batch
from clap.evaluation.protocol import AUDIO_DEFINITION
from clap.lora import adapted_layers
from clap.process_group import gather_numbers, is_main
from clap.run_folder import show_path
from clap.text_encoder import TextEncoder
from clap.training.acceleration import matmul_precision
from clap.training.distillation import DistillationLoss
from clap.training.trainer_settings import ENCODERS
from clap.waveform import AudioError

if TYPE_CHECKING:  # the trainer imports this module
    from clap.training.trainer import ClapTrainer

log = logging.getLogger(__name__)

FOLDER = Path("outputs/frozen")  # of trainer.cache_frozen=true
MOST_HEADERS = 1000  # recordings whose length is checked before training, evenly spaced; others when they are read
LIBRARIES = ("torch", "torchaudio", "transformers", "timm", "soundfile", "soxr")  # whose code an output depends on
NOT_SETTINGS = {
    "pretrained",
    "name",
    "tokenizer",
    "max_length",
    "suffix",
}  # config keys that the weights or ids have


class FrozenTowers:
    """Replaces the frozen encoders of a trainer's model by their cache, while it is `active`.

    Attributes:
        use: how often outputs were found or computed, by encoder.
    """

    def __init__(self, trainer: "ClapTrainer") -> None:
        self.trainer, self.settings = trainer, trainer.settings
        self.folder = Path(self.settings.cache_frozen) if isinstance(self.settings.cache_frozen, str) else FOLDER
        self.digests: dict[str, tuple[tuple, str]] = {}  # encoder -> versions of its weights, digest
        self.stores: dict[str, FeatureStore] = {}  # by folder
        self.use, self.logged = {name: Use() for name in ENCODERS}, dict.fromkeys(ENCODERS, 0)

    @property
    def cached(self) -> list[str]:
        """The encoders whose outputs are cached."""
        clap, has_teachers = self.trainer.clap, isinstance(self.trainer.criterion, DistillationLoss)
        return self.settings.find_cached(clap.frozen, clap.augmentation, has_teachers=has_teachers)

    def check(self) -> None:
        """Refuse a cache that would not be exact; collective.

        Raises:
            ValueError: an encoder cannot be cached, with the reason.
        """
        clap, given = self.trainer.clap, f"trainer.cache_frozen={self.settings.cache_frozen}"
        for name in self.cached:
            if clap.config is None:
                raise ValueError(f"{given}: this model has no config, which identifies its {name}; build it from one")
            if adapted_layers(clap.get_submodule(name)):
                raise ValueError(f"{given}: {name} has adapters; set lora.{name}=null, or trainer.cache_frozen=false")
        if "audio_encoder" in self.cached:
            for loader in self.loaders():
                check_identities(loader.dataset, given)
            if self.settings.frozen_windows == "random":
                check_lengths(self.trainer.train_loader.dataset, given)

    def loaders(self) -> list[DataLoader]:
        """All that the trainer reads."""
        sets = self.trainer.validation.sets
        evaluated = (loader for found in sets for loader in (*found.loaders.values(), *found.other_loaders.values()))
        return [self.trainer.train_loader, *evaluated]

    @contextmanager
    def active(self) -> Iterator[None]:
        """The model and the datasets of the trainer use the cache."""
        clap, cached = self.trainer.clap, self.cached
        train_dataset = self.trainer.train_loader.dataset
        if isinstance(train_dataset, ClapDataset) and "audio_encoder" in clap.frozen:
            train_dataset.random_parts = self.settings.frozen_windows == "random"
        datasets = [loader.dataset for loader in self.loaders()] if "audio_encoder" in cached else []
        before = getattr(clap, "encode_text", None), [dataset.frozen_audio for dataset in datasets]
        if "text_encoder" in cached:
            clap.encode_text = self.encode_text
        for dataset in datasets:
            label = self.training_precision() if dataset is train_dataset else find_precision(clap.device)
            dataset.frozen_audio = FrozenAudio(self.open_store("audio_encoder", label), self.use["audio_encoder"])
        try:
            yield
        finally:
            if "text_encoder" in cached:
                clap.encode_text = before[0]
            for dataset, value in zip(datasets, before[1], strict=True):
                dataset.frozen_audio = value
            self.flush()

    def training_precision(self) -> str:
        """`find_precision` inside a training step."""
        device = self.trainer.clap.device
        with self.trainer.objective.autocast, matmul_precision(device, tf32=self.settings.tf32):
            return find_precision(device)

    def open_store(self, name: str, precision: str) -> FeatureStore:
        """The outputs of an encoder in a precision, by its present weights."""
        encoder = self.trainer.clap.get_submodule(name)
        versions = tuple((t.data_ptr(), t._version) for t in (*encoder.parameters(), *encoder.buffers()))
        if self.digests.get(name, (None,))[0] != versions:
            self.digests[name] = versions, digest_encoder(encoder, describe_encoder(name, self.trainer.clap))
        key = f"{name}-{self.digests[name][1]}-{precision}"
        if key not in self.stores:
            self.stores[key] = FeatureStore(self.folder / key, encoder.output_dim)
        return self.stores[key]

    def complete(self, batch: Batch) -> Batch:
        """A training batch with the outputs of a cached audio encoder.

        Raises:
            ValueError: a clip is longer than what training reads of it, and the windows are random.
        """
        dataset = self.trainer.train_loader.dataset
        if batch.features is None:
            return batch
        if self.settings.frozen_windows == "random" and batch.is_cut.any():
            clip = dataset.clips[int(batch.index[batch.is_cut][0])]
            raise ValueError(describe_longer(clip.id, f"trainer.cache_frozen={self.settings.cache_frozen}"))
        with self.trainer.objective.autocast:
            return dataset.frozen_audio.complete(
                batch, self.trainer.clap.audio_encoder, size=self.settings.micro_batch_size
            )

    @torch.no_grad()
    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Outputs of the cached text encoder: token ids, mask (batch, tokens) -> (batch, width)."""
        clap, use = self.trainer.clap, self.use["text_encoder"]
        store = self.open_store("text_encoder", find_precision(clap.device))
        lengths, keys = mask.sum(dim=1).cpu(), make_token_keys(ids.cpu().numpy(), mask.cpu().numpy())
        features = torch.from_numpy(store.find(keys).features)
        missing = find_unknown(features)
        use.found += len(ids) - len(missing)
        if len(missing):
            with use.computing(len(missing)):
                rows, longest = missing.to(ids.device), int(lengths[missing].max())
                features[missing] = clap.text_encoder(ids[rows, :longest], mask[rows, :longest]).float().cpu()
            found = Rows(features[missing].numpy(), lengths[missing].numpy(), np.zeros(len(missing), bool))
            store.add(keys[missing.numpy()], found)
        return features.to(ids.device)

    def flush(self) -> None:
        for store in self.stores.values():
            store.flush()

    def log_use(self) -> None:
        """Flush, and log what was found and computed, if anything was computed since the last time; collective."""
        self.flush()
        for name in self.cached:
            use, stores = self.use[name], [store for key, store in self.stores.items() if key.startswith(name)]
            for store in stores:
                store.refresh()
            facts = gather_numbers([use.found, use.computed, round(1000 * use.seconds)])
            (found, computed, _), milliseconds = facts.sum(dim=0).tolist(), int(facts[:, 2].max())
            if is_main() and computed > self.logged[name]:
                rows, size = sum(map(len, stores)), sum(store.num_bytes for store in stores)
                log.info(
                    "frozen %s: %d outputs computed in %.1f s, %d found; %d, %.1f MB, in %s",
                    *(name, computed, milliseconds / 1000, found, rows, size / 1e6),
                    ", ".join(show_path(store.folder) for store in stores),
                )
            self.logged[name] = computed

    def describe(self) -> dict[str, str]:
        """A row for the header of the log: which encoders are cached, and where."""
        if not self.settings.cache_frozen:
            return {}
        others = [f"{name} is trained and not cached" for name in ENCODERS if name not in self.cached]
        return {"frozen cache": "; ".join([f"{' and '.join(self.cached)} in {show_path(self.folder)}", *others])}


def find_precision(device: torch.device) -> str:
    """Device and precision of an encoder that runs now, such as `cpu-float32` or `cuda-bfloat16-tf32`."""
    is_mixed = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if is_mixed else torch.float32
    tf32 = "-tf32" if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32 else ""
    return f"{device.type}-{str(dtype).removeprefix('torch.')}{tf32}"


def make_token_keys(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Keys (batch, 2) of token ids (batch, tokens) without their padding."""
    rows = [blake2b(row[own].astype("<i4").tobytes(), digest_size=16) for row, own in zip(ids, mask, strict=True)]
    return np.frombuffer(b"".join(row.digest() for row in rows), np.uint64).reshape(-1, 2)


def describe_encoder(name: str, clap: nn.Module) -> dict[str, Any]:
    """The settings that, with its weights, determine the outputs of an encoder."""
    node = {key: value for key, value in clap.config[name].items() if key not in NOT_SETTINGS}
    if name == "audio_encoder":
        return {"encoder": node, "fusion": clap.config["fusion"], "windows": clap.windows, "audio": AUDIO_DEFINITION}
    if isinstance(clap.text_encoder, TextEncoder):
        node |= {"model": clap.text_encoder.model_config, "pooling": clap.text_encoder.pooling}
    return {"encoder": node}


def digest_encoder(encoder: nn.Module, description: Mapping[str, Any]) -> str:
    """Digest of an encoder's weights, settings and code, 16 hexadecimal digits."""
    tensors = dict([*encoder.named_parameters(), *encoder.named_buffers()])
    with ThreadPoolExecutor() as threads:
        digests = dict(zip(tensors, threads.map(digest_tensor, tensors.values()), strict=True))
    known = {"settings": description, "tensors": digests, "code": digest_code(encoder)}
    return blake2b(json.dumps(known, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def digest_tensor(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous()
    content = values.reshape(-1).view(torch.uint8).numpy()
    return f"{values.dtype} {tuple(values.shape)} {blake2b(content, digest_size=16).hexdigest()}"


def digest_code(encoder: nn.Module) -> dict[str, str]:
    """Versions of libraries, and digests of the other files that define the classes of an encoder's modules."""
    classes = {base for module in encoder.modules() for base in type(module).__mro__}
    modules = {inspect.getmodule(found) for found in classes} - {None}
    files = {
        module.__name__: Path(module.__file__)
        for module in modules
        if module.__name__.partition(".")[0] not in ("builtins", "peft", *LIBRARIES)
    }
    digests = {name: blake2b(path.read_bytes(), digest_size=8).hexdigest() for name, path in files.items()}
    return digests | {library: version(library) for library in LIBRARIES}


def check_identities(dataset: ClapDataset, given: str) -> None:
    """ValueError if the audio of a dataset's clips is not identified without loading it."""
    if not isinstance(dataset, ClapDataset):
        raise ValueError(
            f"{given} caches the audio encoder, which needs loaders over ClapDataset, not {type(dataset).__name__}; "
            "take audio_encoder out of freeze, or set trainer.cache_frozen=false"
        )
    for corpus in dataset.corpora:
        first = np.flatnonzero(dataset.owners == corpus)[:1].tolist()
        if any(not is_identified(corpus, dataset.clips[index]) for index in first):
            raise ValueError(
                f"{given}, but {type(corpus).__name__} loads {dataset.clips[first[0]].id} by itself and does not "
                "identify its audio; define its method `identify`, take audio_encoder out of freeze, or set "
                "trainer.cache_frozen=false"
            )


def check_lengths(dataset: ClapDataset, given: str) -> None:
    """ValueError if training reads random parts of clips; collective."""
    chosen = range(0, len(dataset.clips), -(-len(dataset.clips) // MOST_HEADERS))
    for index, header in zip(chosen, dataset.share_headers(chosen), strict=True):
        corpus = dataset.owners[index]
        is_remote = header is None and corpus.loads_recordings  # its length is checked when it is read
        if not is_remote and not isinstance(header, AudioError) and is_longer(header, dataset.limit_duration(corpus)):
            raise ValueError(describe_longer(dataset.clips[index].id, given))


def describe_longer(clip_id: str, given: str) -> str:
    return (
        f"{given}: clip {clip_id} is longer than what training reads of it, and the part is random; set "
        "trainer.frozen_windows=middle, or trainer.cache_frozen=false"
    )
