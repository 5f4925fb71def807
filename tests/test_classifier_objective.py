"""The loss of a classifier: over chunks and processes, of mixtures, and what its labels must be."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from labelled_tones import LabelledTones, list_tones, make_classifier_trainer, make_clip
from ranks import run_ranks
from test_state import interrupt_after
from torch import Tensor
from torch.testing import assert_close

from clap import SymmetricCrossEntropyLoss, load_model
from clap.config.augmentation_settings import AugmentationSettings
from clap.dataset.loader import Batch
from clap.evaluation.evaluation_set import EvaluationSet
from clap.process_group import rank
from clap.training.objective import open_objective
from clap.training.trainer import ClapTrainer


def compute_gradients(tiny_clap: Callable, rows: list[int], **options: object) -> dict[str, Tensor]:
    """The loss and the gradients of the first batch, of which this process has a part."""
    trainer = make_classifier_trainer(tiny_clap, **options)
    dataset = trainer.train_loader.dataset
    batch: Batch = trainer.clap.collate([dataset[0, index] for index in range(6)])
    trainer.objective.prepare()
    trainer.clap.eval()  # no masks of the spectrogram and no batch statistics
    loss, backward = trainer.objective.forward(batch.split(rows)[rank()], rows)
    backward()
    return {"loss": loss} | {name: p.grad for name, p in trainer.clap.named_parameters()}


def assert_equal_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("multi_label", [False, True])
def test_chunks_have_the_gradients_of_the_batch(tiny_clap: Callable, multi_label: bool):
    whole = compute_gradients(tiny_clap, [6], multi_label=multi_label)
    assert whole["head.weight"].abs().max() > 0 and whole["loss"] > 0
    assert_equal_gradients(compute_gradients(tiny_clap, [6], multi_label=multi_label, micro_batch_size=4), whole)


def test_processes_have_the_gradients_of_one(tiny_clap: Callable):
    whole = compute_gradients(tiny_clap, [6])
    cases = [([3, 3], {}), ([4, 2], {"micro_batch_size": 3}), ([6, 0], {})]
    found = run_ranks(lambda _: [compute_gradients(tiny_clap, rows, **options) for rows, options in cases])
    for own in zip(*found, strict=True):
        mean_loss = sum(gradients["loss"] for gradients in own) / 2
        assert_close(mean_loss, whole["loss"], rtol=1e-4, atol=1e-6)
        for gradients in own:
            assert_equal_gradients(gradients, whole | {"loss": gradients["loss"]})


@pytest.mark.parametrize(("multi_label", "value"), [(False, 0.5), (True, 1.0)])
def test_mixture_has_the_labels_of_both_clips(tiny_clap: Callable, multi_label: bool, value: float):
    corpus = LabelledTones(train=list_tones("train", 12, several=False))
    augmentation = AugmentationSettings(mix=1.0)
    trainer = make_classifier_trainer(tiny_clap, corpus, multi_label=multi_label, augmentation=augmentation)
    batch = next(iter(trainer.train_loader)).to("cpu")
    targets, names = trainer.objective.make_targets(batch), trainer.clap.class_names
    for row, own, other in zip(targets, batch.index.tolist(), batch.mixed_with.tolist(), strict=True):
        labels = {trainer.objective.clips[i].label for i in (own, other)}
        expected = [value * (name in labels) if len(labels) == 2 else float(name in labels) for name in names]
        assert row.tolist() == expected
    assert (batch.index != batch.mixed_with).any()


WRONG = {
    "no label": ([make_clip("bare")], "1 of 13 training clips of tones have no label, the first is bare"),
    "several": (
        [make_clip("chord", "low", "high")],
        "1 of 13 .* have several labels, the first is chord; set",
    ),
    "unknown": ([make_clip("new", "shrill")], "training clip new of tones has the label 'shrill', which is not one of"),
}


@pytest.mark.parametrize(("clips", "message"), WRONG.values(), ids=WRONG)
def test_unfit_training_clip_is_refused(tiny_clap: Callable, clips: list, message: str):
    with pytest.raises(ValueError, match=message):
        make_classifier_trainer(tiny_clap, LabelledTones(train=[*list_tones("train", 12, several=False), *clips]))


def test_class_without_training_clip_is_refused(tiny_clap: Callable):
    clips = [clip for clip in list_tones("train", 12, several=False) if clip.label != "low"]
    with pytest.raises(ValueError, match="no training clip of tones has the class 'low'"):
        make_classifier_trainer(tiny_clap, LabelledTones(train=clips))


def test_loss_of_another_kind_is_refused(tiny_clap: Callable, make_trainer: Callable):
    trainer = make_classifier_trainer(tiny_clap)
    options = {"autocast": trainer.objective.autocast, "scaler": trainer.scaler}
    given = (trainer.train_loader.dataset, trainer.settings)
    with pytest.raises(ValueError, match="loss=SymmetricCrossEntropyLoss does not train a classifier"):
        open_objective(trainer.clap, SymmetricCrossEntropyLoss(), *given, **options)
    with pytest.raises(ValueError, match="loss=CrossEntropyLoss is of a classifier, and the model is a Clap"):
        open_objective(tiny_clap(), trainer.criterion, *given, **options)


def test_run_learns_and_its_checkpoint_has_its_number(tiny_clap: Callable, tmp_path: Path):
    trainer = make_classifier_trainer(tiny_clap, epochs=12, lr=3e-3, eval_every=12)
    metrics = trainer.train_and_eval(tmp_path)
    assert metrics["test/tones/classification/accuracy"] > 0.6
    again = load_model(tmp_path)
    assert again.trained_on == trainer.clap.trained_on and again.trained_on["clips"] == 12
    found = EvaluationSet(trainer.loaders, trainer.validation.evaluators).evaluate(again, "test")["classification"]
    assert found.metrics["test/tones/classification/accuracy"] == metrics["test/tones/classification/accuracy"]
    assert found.protocol["trained_on"]["clips"] == 12
    assert (tmp_path / "evaluation" / "test-tones-classification" / "confusion.png").exists()


def weights_of(folder: Path) -> bytes:
    return (folder / "checkpoints" / "last" / "model.safetensors").read_bytes()


def test_interrupted_run_resumes_exactly(tiny_clap: Callable, tmp_path: Path):
    def make() -> ClapTrainer:
        return make_classifier_trainer(tiny_clap, freeze=("audio_encoder",), unfreeze_at=2)

    make().fit(tmp_path / "whole")
    stopped = make()
    stopped.train_step = interrupt_after(stopped, 3)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(tmp_path / "stopped")
    resumed = make()
    resumed.resume(tmp_path / "stopped" / "checkpoints" / "last")
    resumed.fit(tmp_path / "stopped")
    assert weights_of(tmp_path / "whole") == weights_of(tmp_path / "stopped")


def test_frozen_encoder_stays_and_its_cache_changes_nothing(tiny_clap: Callable, tmp_path: Path):
    plain = make_classifier_trainer(tiny_clap, freeze=("audio_encoder",))
    before = {name: value.clone() for name, value in plain.clap.audio_encoder.state_dict().items()}
    plain.fit(tmp_path / "plain")
    cache = {"cache_frozen": str(tmp_path / "frozen"), "frozen_windows": "middle"}
    cached = make_classifier_trainer(tiny_clap, freeze=("audio_encoder",), **cache)
    cached.fit(tmp_path / "cached")
    assert all(torch.equal(before[name], value) for name, value in plain.clap.audio_encoder.state_dict().items())
    assert_close(cached.clap.head.weight, plain.clap.head.weight, rtol=1e-5, atol=1e-6)
    assert not torch.equal(plain.clap.head.weight, make_classifier_trainer(tiny_clap).clap.head.weight)
