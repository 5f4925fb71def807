"""Losses against plain loops, their gradients, and stored values of the published code."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from clap.loss import BinaryCrossEntropyLoss, CrossEntropyLoss, SigmoidLoss, SymmetricCrossEntropyLoss


def make_embeddings(batch_size: int = 6, *, embed_dim: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    audio, text = torch.randn(2, batch_size, embed_dim, generator=generator, dtype=torch.float64)
    return F.normalize(audio, dim=1), F.normalize(text, dim=1)


def loop_cross_entropy(logits: list[list[float]], clip_ids: list[int]) -> float:
    """Audio to text only, one row at a time."""
    total = 0.0
    for row, own in zip(logits, clip_ids, strict=True):
        positives = [value for value, other in zip(row, clip_ids, strict=True) if other == own]
        log_sum = math.log(sum(math.exp(value) for value in row))
        total += sum(log_sum - value for value in positives) / len(positives)
    return total / len(logits)


def loop_sigmoid(logits: list[list[float]], clip_ids: list[int]) -> float:
    total = 0.0
    for row, own in zip(logits, clip_ids, strict=True):
        for value, other in zip(row, clip_ids, strict=True):
            total += math.log1p(math.exp(-value if own == other else value))
    return total / len(logits)


def single_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Custom-CLAP's definition: one column is the label of every row."""
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@pytest.mark.parametrize("clip_ids", [[0, 1, 2, 3, 4, 5], [7, 3, 7, 3, 7, 1]])
def test_symmetric_cross_entropy_equals_loop(clip_ids: list[int]) -> None:
    audio, text = make_embeddings()
    logits = 8 * audio @ text.T
    expected = (loop_cross_entropy(logits.tolist(), clip_ids) + loop_cross_entropy(logits.T.tolist(), clip_ids)) / 2
    loss = SymmetricCrossEntropyLoss()(audio, text, torch.tensor(8.0), torch.tensor(clip_ids))
    assert_close(loss.item(), expected)


@pytest.mark.parametrize("clip_ids", [[0, 1, 2, 3, 4, 5], [7, 3, 7, 3, 7, 1]])
def test_sigmoid_equals_loop(clip_ids: list[int]) -> None:
    audio, text = make_embeddings()
    logits = 8 * audio @ text.T - 3
    loss = SigmoidLoss(init_logit_bias=-3.0)(audio, text, torch.tensor(8.0), torch.tensor(clip_ids))
    assert_close(loss.item(), loop_sigmoid(logits.tolist(), clip_ids))


def test_sigmoid_learns_its_bias() -> None:
    criterion = SigmoidLoss()
    criterion(*make_embeddings(), torch.tensor(10.0), torch.arange(6)).backward()
    assert criterion.logit_bias.grad.item() < 0  # it starts too low


@pytest.mark.parametrize("criterion", [SymmetricCrossEntropyLoss(), SigmoidLoss()])
def test_gradients_reach_embeddings_and_scale(criterion: torch.nn.Module) -> None:
    inputs = [*make_embeddings(), torch.tensor(10.0, dtype=torch.float64)]
    for tensor in inputs:
        tensor.requires_grad_()
    criterion(*inputs, torch.tensor([0, 0, 1, 2, 3, 4])).backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in inputs)


def test_single_row_has_zero_loss() -> None:
    loss = SymmetricCrossEntropyLoss()(*make_embeddings(1), torch.tensor(10.0), torch.tensor([3]))
    assert loss.item() == 0


def test_order_of_the_batch_does_not_matter() -> None:
    audio, text = make_embeddings()
    clip_ids, order = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([5, 2, 0, 4, 1, 3])
    criterion, scale = SymmetricCrossEntropyLoss(), torch.tensor(10.0)
    assert_close(criterion(audio[order], text[order], scale, clip_ids[order]), criterion(audio, text, scale, clip_ids))


def test_duplicate_captions_are_not_negatives() -> None:
    audio, text = (x[[0, 0, 1]] for x in make_embeddings())
    criterion, scale = SymmetricCrossEntropyLoss(), torch.tensor(1000.0)
    as_positives = criterion(audio, audio, scale, torch.tensor([4, 4, 5]))
    assert_close(as_positives.item(), 2 / 3 * math.log(2))  # the minimum: two equal rows share their probability
    assert criterion(text, text, scale, torch.tensor([4, 5, 6])) >= as_positives


@pytest.mark.parametrize(
    ("audio_shape", "text_shape", "ids_shape"),
    [((4, 3), (5, 3), (4,)), ((4, 3), (4, 2), (4,)), ((4, 3), (4, 3), (5,)), ((4,), (4,), (4,))],
)
def test_wrong_shapes_are_named(audio_shape: tuple, text_shape: tuple, ids_shape: tuple) -> None:
    arguments = torch.zeros(audio_shape), torch.zeros(text_shape), torch.tensor(1.0), torch.zeros(ids_shape)
    with pytest.raises(ValueError, match="clip_ids"):
        SymmetricCrossEntropyLoss()(*arguments)


def test_golden_clip_loss(golden) -> None:
    _, tensors = golden("losses")
    scale = tensors["in/log_scale_a"][0].exp()
    loss = SymmetricCrossEntropyLoss()(tensors["in/audio"], tensors["in/text"], scale, torch.arange(12))
    assert_close(loss[None], tensors["out/clip/loss"], atol=1e-5, rtol=0)


def test_golden_clip_gradients(golden) -> None:
    _, tensors = golden("losses")
    audio, text, log_scale = (tensors[f"in/{key}"].requires_grad_() for key in ("audio", "text", "log_scale_a"))
    SymmetricCrossEntropyLoss()(audio, text, log_scale[0].exp(), torch.arange(12)).backward()
    assert_close(audio.grad, tensors["out/clip/grad_audio"], atol=1e-5, rtol=0)
    for tensor, name in ((audio, "audio"), (text, "text"), (log_scale, "log_scale_a")):
        assert_close(tensor.grad.norm()[None], tensors[f"out/clip/grad_norm_{name}"], atol=1e-5, rtol=0)


def test_golden_symmetric_cross_entropy(golden) -> None:
    _, tensors = golden("losses")
    similarity = tensors["in/similarity"].detach().requires_grad_()
    loss = SymmetricCrossEntropyLoss()(similarity, torch.eye(12), torch.tensor(1.0), torch.arange(12))
    loss.backward()
    assert_close(loss[None], tensors["out/symmetric_ce/loss"], atol=1e-5, rtol=0)
    assert_close(similarity.grad, tensors["out/symmetric_ce/grad"], atol=1e-5, rtol=0)


def test_golden_duplicates_take_one_label_each(golden) -> None:
    _, tensors = golden("losses")
    loss = single_label_loss(tensors["in/similarity"], tensors["in/duplicate_targets"])
    assert_close(loss[None], tensors["out/symmetric_ce_duplicate_targets/loss"], atol=1e-5, rtol=0)


def test_duplicates_equal_mean_over_choices_of_label(golden) -> None:
    _, tensors = golden("losses")
    similarity, clip_ids = tensors["in/similarity"], tensors["in/duplicate_targets"]
    single_label = []
    for pair in itertools.product((0, 1), (4, 5)):  # the rows of clips 0 and 4, which have two rows each
        labels = torch.arange(12)
        labels[0:2], labels[4:6] = pair
        single_label.append(single_label_loss(similarity, labels))
    loss = SymmetricCrossEntropyLoss()(similarity, torch.eye(12), torch.tensor(1.0), clip_ids)
    assert_close(loss, torch.stack(single_label).mean())


@pytest.mark.parametrize("loss", [SymmetricCrossEntropyLoss, SigmoidLoss])
@pytest.mark.parametrize("scale", [0.0, -1.0, 101.0, float("nan")])
def test_initial_logit_scale_outside_of_its_range_is_refused(loss, scale) -> None:
    with pytest.raises(ValueError, match="must be above 0 and at most 100; set loss.init_logit_scale"):
        loss(init_logit_scale=scale)


@pytest.mark.parametrize("make", [SymmetricCrossEntropyLoss, SigmoidLoss])
@pytest.mark.parametrize("rows", [(3, 3), (1, 5), (2, 3, 1)])
def test_local_losses_average_to_that_of_the_whole_batch(make: type, rows: tuple[int, ...]) -> None:
    clip_ids = torch.tensor([0, 1, 2, 0, 3, 1])  # the captions of a clip are on several processes
    gradients = []
    for gather in ("full", "local"):
        criterion = make(gather=gather).double()
        inputs = [*make_embeddings(), torch.tensor(8.0, dtype=torch.float64)]
        for tensor in inputs:
            tensor.requires_grad_()
        audio, text, scale = inputs
        if gather == "full":
            loss = criterion(*inputs, clip_ids)
        else:
            parts = zip(*(x.split(rows) for x in (audio, text, clip_ids)), strict=True)
            every = {"all_audio": audio, "all_text": text, "all_clip_ids": clip_ids}
            loss = sum(len(a) / 6 * criterion(a, t, scale, ids, **every) for a, t, ids in parts)
        loss.backward()
        gradients.append([loss.detach(), *(x.grad for x in (*inputs, *criterion.parameters()))])
    assert_close(*gradients)


def test_unknown_gather_is_refused() -> None:
    with pytest.raises(ValueError, match="gather='half' is not one of full, local; set loss.gather"):
        SigmoidLoss(gather="half")


def test_cross_entropy_of_one_class_is_that_of_its_index() -> None:
    logits, classes = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1, 0])
    targets = F.one_hot(classes, 3).float()
    assert_close(CrossEntropyLoss()(logits, targets), F.cross_entropy(logits, classes))
    smoothed = F.cross_entropy(logits, classes, label_smoothing=0.1)
    assert_close(CrossEntropyLoss(label_smoothing=0.1)(logits, targets), smoothed)
    with pytest.raises(ValueError, match="loss.label_smoothing=1.0 must be at least 0 and below 1"):
        CrossEntropyLoss(label_smoothing=1.0)


def test_binary_cross_entropy_averages_clips_and_classes() -> None:
    logits, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    expected = -(torch.sigmoid(logits[0, 0]).log() + torch.sigmoid(-logits[0, 1]).log()) / 2
    assert_close(BinaryCrossEntropyLoss()(logits, targets), expected)
