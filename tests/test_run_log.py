"""The log of a training: header, lines, and the table at its end."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.utils import instantiate
from ranks import run_ranks
from torch.utils.data import DataLoader

from clap.config.augmentation_settings import AugmentationSettings
from clap.optimizer import describe_learning_rate
from clap.run_folder import HISTORY, read_history
from clap.training import run_log

RATES = "0.001, audio_encoder 0.0001; warmup 3 steps, then cosine to 1e-05"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """A function that returns the lines that are logged at INFO."""
    caplog.set_level(logging.INFO, "clap")
    return lambda: [line for record in caplog.records for line in record.getMessage().splitlines()]


def find_row(lines: list[str], name: str) -> str:
    (found,) = [line for line in lines if re.match(rf" *{name}  ", line)]
    return found.split(name, 1)[1].strip()


def test_header_describes_model_data_and_training(make_trainer: Callable, tmp_path: Path, lines: Callable):
    trainer = make_trainer(epochs=2, max_steps=3)
    trainer.clap.freeze(["text_encoder"]).augment(AugmentationSettings(gain=6.0))
    trainer.fit(tmp_path)
    found = lines()
    assert find_row(found, "augmentation") == "gain 6"
    assert "torch" in find_row(found, "device") and "fp32" in find_row(found, "device")
    total, frozen = (
        sum(p.numel() for p in part.parameters()) / 1e6 for part in (trainer.clap, trainer.clap.text_encoder)
    )
    assert find_row(found, "parameters") == f"{total:.2f} M, {total - frozen:.2f} M trainable, {frozen:.2f} M frozen"
    assert find_row(found, "text encoder").startswith(f"{frozen:.2f} M, frozen")
    assert "all trainable, HTSAT" in find_row(found, "audio encoder")
    assert find_row(found, "data") == "synthetic, 12 train, 6 val, 6 test clips"
    assert find_row(found, "window") == (
        "1 s; of a longer clip one window, random in training and the middle one in evaluation; "
        "12 of 12 training clips are longer"
    )
    assert find_row(found, "training") == "2 epochs of 2 steps, 3 steps in total, batch 6 clips"
    assert find_row(found, "learning rate") == "0.001; constant"
    assert found.index(next(line for line in found if line.startswith("device"))) < found.index(
        next(line for line in found if line.startswith("epoch 1/2"))
    )


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("mean", "evenly spaced windows, whose outputs are averaged"),
        ("aff", "a shrunken global view and three local windows, whose features AFF merges"),
        ("channel_map", "a shrunken global view and three local windows, as input channels"),
    ],
)
def test_window_states_what_the_fusion_does(option: str, text: str, tiny_clap: Callable):
    encoder = tiny_clap(f"fusion={option}").audio_encoder
    assert encoder.describe_window() == f"1 s; of a longer clip {text}"
    encoder.set_windows("mean")
    assert encoder.describe_window().endswith("whose outputs are averaged")


def test_schedule_is_described(make_trainer: Callable, tiny_config: Callable):
    trainer = make_trainer()
    options = {"lr": 1e-3, "audio_encoder_lr": 1e-4, "text_encoder_lr": 1e-3, "min_lr": 1e-5, "warmup_steps": 3}
    build = instantiate(tiny_config()["optimizer"] | options)
    optimizer, scheduler = build(trainer.clap, trainer.criterion, total_steps=10)
    assert describe_learning_rate(optimizer, scheduler) == RATES


def test_each_epoch_has_one_line(make_trainer: Callable, tmp_path: Path, lines: Callable):
    trainer = make_trainer(epochs=3, eval_every=2)
    trainer.fit(tmp_path)
    first, second, third = [line for line in lines() if line.startswith("epoch")]
    assert re.fullmatch(
        r"epoch 1/3, step 2/6 \| loss \d\.\d{3}, learning rate 1\.00e-03 "
        r"\| [\d.]+ s, [\d.]+ clips/s \| [\d.]+ s left",
        first,
    )
    metric = r"{} \d\.\d{{3}} \(chance \d\.\d{{3}}\)"
    names = ("text-to-audio mAP@10", "audio-to-text mAP@10", "text-to-audio recall@1")
    assert re.search(rf"\| val {', '.join(map(metric.format, names))} \| best so far \| [\d.]+ s left$", second)
    assert third.startswith("epoch 3/3, step 6/6 | loss") and "left" not in third
    assert re.search(r"\| best so far$|\| best \d\.\d{3} at step 4$", third)


def test_validation_within_an_epoch_has_a_line(make_trainer: Callable, tmp_path: Path, lines: Callable):
    make_trainer(epochs=1, eval_every_steps=1).fit(tmp_path)
    found = [line for line in lines() if line.startswith("epoch")]
    assert [line.split(" |")[0] for line in found] == ["epoch 1/1, step 1/2", "epoch 1/1, step 2/2"]


def test_training_without_validation_has_lines(make_trainer: Callable, tmp_path: Path, lines: Callable):
    trainer = make_trainer(epochs=2)
    trainer.validation.sets[0].loaders.pop("val")
    trainer.fit(tmp_path)
    found = [line for line in lines() if line.startswith("epoch")]
    assert len(found) == 2 and not any("chance" in line for line in found)


def test_progress_is_a_line_each_minute_without_a_terminal(
    make_trainer: Callable, tmp_path: Path, lines: Callable, monkeypatch: pytest.MonkeyPatch
):
    now = [0.0]
    monkeypatch.setattr(run_log, "time", SimpleNamespace(monotonic=lambda: now[0]))
    trainer = make_trainer(epochs=1, log_every=1)
    trainer.train_loader = DataLoader(trainer.train_loader.dataset, batch_size=2, collate_fn=trainer.clap.collate)
    train_step = trainer.train_step

    def take_half_a_minute(*arguments: object) -> None:
        train_step(*arguments)
        now[0] += run_log.PROGRESS_SECONDS / 2

    trainer.train_step = take_half_a_minute
    trainer.fit(tmp_path)
    found = [line for line in lines() if line.startswith("epoch")]
    assert [re.search(r"step (\d+)/", line)[1] for line in found] == ["2", "4", "6"]  # the last is that of the epoch
    assert re.match(r"epoch 1/1, step 2/6 \| loss \d\.\d{3}, [\d.]+ clips/s \| [\d.]+ s left$", found[0])


def test_end_has_a_table_with_chance_levels(make_trainer: Callable, tmp_path: Path, lines: Callable):
    metrics = make_trainer().train_and_eval(tmp_path / "seed=0")
    found = lines()
    found = found[found.index(next(line for line in found if line.startswith("metric "))) :]
    assert found[0].split() == ["metric", "value", "chance", "clips"]
    name = "test/synthetic/text_to_audio/recall_at_1"
    row = next(line for line in found if line.startswith(f"{name} ")).split()
    assert row[1] == f"{metrics[name]:.4f}" and row[3:] == ["6", "of", "6"]
    assert float(row[2]) == pytest.approx(1 / 6, abs=1e-4)
    assert re.fullmatch(r"checkpoints/best, of epoch \d, step \d of 4", find_row(found, "best"))
    assert "GFLOPs a clip" in find_row(found, "cost") and find_row(found, "MLflow") == "no tracker"
    assert f"'checkpoint=\"{tmp_path / 'seed=0'}\"'" in find_row(found, "next")


def test_curves_are_recorded_without_a_tracker_and_continue_after_a_resume(make_trainer: Callable, tmp_path: Path):
    make_trainer(epochs=1, log_every=1).fit(tmp_path)
    resumed = make_trainer(epochs=2, log_every=1)
    resumed.resume(tmp_path / "checkpoints" / "last")
    resumed.train_and_eval(tmp_path)
    history = read_history(tmp_path / HISTORY)
    losses = {entry["step"]: entry["metrics"].get("train/loss") for entry in history}
    assert list(losses) == [1, 2, 3, 4] and all(losses.values())
    assert "val/synthetic/text_to_audio/recall_at_1" in history[1]["metrics"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics.items() <= history[-1]["metrics"].items() | history[1]["metrics"].items()


def test_only_rank_0_logs(make_trainer: Callable, tmp_path: Path):
    def log_line(rank: int) -> list[str]:
        found, handler = [], logging.Handler()
        handler.emit = lambda record: found.append(record.getMessage())
        logger = logging.getLogger("clap.training.run_log")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        trainer = make_trainer()
        trainer.checkpoints = tmp_path / "checkpoints"
        trainer.meter.line.loss, trainer.meter.line.steps = trainer.clap.logit_scale.detach() * 0 + rank, 1
        trainer.run_log.log_header()
        trainer.run_log.log_epoch()
        return found

    first, second = run_ranks(log_line)
    assert len(first) == 2 and not second
    assert "loss 0.500" in first[1]  # the mean over the ranks


def test_end_states_the_share_of_clips_from_a_cache():
    cost = {"cache_hits": 750, "cache_misses": 250, "cache_bytes": 1_500_000_000}
    assert run_log.describe_cache(cost) == "75.0% of 1000 training clips read from it, 1.50 GB; 250 decoded"
