"""Frozen encoders are computed once: the same training with a cache of their outputs as without, and refusals."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks

from clap import ClapTrainer
from clap.audio_encoder.htsat import HTSAT
from clap.config.augmentation_settings import AugmentationSettings
from clap.corpus import Corpus
from clap.dataset.synthetic import Synthetic
from clap.process_group import rank
from clap.run_folder import read_history
from clap.training.trainer_settings import TrainerSettings

BOTH = ("audio_encoder", "text_encoder")


@pytest.fixture
def make_frozen(make_trainer: Callable, tmp_path: Path) -> Callable[..., ClapTrainer]:
    """`make_frozen(parts, cache=True, ...)` -> a trainer with frozen parts, by default with a cache in tmp_path."""

    def make(frozen: tuple[str, ...] = BOTH, *, cache: bool = True, **options) -> ClapTrainer:
        folder = str(tmp_path / "frozen") if cache else False
        trainer = make_trainer(**{"frozen_windows": "middle", "cache_frozen": folder} | options)
        trainer.clap.freeze(frozen)
        return trainer

    return make


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many clips the audio encoder has encoded, and how many scenes were rendered."""
    counts, encode, load = {"encoded": 0, "loaded": 0}, HTSAT.forward, Synthetic.load

    def forward(self: HTSAT, waveform: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        counts["encoded"] += len(waveform)
        return encode(self, waveform, lengths)

    def count_load(self: Synthetic, *args, **options) -> np.ndarray:
        counts["loaded"] += 1
        return load(self, *args, **options)

    monkeypatch.setattr(HTSAT, "forward", forward)
    monkeypatch.setattr(Synthetic, "load", count_load)
    return counts


def read_values(folder: Path) -> dict[tuple[int, str], float]:
    """The metrics of a run by step and name, without those of time and memory."""
    parts = ("loss", "grad_norm", "val/", "val_ema/", "test/")
    entries = read_history(folder / "metrics.jsonl")
    values = {(entry["step"], name): value for entry in entries for name, value in entry["metrics"].items()}
    return {key: value for key, value in values.items() if any(part in key[1] for part in parts)}


def assert_same_training(first: Path, second: Path) -> None:
    before, after = read_values(first), read_values(second)
    assert before
    assert after == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize("frozen", [BOTH, BOTH[:1], BOTH[1:]], ids=lambda frozen: "+".join(frozen))
def test_cache_changes_no_metric(make_frozen: Callable, tmp_path: Path, frozen: tuple[str, ...]):
    for cache in (False, True):
        make_frozen(frozen, cache=cache, log_every=1).train_and_eval(tmp_path / str(cache))
    assert_same_training(tmp_path / "False", tmp_path / "True")


def test_known_clip_is_neither_loaded_nor_encoded(make_frozen: Callable, tmp_path: Path, counted: dict[str, int]):
    first = make_frozen(epochs=3)
    first.fit(tmp_path / "first")
    assert counted == {"encoded": 18, "loaded": 18}  # 12 training and 6 validation clips, each once
    assert (first.frozen.use["audio_encoder"].found, first.frozen.use["audio_encoder"].computed) == (36, 18)
    second = make_frozen(epochs=3)
    second.fit(tmp_path / "second")
    assert counted == {"encoded": 18, "loaded": 18}
    assert second.frozen.use["audio_encoder"].computed == second.frozen.use["text_encoder"].computed == 0
    assert_same_training(tmp_path / "first", tmp_path / "second")


def test_gradient_caching_runs_a_cached_encoder_once(make_frozen: Callable, tmp_path: Path, counted: dict[str, int]):
    for cache in (False, True):
        counted["encoded"] = 0
        make_frozen(cache=cache, micro_batch_size=2, log_every=1, epochs=1).fit(tmp_path / str(cache))
    assert counted["encoded"] == 18
    assert_same_training(tmp_path / "False", tmp_path / "True")


def test_resume_in_an_epoch_uses_the_cache(make_frozen: Callable, tmp_path: Path, counted: dict[str, int]):
    whole, stopped, resumed = (make_frozen(cache=cache, log_every=1) for cache in (False, True, True))
    whole.fit(tmp_path / "whole")
    take_step = stopped.train_step
    stopped.train_step = lambda *arguments: (take_step(*arguments), os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(tmp_path / "parts")
    assert stopped.frozen.use["audio_encoder"].computed == 6
    counted["encoded"] = 0
    resumed.resume(tmp_path / "parts" / "checkpoints" / "last")
    resumed.fit(tmp_path / "parts")
    assert counted["encoded"] == 12  # the rest of the epoch and the validation split
    assert_same_training(tmp_path / "whole", tmp_path / "parts")


def test_two_processes_share_the_cache(make_frozen: Callable, tmp_path: Path):
    """Each computes its part of a batch; the other order of the next run finds all."""

    def train(run: int) -> tuple[int, float]:
        trainer = make_frozen(epochs=1)
        trainer.fit(tmp_path / f"run {run}")
        return trainer.frozen.use["audio_encoder"].computed, trainer.validation.best_metric

    first, second = (run_ranks(lambda rank, run=run: train(run)) for run in range(2))
    assert [computed for computed, _ in second] == [0, 0] and sum(computed for computed, _ in first) == 18
    alone = make_frozen(epochs=1, cache=False)
    alone.fit(tmp_path / "alone")
    assert second[rank()][1] == pytest.approx(alone.validation.best_metric, abs=1e-5)


def test_other_weights_have_a_cache_of_their_own(make_frozen: Callable, tmp_path: Path, counted: dict[str, int]):
    make_frozen(epochs=1).fit(tmp_path / "first")
    changed = make_frozen(epochs=1)
    with torch.no_grad():
        changed.clap.audio_encoder.bn0.running_mean += 1e-6
    counted["encoded"] = 0
    changed.fit(tmp_path / "second")
    assert counted["encoded"] == 18
    assert changed.frozen.use["text_encoder"].computed == 0


def test_mixed_precision_has_a_cache_of_its_own(make_frozen: Callable, tmp_path: Path):
    for cache in (False, True):
        make_frozen(cache=cache, precision="bf16", log_every=1, epochs=1).fit(tmp_path / str(cache))
    assert_same_training(tmp_path / "False", tmp_path / "True")
    names = sorted(path.name.split("-", 2)[2] for path in (tmp_path / "frozen").iterdir())
    assert names == ["cpu-bfloat16", "cpu-bfloat16", "cpu-float32", "cpu-float32"]  # validation is in float32


def test_model_encodes_text_itself_after_training(make_frozen: Callable, tmp_path: Path):
    trainer = make_frozen(epochs=1)
    trainer.fit(tmp_path / "run")
    assert trainer.clap.encode_text is None and trainer.train_loader.dataset.frozen_audio is None
    assert trainer.train_loader.dataset[0].samples.size


def test_average_of_the_weights_is_evaluated_with_the_cache(make_frozen: Callable, tmp_path: Path):
    for cache in (False, True):
        make_frozen(cache=cache, ema_decay=0.5, log_every=1).train_and_eval(tmp_path / str(cache))
    assert_same_training(tmp_path / "False", tmp_path / "True")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen": ()}, "no encoder is frozen; set freeze="),
        ({"frozen": ("text_projection",)}, "no encoder is frozen; set freeze="),
        ({"unfreeze_at": 2}, "trainer.unfreeze_at=2: .* set trainer.unfreeze_at=null"),
        ({"frozen_windows": "random"}, "clip train-0000. is longer .* set trainer.frozen_windows=middle"),
    ],
)
def test_inexact_cache_is_refused(make_frozen: Callable, tmp_path: Path, options: dict, message: str):
    trainer = make_frozen(**options)
    with pytest.raises(ValueError, match=message):
        trainer.fit(tmp_path / "run")


def test_augmentation_is_refused_for_the_audio_encoder_only():
    settings, augmentation = TrainerSettings(cache_frozen=True), AugmentationSettings(gain=6.0)
    with pytest.raises(ValueError, match="set augmentation=none, take audio_encoder out of freeze"):
        settings.find_cached(BOTH, augmentation, has_teachers=False)
    assert settings.find_cached(["text_encoder"], augmentation, has_teachers=False) == ["text_encoder"]


def test_teachers_are_refused_for_the_audio_encoder_only():
    settings, none = TrainerSettings(cache_frozen=True), AugmentationSettings()
    with pytest.raises(ValueError, match="teachers embed the waveforms"):
        settings.find_cached(BOTH, none, has_teachers=True)
    assert settings.find_cached(["text_encoder"], none, has_teachers=True) == ["text_encoder"]


def test_corpus_that_does_not_identify_its_audio_is_refused(
    make_frozen: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Synthetic, "identify", Corpus.identify)
    with pytest.raises(ValueError, match="Synthetic loads train-00000 by itself .* define its method `identify`"):
        make_frozen().fit(tmp_path / "run")
