"""Several processes compute the gradients of one: gathered embeddings, averaged gradients, sharded weights."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn

from clap.dataset.loader import Batch
from clap.loss import SigmoidLoss, SymmetricCrossEntropyLoss
from clap.model import Clap
from clap.process_group import rank, world_size
from clap.training.objective import Objective
from clap.training.parallel import GlobalStep, average_statistics
from clap.training.precision import make_autocast
from clap.training.sharding import distribute_model, gather_full
from clap.training.trainer_settings import TrainerSettings

ROWS = 16
LOSSES = {"symmetric_cross_entropy": SymmetricCrossEntropyLoss, "sigmoid": SigmoidLoss}
CLIP_IDS = [0, 1, 2, 3, 4, 5, 6, 7, 0, 8, 2, 9, 10, 11, 12, 0]  # captions of clips 0 and 2 are on both ranks


def make_batch(num_long: int = 0) -> Batch:
    """Noise; the last `num_long` clips are longer than the window of one second."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.full((ROWS,), 30000)
    lengths[ROWS - num_long :] = 60000
    waveform = 0.1 * torch.randn(ROWS, int(lengths.max()), generator=generator)
    waveform[torch.arange(waveform.shape[1]) >= lengths[:, None]] = 0
    token_ids = torch.randint(1, 290, (ROWS, 5), generator=generator)
    mask, is_cached = torch.ones(ROWS, 5, dtype=torch.bool), torch.zeros(ROWS, dtype=torch.bool)
    scale, index = torch.ones(ROWS), torch.arange(ROWS)
    return Batch(waveform, scale, lengths, token_ids, mask, torch.tensor(CLIP_IDS), index, is_cached)


def compute_gradients(config: dict, batch: Batch, rows: list[int], loss: str, gather: str, **options) -> dict:
    """Loss and gradients of one process's part of a batch, after averaging over all."""
    torch.manual_seed(0)
    clap, criterion = Clap.from_config(config), LOSSES[loss](gather=gather)
    settings = TrainerSettings(**options)
    distribute_model(clap, settings)
    autocast, scaler = make_autocast("fp32", clap.device)
    objective = Objective(clap, criterion, settings, autocast=autocast, scaler=scaler)
    objective.prepare()
    clap.train()
    clap.audio_encoder.fusion.eval()  # no random windows
    for module in clap.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    own = batch.split(rows)[rank()]
    step = GlobalStep.agree(own, stop=False)
    loss_value, backward = objective.forward(own, step.rows)
    backward()
    named = [*clap.named_parameters(), *criterion.named_parameters(prefix="loss")]
    gradients = gather_full({name: p.grad for name, p in named})
    return {"loss": loss_value if gather == "full" else None} | gradients


@pytest.fixture(scope="module")
def config(tiny_config: Callable) -> Callable:
    return lambda *overrides: tiny_config("audio_encoder.drop_path=0.0", "audio_encoder.spec_augment=null", *overrides)


def assert_equal_gradients(found: dict, expected: dict) -> None:
    """Equal to 1e-5 of the largest gradient; parameters without gradient count as zero."""
    largest = max(gradient.abs().max().item() for name, gradient in expected.items() if gradient is not None)
    for name, gradient in expected.items():
        if name == "loss":
            assert found[name] is None or abs(found[name] - gradient) < 1e-5
            continue
        zeros = (
            torch.zeros_like(gradient if gradient is not None else found[name]) if found[name] is not gradient else None
        )
        pair = [value if value is not None else zeros for value in (found[name], gradient)]
        if pair[0] is not None:
            assert (pair[0] - pair[1]).abs().max().item() <= 1e-5 * largest, name


CASES = {
    "full": {"rows": [8, 8], "gather": "full"},
    "local": {"rows": [8, 8], "gather": "local"},
    "full, unequal rows": {"rows": [5, 11], "gather": "full"},
    "local, unequal rows": {"rows": [5, 11], "gather": "local"},
    "full, a rank without rows": {"rows": [16, 0], "gather": "full"},
    "local, a rank without rows": {"rows": [0, 16], "gather": "local"},
    "full, cached": {"rows": [8, 8], "gather": "full", "micro_batch_size": 3},
    "local, cached, unequal chunks": {"rows": [3, 13], "gather": "local", "micro_batch_size": 4},
    "sharded": {"rows": [8, 8], "gather": "full", "parallel": "fsdp"},
    "sharded, cached, unequal chunks": {"rows": [4, 12], "gather": "full", "parallel": "fsdp", "micro_batch_size": 5},
}


def compute_cases(config: dict, batch: Batch, loss: str, cases: dict[str, dict]) -> dict[str, dict]:
    """The gradients of every case in one process group, whose start takes a second."""
    return {name: compute_gradients(config, batch, loss=loss, **options) for name, options in cases.items()}


@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_have_the_gradients_of_one(config: Callable, loss: str):
    batch = make_batch()
    expected = compute_gradients(config(), batch, [ROWS], loss, "full")
    for found in run_ranks(lambda _: compute_cases(config(), batch, loss, CASES)):
        for gradients in found.values():
            assert_equal_gradients(gradients, expected)


def test_rank_without_long_clips_has_the_gradients_of_one_process(config: Callable):
    batch, cases = make_batch(num_long=3), {name: CASES[name] for name in ("full", "local", "full, cached")}
    fused = config("fusion=aff")
    seeded = replace(batch)
    expected = compute_gradients(fused, seeded, [ROWS], "sigmoid", "full")
    assert any("merge" in name and gradient is not None for name, gradient in expected.items())
    for found in run_ranks(lambda _: compute_cases(fused, batch, "sigmoid", cases)):
        for gradients in found.values():
            assert_equal_gradients(gradients, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_cached_gradients_are_those_of_the_whole_batch(config: Callable, loss: str):
    batch = make_batch()
    expected = compute_gradients(config(), batch, [ROWS], loss, "full")
    assert_equal_gradients(compute_gradients(config(), batch, [ROWS], loss, "full", micro_batch_size=2), expected)


def average_own_statistics(rank: int) -> list[Tensor]:
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(8, 3) + 10 * rank)
    before = norm.running_mean.clone()
    average_statistics(norm)
    return [before, norm.running_mean]


def test_running_statistics_are_averaged_over_processes():
    (first, mean), (second, other) = run_ranks(average_own_statistics)
    torch.testing.assert_close(mean, (first + second) / 2)
    assert torch.equal(mean, other)


def test_one_process_needs_no_group_for_its_gradients():
    assert world_size() == 1


def test_sharding_needs_several_processes(tiny_clap: Callable):
    with pytest.raises(ValueError, match="trainer.parallel=fsdp shards the text encoder over several processes"):
        distribute_model(tiny_clap(), TrainerSettings(parallel="fsdp"))


def test_batch_norms_that_a_rank_may_not_run_are_not_synchronised(tiny_config: Callable):
    clap = Clap.from_config(tiny_config("fusion=aff"))
    for error in run_ranks(lambda _: distribute_model(clap, TrainerSettings(sync_batchnorm=True))):
        assert "batch norms that run only for clips longer than the window" in str(error)


def test_local_loss_without_the_rows_of_all_is_refused_by_name(tiny_clap: Callable):
    class Margin(nn.Module):
        gather = "local"

        def forward(self, audio: Tensor, text: Tensor, logit_scale: Tensor, clip_ids: Tensor) -> Tensor:
            return (audio - text).square().sum()

    settings, (autocast, scaler) = TrainerSettings(), make_autocast("fp32", torch.device("cpu"))
    with pytest.raises(ValueError, match=r"loss.gather=local, but Margin.forward has no keywords all_audio"):
        Objective(tiny_clap(), Margin(), settings, autocast=autocast, scaler=scaler)
