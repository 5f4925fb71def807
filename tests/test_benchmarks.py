"""The benchmarks of training and retrieval, with tiny models and galleries: that they run, and what they compute."""

import sys
from pathlib import Path

import pytest
import torch

from clap.config.compose import compose_config
from experiments.benchmarks import retrieval, scaling, soak, steps, training

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "GEMM_SECONDS", 0.01)
    monkeypatch.setattr(scaling, "REPEATS", 1)


def read_rows(text: str) -> list[list[str]]:
    """Cells of each row of the Markdown tables in a text, without headings."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0][0].isdigit()]


@pytest.mark.slow
def test_step_is_compared_with_transformers_and_with_each_setting(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["training.py", "--small", "--repeats", "1", "--batch", "2", "--workers", "1"])
    training.main()
    rows = read_rows(capsys.readouterr().out)
    compared = {row[2]: row for row in rows if row[1] == "fp32"}
    assert list(compared)[:3] == ["end to end", "end to end, 77 tokens", "model alone"]
    for row in list(compared.values())[:3]:
        assert float(row[5]) == pytest.approx(float(row[4]) / float(row[3]), rel=0.1)
    switches = {row[1]: row for row in rows if row[1] != "fp32"}
    assert float(switches["fused optimizer"][2]) > 0 and float(switches["trainer.micro_batch_size=1"][3]) > 0
    assert switches["trainer.tf32=true"][2] == steps.MISSING


@pytest.mark.slow
def test_models_with_other_weights_are_refused():
    models = steps.build_models(compose_config(list(steps.SMALL)), device=CPU)
    models.check()
    torch.nn.init.normal_(models.reference.text_projection.linear1.weight)
    with pytest.raises(AssertionError):
        models.check()


@pytest.mark.slow
def test_longer_clips_and_batches_are_timed():
    sizes = scaling.SMALL_SIZES
    assert list(scaling.time_batches(sizes, CPU)) == [2, 4]
    assert list(scaling.time_durations(sizes, CPU)) == [3.0, 6.0]


def test_loss_that_does_not_fit_is_computed_from_the_largest_that_does(monkeypatch):
    monkeypatch.setattr(scaling, "free_memory", lambda device: 40e6)
    monkeypatch.setattr(scaling, "measure_peak", lambda call, device: 10e6)
    costs = scaling.simulate_losses((128, 256, 512), local=False, device=CPU)
    assert [cost.memory for cost in costs.values()] == [10e6, 40e6, 160e6]
    assert [cost.seconds is None for cost in costs.values()] == [False, True, True]


def test_figure_is_drawn(tmp_path: Path):
    steps_found = {name: {1.0: 2.0, 2.0: 3.0} for name in ("batch size", "seconds of a clip", "processes")}
    losses = {"full": {128: scaling.LossCost(0.1, 1e6), 256: scaling.LossCost(None, 4e6)}, "local": {}}
    scaling.draw(steps_found, losses, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 1000


@pytest.mark.slow
def test_processes_share_a_batch():
    assert scaling.time_processes(2, scaling.SMALL_SIZES, CPU) > 0


def test_soak_distinguishes_leak_from_noise_and_linear_from_faster_growth():
    count = range(40)
    noisy, leak = [100.0 + step % 3 for step in count], [100.0 + step for step in count]
    assert soak.judge("memory, MB", count, noisy).startswith("flat, ")
    assert soak.judge("memory, MB", count, leak) == "GROWS, +1000.00 per 1,000 steps"
    assert soak.judge("open files", count, leak[::-1]).startswith("falls, -1000")
    assert soak.judge("MLflow store, kB", count, leak).startswith("linear, ")
    assert soak.judge("MLflow store, kB", count, [float(step**2) for step in count]).startswith("NOT LINEAR, ")


def test_part_of_the_blocks_is_extrapolated(tmp_path: Path):
    sizes = retrieval.Sizes(clips=40, dim=8, growing=(), largest=1200, part=2, repeats=1)
    row = retrieval.compare_with_sorting(tmp_path, 40, sizes)
    assert row[:2] == ["40", "200"] and float(row[-1]) > 0
    clips, captions, blocks, *_, minutes = retrieval.rank_part(tmp_path, sizes)
    assert (clips, captions, blocks) == ("1,200", "6,000", "2 of 36") and minutes.endswith(" (extrapolated)")
    assert retrieval.ranks.score_blocks is retrieval.score_blocks
