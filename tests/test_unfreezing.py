"""Parts that are frozen at first and train from a step on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from test_state import interrupt_after
from torch import Tensor
from torch.optim import AdamW

from clap import ClapTrainer
from clap.checkpoint import read_weights
from clap.training.sharding import shard_text_encoder


@pytest.fixture
def make_frozen(make_trainer: Callable) -> Callable:
    """`make_frozen(...)` -> `make_trainer(...)` with a frozen text encoder."""

    def make(*arguments: object, **options: object) -> ClapTrainer:
        trainer = make_trainer(*arguments, **options)
        trainer.clap.freeze(["text_encoder"])
        return trainer

    return make


def copy_weights(trainer: ClapTrainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.clap.text_encoder.state_dict().items()}


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_frozen_part_trains_from_the_step_on(make_frozen: Callable, tmp_path: Path, micro_batch_size: int | None):
    trainer, found = make_frozen(unfreeze_at=2, micro_batch_size=micro_batch_size), []
    take_step = trainer.train_step
    trainer.train_step = lambda *batch: (found.append(copy_weights(trainer)), take_step(*batch))
    trainer.fit(tmp_path)
    found.append(copy_weights(trainer))
    moved = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in zip(found, found[1:], strict=False)]
    assert moved == [False, False, True, True]
    assert trainer.clap.train().text_encoder.training


@pytest.mark.parametrize("stop_after", [1, 3])
def test_run_resumes_exactly_before_and_after_the_step(make_frozen: Callable, tmp_path: Path, stop_after: int):
    whole, stopped, resumed = (make_frozen(unfreeze_at=2) for _ in range(3))
    whole.fit(tmp_path / "whole")
    stopped.train_step = interrupt_after(stopped, stop_after)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(tmp_path / "stopped")
    resumed.resume(tmp_path / "stopped" / "checkpoints" / "last")
    resumed.fit(tmp_path / "stopped")
    weights = (tmp_path / run / "checkpoints" / "last" / "model.safetensors" for run in ("whole", "stopped"))
    assert len({path.read_bytes() for path in weights}) == 1


def test_processes_average_the_gradients_of_the_part(make_frozen: Callable, tmp_path: Path):
    alone = make_frozen(epochs=1, unfreeze_at=1, lr=0.0)
    alone.fit(tmp_path / "alone")

    def train(rank: int) -> list[float]:
        trainer = make_frozen(epochs=1, unfreeze_at=1, lr=1e-3)
        trainer.fit(tmp_path / "ranks")
        return copy_weights(trainer)["transformer.ln_f.bias"].tolist()

    first, second = run_ranks(train)
    assert first == second
    assert first != read_weights(tmp_path / "alone/checkpoints/last")["text_encoder.transformer.ln_f.bias"].tolist()


def test_optimizer_without_the_part_is_refused(make_frozen: Callable, tmp_path: Path):
    trainer = make_frozen(unfreeze_at=1)
    trainer.optimizer = AdamW([p for p in trainer.clap.parameters() if p.requires_grad])
    with pytest.raises(ValueError, match="the optimizer does not have the parameters of text_encoder"):
        trainer.fit(tmp_path)


def test_sharded_part_is_refused(make_frozen: Callable, tmp_path: Path):
    def train(rank: int) -> None:
        trainer = make_frozen(unfreeze_at=1)
        shard_text_encoder(trainer.clap)
        trainer.optimizer = AdamW(trainer.clap.parameters())
        trainer.fit(tmp_path)

    errors = run_ranks(train)
    assert all("with trainer.parallel=fsdp: a sharded encoder" in str(error) for error in errors)


@pytest.mark.parametrize(("frozen", "start"), [(True, 4), (False, 1)])
def test_step_without_effect_is_reported(make_trainer: Callable, tmp_path: Path, frozen: bool, start: int, caplog):
    trainer = make_trainer(unfreeze_at=start)
    trainer.clap.freeze(["text_encoder"] if frozen else [])
    trainer.fit(tmp_path)
    reason = "is not within the 4 steps" if frozen else "has no effect: freeze lists no part"
    assert f"trainer.unfreeze_at={start} {reason}" in caplog.text
