"""Distillation: correspondences that teachers estimate, as targets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CAPTIONS
from ranks import run_ranks
from torch import Tensor, nn

from clap.checkpoint import read_weights
from clap.dataset.item import Item
from clap.dataset.loader import Batch, Collate
from clap.loss import SymmetricCrossEntropyLoss
from clap.model import Clap
from clap.training.distillation import DistillationLoss, embed_batch
from clap.training.objective import Objective
from clap.training.precision import make_autocast
from clap.training.trainer_settings import TrainerSettings


@pytest.fixture(scope="module")
def teachers(tiny_clap: Callable, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two checkpoints: one of another width, tokenizer and sample rate than the student's."""
    folder = tmp_path_factory.mktemp("teachers")
    for name, overrides in {"same": [], "other": ["embed_dim=12", "audio_encoder.frontend.sample_rate=24000"]}.items():
        clap = tiny_clap(*overrides)
        clap.logit_scale.data.fill_(1.0 if name == "same" else 2.0)
        if name == "other":
            clap.tokenizer.train(["rain and wind", *CAPTIONS[::-1]])
            nn.init.normal_(clap.text_projection.linear1.weight)
        (folder / name).mkdir()
        clap.save(folder / name)
    return [str(folder / name) for name in ("same", "other")]


@pytest.fixture
def batch(tiny_clap: Callable) -> Batch:
    """Six clips of noise, of different lengths."""
    random = np.random.default_rng(0)
    captions = [*CAPTIONS, "rain", "a dog barks twice", "wind blows"][:6]
    captions += ["a bell"] * (6 - len(captions))
    items = [
        Item(i, random.normal(0, 0.1, 8000 + 1000 * i).astype(np.float32), caption, i)
        for i, caption in enumerate(captions)
    ]
    return Collate(tiny_clap().tokenizer)(items)


def compute(clap: Clap, criterion: nn.Module, batch: Batch, rows: list[int], **options) -> tuple[Tensor, dict]:
    """Loss and gradients of a batch; batch norms and dropout are off."""
    autocast, scaler = make_autocast("fp32", clap.device)
    objective = Objective(clap, criterion, TrainerSettings(**options), autocast=autocast, scaler=scaler)
    objective.prepare()
    clap.eval()
    loss, compute_gradients = objective.forward(batch, rows)
    compute_gradients()
    return loss, {name: p.grad.clone() for name, p in clap.named_parameters() if p.grad is not None}


def test_targets_are_the_mean_of_the_softmax_of_each_teacher(teachers: list[str], batch: Batch, tiny_clap: Callable):
    criterion, rate = DistillationLoss(teachers=teachers, weight=0.5), tiny_clap().sample_rate
    criterion.estimate(batch, [6], sample_rate=rate)
    similarities = []
    for teacher in criterion.teachers:
        audio, text = embed_batch(teacher, batch, sample_rate=rate, size=None)
        torch.testing.assert_close(text, teacher.get_text_embeddings(batch.captions))
        similarities.append(teacher.logit_scale.exp() * audio @ text.T)
    for row in range(6):
        for target, axis in zip(criterion.targets, ("audio", "text"), strict=True):
            logits = [s[row] if axis == "audio" else s[:, row] for s in similarities]
            torch.testing.assert_close(target[row], sum(each.softmax(0) for each in logits) / 2)
    audio, text = (nn.functional.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
    scale, ids = torch.tensor(5.0), torch.arange(6)
    logits, expected = scale * audio @ text.T, SymmetricCrossEntropyLoss()(audio, text, scale, ids)
    for row in range(6):
        expected -= 0.5 * (criterion.targets[0][row] * logits[row].log_softmax(0)).sum() / 12
        expected -= 0.5 * (criterion.targets[1][row] * logits[:, row].log_softmax(0)).sum() / 12
    torch.testing.assert_close(criterion(audio, text, scale, ids), expected)


def test_teacher_with_another_rate_embeds_the_same_clips(teachers: list[str], batch: Batch, tiny_clap: Callable):
    other, rate = DistillationLoss(teachers=teachers).teachers[1], tiny_clap().sample_rate
    assert other.sample_rate != rate
    audio, _ = embed_batch(other, batch, sample_rate=rate, size=None)
    clips = [row[:length].numpy() for row, length in zip(batch.waveform, batch.lengths, strict=True)]
    torch.testing.assert_close(audio, other.get_audio_embeddings(clips, rate), rtol=0, atol=0.02)
    chunks, _ = embed_batch(other, batch, sample_rate=rate, size=4)
    torch.testing.assert_close(chunks, audio)


def test_teachers_are_neither_trained_nor_saved(teachers: list[str], batch: Batch, tiny_clap: Callable):
    criterion = DistillationLoss(teachers=teachers).train()
    assert not list(criterion.parameters()) and not criterion.state_dict()
    clap = tiny_clap()
    compute(clap, criterion, batch, [6])
    for teacher, source in zip(criterion.teachers, teachers, strict=True):
        assert not teacher.training
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
        assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in read_weights(Path(source)).items())


def test_cached_gradients_are_those_of_the_whole_batch(teachers: list[str], batch: Batch, tiny_clap: Callable):
    found = [
        compute(tiny_clap(), DistillationLoss(teachers=teachers), batch, [6], micro_batch_size=n) for n in (None, 4)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)


def test_processes_have_the_loss_and_gradients_of_one(teachers: list[str], batch: Batch, tiny_clap: Callable):
    def part(rank: int) -> tuple[float, dict]:
        own = batch.split([4, 2])[rank]
        own.captions = batch.captions[:4] if rank == 0 else batch.captions[4:]
        loss, gradients = compute(tiny_clap(), DistillationLoss(teachers=teachers), own, [4, 2])
        return loss.item(), {name: value.numpy() for name, value in gradients.items()}

    loss, gradients = compute(tiny_clap(), DistillationLoss(teachers=teachers), batch, [6])
    for own_loss, own in run_ranks(part):
        assert own_loss == pytest.approx(loss.item(), rel=1e-5)
        for name, value in gradients.items():
            torch.testing.assert_close(torch.from_numpy(own[name]), value, rtol=1e-3, atol=1e-5)


def test_student_learns_the_correspondences(teachers: list[str], batch: Batch, tiny_clap: Callable):
    clap, criterion = tiny_clap(), DistillationLoss(teachers=teachers[:1], weight=1e3)
    clap.text_projection.linear1.reset_parameters()
    optimizer, losses = torch.optim.AdamW(clap.parameters(), lr=1e-3), []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(compute(clap, criterion, batch, [6])[0].item())
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"teachers": []}, "loss.teachers=.. has no teacher"), ({"weight": -1.0}, "loss.weight=-1.0")],
)
def test_wrong_option_is_refused(teachers: list[str], options: dict, problem: str):
    with pytest.raises(ValueError, match=problem):
        DistillationLoss(**{"teachers": teachers[:1], **options})


def test_loss_without_the_batch_of_its_targets_is_an_error(teachers: list[str]):
    x = torch.eye(2)
    with pytest.raises(RuntimeError, match="estimate must be called"):
        DistillationLoss(teachers=teachers[:1])(x, x, torch.tensor(1.0), torch.arange(2))
