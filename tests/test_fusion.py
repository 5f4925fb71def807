"""Views of longer clips are cut as published, independently of the batch; merges equal the published modules."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from clap.audio import LogMelSpectrogram
from clap.fusion import (
    AFF,
    DAF,
    IAFF,
    BatchNorm,
    GlobalAndLocal,
    MeanOfWindows,
    OneWindow,
    Views,
    local_start_ranges,
    shrink,
    window_starts,
)

RATE = 16000
LENGTHS = [3000, 16000, 16100, 24000, 39000]  # samples; the window has 16000, and 16100 is less than one hop more
POLICIES = {"none": OneWindow, "mean": MeanOfWindows, "global and local": GlobalAndLocal}
MERGES = {"daf": DAF, "aff_1d": AFF, "aff_2d": AFF, "iaff_1d": IAFF, "iaff_2d": IAFF}
Golden = Callable[[str], tuple[dict, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def frontend() -> LogMelSpectrogram:
    return LogMelSpectrogram(RATE, window=1.0, n_fft=512, hop_length=160, n_mels=32, f_max=8000.0)


def make_batch(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Waveform (batch, samples) of noise, zero beyond its lengths (batch,)."""
    generator = torch.Generator().manual_seed(seed)
    waveforms = [0.1 * torch.randn(length, generator=generator) for length in lengths]
    return nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor(lengths)


def of_row(views: Views, row: int) -> Tensor:
    return views.log_mel[views.row == row]


# Merges


def load_merge(values: dict[str, Tensor], name: str, **arguments: bool) -> nn.Module:
    """A stored merge; convolutions in 1-D become those over images of width 1."""
    merge = MERGES[name](8, **arguments)
    prefix = f"ckpt/{name}/"
    stored = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    merge.load_state_dict({key: value[..., None] if value.ndim == 3 else value for key, value in stored.items()})
    return merge.eval()


@pytest.mark.parametrize("rows", ["all", "single"])
@pytest.mark.parametrize("name", MERGES)
def test_merge_equals_published(golden: Golden, name: str, rows: str) -> None:
    values = golden("fusion_ops")[1]
    merge = load_merge(values, name, **({"shared_global_att": True} if "iaff" in name else {}))
    expected = values[f"out/{name}/{rows}"]
    x, residual = (values[f"in/{name}/{part}"][: len(expected)] for part in ("x", "residual"))
    if x.ndim == 3:  # (n, channels, time)
        x, residual, expected = x[..., None], residual[..., None], expected[..., None]
    assert_close(merge(x, residual), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["iaff_1d", "iaff_2d"])
def test_iaff_equals_the_paper(golden: Golden, name: str) -> None:
    values = golden("fusion_ops")[1]
    x, residual = values[f"in/{name}/x"], values[f"in/{name}/residual"]
    image = (*x.shape[:2], -1, x.shape[3] if x.ndim == 4 else 1)
    merged = load_merge(values, name)(x.view(image), residual.view(image)).view_as(x)
    assert_close(merged, values[f"out/{name}/as_in_paper_with_global_att2"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["aff_1d", "iaff_1d"])
def test_merge_in_one_dimension_is_that_of_height_1_as_of_width_1(golden: Golden, name: str) -> None:
    values = golden("fusion_ops")[1]
    merge, x, residual = load_merge(values, name), values[f"in/{name}/x"], values[f"in/{name}/residual"]
    assert_close(merge(x[:, :, None], residual[:, :, None])[:, :, 0], merge(x[..., None], residual[..., None])[..., 0])


@pytest.mark.parametrize("merge", [AFF(8), IAFF(8)], ids=["aff", "iaff"])
def test_single_row_trains(merge: nn.Module) -> None:
    x, residual = torch.randn(2, 1, 8, 5, 7, requires_grad=True)
    merge.train()(x, residual).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in merge.parameters() if parameter.grad is not None)


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


@pytest.mark.parametrize("cls", [AFF, IAFF])
def test_single_rows_in_training_leave_evaluation_as_it_is(cls: type[nn.Module]) -> None:
    merge = cls(8)
    for _ in range(20):  # the statistics of several rows
        merge.train()(torch.randn(6, 8, 5, 7), torch.randn(6, 8, 5, 7))
    before = running_statistics(merge)
    for _ in range(200):
        merge(torch.randn(1, 8, 5, 7), torch.randn(1, 8, 5, 7))
    after = running_statistics(merge)
    pooled = [name for name in before if name.startswith("global_att")]
    assert pooled and all(torch.equal(before[name], after[name]) for name in pooled)


@pytest.mark.parametrize("cls", [AFF, IAFF])
def test_single_row_is_attended_in_training_as_in_evaluation(cls: type[nn.Module]) -> None:
    torch.manual_seed(0)
    merge, x = cls(8, reduction=1), torch.randn(1, 8, 5, 7)
    pooled = merge.train().global_att(x)
    assert not torch.allclose(pooled, merge.global_att(x + 1.0))
    assert_close(pooled, merge.eval().global_att(x))


def test_batch_norm_of_several_values_is_that_of_torch() -> None:
    own, reference = BatchNorm(4), nn.BatchNorm2d(4)
    for shape in [(2, 4, 1, 1), (1, 4, 1, 2), (3, 4, 5, 6)]:
        x = torch.randn(shape)
        assert_close(own(x), reference(x), rtol=0, atol=0)
    assert all(map(torch.equal, own.state_dict().values(), reference.state_dict().values()))


# Views


def test_local_start_ranges_equal_published(golden: Golden) -> None:
    config, values = golden("frontends")
    for total, *expected in values["out/fusion_ranges"].int().tolist():
        ranges = local_start_ranges(total, config["chunk_frames"])
        assert [int(value) for pair in ranges for value in pair] == expected, total


def test_global_view_equals_published(golden: Golden) -> None:
    values = golden("frontends")[1]
    assert_close(shrink(values["in/shrink_source_mel"], 1001), values["out/shrink_no_antialias"])


def test_global_view_is_not_antialiased(golden: Golden) -> None:
    values = golden("frontends")[1]
    assert (shrink(values["in/shrink_source_mel"], 1001) - values["out/shrink_antialias"]).abs().max() > 0.1


@pytest.mark.parametrize("length", [1, 999, 1000, 1001, 1999, 2000, 2001, 5432])
def test_window_starts_cover_the_clip(length: int) -> None:
    starts = window_starts(length, 1000)
    covered = {sample for start in starts for sample in range(start, start + 1000)}
    assert covered >= set(range(length)) and max(covered) < max(length, 1000)


def test_window_starts_are_the_fewest_and_evenly_spaced() -> None:
    assert window_starts(2500, 1000) == [0, 750, 1500]


def test_one_window_is_the_middle_in_evaluation(frontend: LogMelSpectrogram) -> None:
    waveform, lengths = make_batch(LENGTHS)
    views = OneWindow().eval()(waveform, lengths, frontend)
    assert_close(of_row(views, 4)[0, 0], frontend(waveform[4:, 11500:27500])[0])


def test_one_window_stays_inside_each_clip_in_training(frontend: LogMelSpectrogram) -> None:
    waveform, lengths = make_batch(LENGTHS)
    waveform = torch.where(torch.arange(waveform.shape[1]) < lengths[:, None], 1.0, 0.0)
    for _ in range(20):
        cut = OneWindow().cut(waveform, lengths, frontend.num_samples)
        assert torch.equal(cut.sum(dim=1).long(), lengths.clamp(max=frontend.num_samples))


def test_random_start_near_one_stays_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda n: torch.full((n,), 1 - 2**-24))
    waveform = torch.arange(10.0)[None]
    assert OneWindow().cut(waveform, torch.tensor([10]), 8).tolist() == [[2, 3, 4, 5, 6, 7, 8, 9]]


def test_mean_takes_every_window(frontend: LogMelSpectrogram) -> None:
    waveform, lengths = make_batch(LENGTHS)
    views = MeanOfWindows()(waveform, lengths, frontend)
    starts = window_starts(39000, 16000)
    expected = torch.cat([frontend(waveform[4:, start : start + 16000]) for start in starts])
    assert_close(of_row(views, 4)[:, 0], expected)


def test_global_and_local_views_are_those_of_the_full_log_mel(frontend: LogMelSpectrogram) -> None:
    waveform, lengths = make_batch(LENGTHS)
    full, num_frames = frontend(waveform[4:])[0], frontend.num_frames
    middle = (len(full) - num_frames) // 2
    expected = [full[:num_frames], full[middle : middle + num_frames], full[-num_frames:]]
    size = (num_frames, frontend.n_mels)
    smaller = F.interpolate(full[None, None], size, mode="bilinear", align_corners=False, antialias=False)[0, 0]
    views = of_row(GlobalAndLocal().eval()(waveform, lengths, frontend), 4)[0]
    assert_close(views, torch.stack([smaller, *expected]))


def test_longer_clips_share_a_spectrum(frontend: LogMelSpectrogram, monkeypatch: pytest.MonkeyPatch) -> None:
    stft, shapes = torch.stft, []
    monkeypatch.setattr(torch, "stft", lambda x, *args, **options: shapes.append(len(x)) or stft(x, *args, **options))
    GlobalAndLocal()(*make_batch(LENGTHS), frontend)
    assert shapes == [2, 3]  # the clips up to the window, then the others


def test_chosen_starts_are_used(frontend: LogMelSpectrogram, monkeypatch: pytest.MonkeyPatch) -> None:
    waveform, lengths = make_batch([39000])
    monkeypatch.setattr(GlobalAndLocal, "choose_starts", lambda self, total, num_frames: [3, 50, 120])
    views = GlobalAndLocal()(waveform, lengths, frontend)
    full = frontend(waveform)[0]
    assert_close(views.log_mel[0, 1:], torch.stack([full[start : start + 101] for start in (3, 50, 120)]))


def test_chosen_start_of_one_window_is_used(frontend: LogMelSpectrogram, monkeypatch: pytest.MonkeyPatch) -> None:
    waveform, lengths = make_batch([39000, 3000])
    monkeypatch.setattr(OneWindow, "choose_starts", lambda self, spare: spare.clamp(max=123))
    views = OneWindow()(waveform, lengths, frontend)
    assert_close(views.log_mel[:1, 0], frontend(waveform[:1, 123 : 123 + frontend.num_samples]))
    assert_close(views.log_mel[1:, 0], frontend.full_window(waveform[1:, :3000], lengths[1:]))


def test_clip_longer_by_less_than_a_hop_is_not_longer(frontend: LogMelSpectrogram) -> None:
    views = GlobalAndLocal()(*make_batch(LENGTHS), frontend)
    assert views.is_longer.tolist() == [False, False, False, True, True]


def test_clip_longer_by_less_than_a_hop_keeps_its_end(frontend: LogMelSpectrogram) -> None:
    waveform, lengths = make_batch(LENGTHS)
    views = of_row(GlobalAndLocal()(waveform, lengths, frontend), 2)[0]
    assert_close(views, frontend(waveform[2:3, :16100]).expand(4, -1, -1))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_short_clip_is_the_filled_window_in_every_view(
    frontend: LogMelSpectrogram, policy: type, training: bool
) -> None:
    waveform, lengths = make_batch(LENGTHS)
    views = of_row(policy().train(training)(waveform, lengths, frontend), 0)
    expected = frontend.full_window(waveform[:1, :16000], lengths[:1])
    assert_close(views, expected[None].expand_as(views))


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_views_are_identical_on_every_call_in_evaluation(frontend: LogMelSpectrogram, policy: type) -> None:
    cut, batch = policy().eval(), make_batch(LENGTHS)
    assert_close(cut(*batch, frontend).log_mel, cut(*batch, frontend).log_mel, rtol=0, atol=0)


@pytest.mark.parametrize("policy", [OneWindow, GlobalAndLocal])
def test_random_views_follow_the_seed(frontend: LogMelSpectrogram, policy: type) -> None:
    cut, batch, drawn = policy().train(), make_batch(LENGTHS), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(of_row(cut(*batch, frontend), 4))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("row", range(len(LENGTHS)))
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_views_do_not_depend_on_the_batch(frontend: LogMelSpectrogram, policy: type, row: int) -> None:
    cut, (waveform, lengths) = policy().eval(), make_batch(LENGTHS)
    alone = cut(waveform[row : row + 1, : lengths[row]], lengths[row : row + 1], frontend)
    assert_close(of_row(cut(waveform, lengths, frontend), row), alone.log_mel, rtol=0, atol=1e-4)
