"""Gradient caching with random numbers: as encoding the same chunks once, with all of their graphs in memory."""

from collections.abc import Callable

import pytest
import torch
from test_parallel import ROWS, make_batch

from clap.config.augmentation_settings import AugmentationSettings
from clap.loss import SigmoidLoss
from clap.model import Clap
from clap.training.objective import Objective
from clap.training.precision import make_autocast
from clap.training.trainer_settings import TrainerSettings

RANDOM = (
    "audio_encoder.drop_path=0.3",
    "text_encoder.model.resid_pdrop=0.3",
)  # and random windows, frames and SpecAugment
SIZE = 6


def make_objective(clap: torch.nn.Module, criterion: torch.nn.Module, **options: object) -> Objective:
    autocast, scaler = make_autocast("fp32", clap.device)
    return Objective(clap, criterion, TrainerSettings(**options), autocast=autocast, scaler=scaler)


@pytest.mark.parametrize("norm", ["micro", "frozen"])
def test_cached_gradients_use_the_random_numbers_of_the_first_pass(tiny_config: Callable, norm: str):
    batch, found = make_batch(), []
    for cached in (True, False):
        torch.manual_seed(0)
        clap, criterion = Clap.from_config(tiny_config(*RANDOM)), SigmoidLoss()
        clap.augment(AugmentationSettings(frame_out=0.2)).train()
        if cached:
            objective = make_objective(clap, criterion, micro_batch_size=SIZE, micro_batch_norm=norm)
            loss, compute_gradients = objective.forward(batch, [ROWS])
            compute_gradients()
        else:
            objective = make_objective(clap, criterion)
            if norm == "frozen":
                for module in clap.modules():
                    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                        module.eval()
            parts = [objective.encode(clap, chunk) for chunk in batch.split([6, 6, 4])]
            audio, text = (torch.cat([part[i] for part in parts]) for i in (0, 1))
            loss = criterion(audio, text, parts[0][2], batch.clip_ids)
            loss.backward()
        gradients = {name: p.grad for module in (clap, criterion) for name, p in module.named_parameters()}
        statistics = {name: value for name, value in clap.state_dict().items() if "running" in name}
        found.append({"loss": loss.detach(), "next": torch.rand(3)} | gradients | statistics)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_running_statistics_change_with_micro_and_not_with_frozen(tiny_clap: Callable):
    for norm, changes in (("micro", True), ("frozen", False)):
        clap = tiny_clap().train()
        before = clap.audio_encoder.bn0.running_mean.clone()
        objective = make_objective(clap, SigmoidLoss(), micro_batch_size=SIZE, micro_batch_norm=norm)
        objective.forward(make_batch(), [ROWS])[1]()
        assert torch.equal(before, clap.audio_encoder.bn0.running_mean) is not changes
        assert clap.audio_encoder.bn0.num_batches_tracked == (3 if changes else 0)
        assert clap.audio_encoder.bn0.training
