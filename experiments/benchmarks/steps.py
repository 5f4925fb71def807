"""Steps, models and measurements that the benchmarks of training share."""

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.testing import assert_close
from torch.utils.data import DataLoader
from transformers import ClapFeatureExtractor, ClapModel

from clap.dataset.cache import WaveformCache
from clap.dataset.clips import ClapDataset
from clap.dataset.loader import Batch, make_loader
from clap.dataset.synthetic import Synthetic
from clap.loss import SymmetricCrossEntropyLoss
from clap.model import Clap
from clap.published.export import describe_config, describe_extractor, to_huggingface
from clap.training.acceleration import matmul_precision
from clap.training.cost import measure_gemm_rate, peak_memory, reset_peak_memory, synchronize
from clap.training.parallel import GlobalStep
from clap.training.precision import make_autocast
from clap.training.trainer import ClapTrainer
from clap.training.trainer_settings import TrainerSettings

FULL = (
    "audio_encoder=htsat_tiny",
    "audio_encoder.spec_augment=null",  # ClapModel has none
    "text_encoder=roberta",
    "text_encoder.pretrained=false",
    "text_encoder.tokenizer=train",  # needs no download; the token ids are random
    "text_encoder.pooling=pooler",
    "embed_dim=512",
)
SMALL = (
    *FULL,
    "audio_encoder.frontend.window=3.0",
    "audio_encoder.frontend.hop_length=2400",
    "audio_encoder.embed_dim=16",
    "audio_encoder.depths=[1,1]",
    "audio_encoder.num_heads=[2,4]",
    "audio_encoder.image_size=64",
    "text_encoder.model.vocab_size=300",
    "text_encoder.model.hidden_size=32",
    "text_encoder.model.num_hidden_layers=1",
    "text_encoder.model.num_attention_heads=2",
    "text_encoder.model.intermediate_size=64",
    "embed_dim=16",
)
Key = TypeVar("Key")
NUM_TOKENS, LAION_TOKENS = 16, 77
GEMM_SECONDS = 0.25
MISSING = "not run here"


@dataclass
class Step:
    """A training step: forward and loss, backward, optimizer."""

    loss: Callable[[], Tensor]
    optimizer: Optimizer

    def __call__(self) -> None:
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


@dataclass
class Models:
    """Both models with the same weights, and their input: a batch on the CPU."""

    clap: Clap
    reference: ClapModel
    extractor: ClapFeatureExtractor
    batch: Batch
    precision: str = "fp32"

    @property
    def device(self) -> torch.device:
        return self.clap.device

    def own_steps(self) -> dict[str, Step]:
        """End to end and from the log-mel."""
        optimizer, criterion = AdamW(self.clap.parameters(), lr=1e-5, fused=True), SymmetricCrossEntropyLoss()
        encoder = self.clap.audio_encoder
        moved = self.batch.to(self.device)
        with torch.no_grad():
            views = encoder.fusion(moved.waveform, moved.lengths, encoder.frontend)

        def loss() -> Tensor:
            batch = self.batch.to(self.device)
            with self.autocast():
                audio, text, scale = self.clap(batch.waveform, batch.lengths, batch.token_ids, batch.token_mask)
            return criterion(audio, text, scale, batch.clip_ids)

        def loss_alone() -> Tensor:
            with self.autocast():
                features = self.clap.audio_projection(encoder.encode_views(views))
                text = self.clap.embed_text(moved.token_ids, moved.token_mask)
            audio = nn.functional.normalize(features.float(), dim=-1)
            return criterion(audio, text, self.clap.logit_scale.exp(), moved.clip_ids)

        return {"end to end": Step(loss, optimizer), "model alone": Step(loss_alone, optimizer)}

    def reference_steps(self) -> dict[str, Step]:
        """The same of ClapModel, and padded to 77 tokens."""
        optimizer = AdamW(self.reference.parameters(), lr=1e-5, fused=True)
        features = self.extract()

        def loss(num_tokens: int, features: Mapping[str, Tensor] | None) -> Tensor:
            features = self.extract() if features is None else features
            with self.autocast():
                return self.reference(**features, **self.pad_tokens(num_tokens), return_loss=True).loss

        return {
            "end to end": Step(lambda: loss(NUM_TOKENS, None), optimizer),
            "model alone": Step(lambda: loss(NUM_TOKENS, features), optimizer),
            "end to end, 77 tokens": Step(lambda: loss(LAION_TOKENS, None), optimizer),
        }

    def autocast(self) -> AbstractContextManager[None]:
        return make_autocast(self.precision, self.device)[0]

    def extract(self) -> dict[str, Tensor]:
        waveforms = list(self.batch.waveform.numpy())
        features = self.extractor(waveforms, sampling_rate=self.clap.sample_rate, return_tensors="pt")
        return {name: features[name].to(self.device) for name in ("input_features", "is_longer")}

    def pad_tokens(self, num_tokens: int) -> dict[str, Tensor]:
        missing = (0, num_tokens - self.batch.token_ids.shape[1])
        pad_id = self.reference.config.text_config.pad_token_id
        ids = nn.functional.pad(self.batch.token_ids, missing, value=pad_id)
        mask = nn.functional.pad(self.batch.token_mask.long(), missing)
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    @torch.no_grad()
    def check(self) -> None:
        """Both models give the same embeddings; AssertionError otherwise."""
        self.clap.eval(), self.reference.eval()
        batch = self.batch.to(self.device)
        own = self.clap(batch.waveform, batch.lengths, batch.token_ids, batch.token_mask)[:2]
        found = self.reference(**self.extract(), **self.pad_tokens(LAION_TOKENS))
        assert_close(own, (found.audio_embeds, found.text_embeds), atol=1e-3, rtol=0.0)
        self.clap.train(), self.reference.train()


def build_models(config: dict[str, Any], *, device: torch.device) -> Models:
    """Models with random weights, and a batch of two synthetic scenes as long as the window."""
    torch.manual_seed(0)
    clap = Clap.from_config(config)
    settings = describe_config(clap)
    reference = ClapModel(settings)
    reference.load_state_dict(to_huggingface(clap, settings))
    batch = load_batch(open_scenes(clap, 2))
    return Models(clap.to(device), reference.to(device), describe_extractor(clap)[0], batch)


def open_scenes(
    clap: Clap,
    batch_size: int,
    *,
    duration: float | None = None,
    num_batches: int = 1,
    num_workers: int = 0,
    cache: Path | None = None,
) -> DataLoader:
    """Loader of synthetic scenes of `duration` seconds; None: as long as the window."""
    duration = duration or clap.audio_encoder.window
    count = num_batches * batch_size
    corpus = Synthetic(num_train=count, num_val=1, num_test=1, min_duration=duration, max_duration=duration)
    corpus.cache = None if cache is None else WaveformCache(cache)
    dataset = ClapDataset(corpus, "train", sample_rate=clap.sample_rate, window=clap.window)
    if clap.tokenizer.needs_training:
        clap.tokenizer.train(dataset.captions)
    return make_loader(dataset, clap.collate, batch_size=batch_size, num_workers=num_workers, shuffle=True)


def load_batch(loader: DataLoader) -> Batch:
    """The first batch, with captions of NUM_TOKENS random tokens."""
    batch = next(iter(loader))
    ids = torch.randint(5, 300, (len(batch), NUM_TOKENS))
    return replace(batch, token_ids=ids, token_mask=torch.ones_like(ids, dtype=torch.bool))


def make_trainer(clap: Clap, loader: DataLoader, *, fused: bool = True, **settings: Any) -> ClapTrainer:
    """A trainer without validation; `settings` are options of TrainerSettings."""
    optimizer = AdamW(clap.parameters(), lr=1e-5, fused=fused)
    clap.train()
    options = TrainerSettings(**settings)
    return ClapTrainer(loader, None, None, clap, optimizer, SymmetricCrossEntropyLoss(), settings=options)


def train_step(trainer: ClapTrainer, batch: Batch) -> None:
    with matmul_precision(trainer.clap.device, tf32=trainer.settings.tf32):
        trainer.train_step(batch.to(trainer.clap.device), GlobalStep.agree(batch, stop=False))


def repeat_rows(batch: Batch, size: int) -> Batch:
    """A batch of `size` clips from the rows of a smaller one."""
    rows = torch.arange(size) % len(batch)
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **{name: value[rows] for name, value in tensors.items()})


def time_in_turn(calls: Mapping[Key, Callable[[], object]], repeats: int, *, device: torch.device) -> dict[Key, float]:
    """Median seconds of each call after a warm-up, with the calls interleaved."""
    seconds: dict[Key, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def time_with_rate(
    calls: Mapping[str, Callable[[], object]], repeats: int, *, device: torch.device, precision: str
) -> tuple[dict[str, float], float]:
    """Median seconds of each call, and the median GEMM rate in FLOP/s, measured in turn with them."""
    rates: list[float] = []
    gemm = {"GEMM": lambda: rates.append(measure_gemm_rate(device, precision, seconds=GEMM_SECONDS))}
    return time_in_turn({**calls, **gemm}, repeats, device=device), statistics.median(rates)


def step_memory(step: Callable[[], object], optimizer: Optimizer, device: torch.device) -> int:
    """Peak bytes during a step, above weights and optimizer."""
    optimizer.zero_grad()
    return measure_peak(step, device)


def measure_peak(call: Callable[[], object], device: torch.device) -> int:
    """Peak bytes during a call, above those before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with suppress(OSError, AttributeError):  # other C libraries than glibc keep what is freed
        ctypes.CDLL(None).malloc_trim(0)
    reset_peak_memory()
    before = psutil.Process().memory_info().rss
    call()
    return max(0, peak_memory() - before)
