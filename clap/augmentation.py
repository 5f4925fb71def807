"""Augmentation of a batch: level, polarity, position in time, and mixtures of two clips with joined captions.

`draw_changes` runs where batches are made, in the workers of a loader, which tokenise the joined captions too. The
waveforms change on the device (`Changes.apply`). Level and polarity: Spijkervet & Burgoyne 2021 (CLMR). Rotation in
time: Al-Tahan & Mohsenzadeh 2021 (CLAR). Mixtures: Kim et al. 2023 (PairMix), for images Hao et al. 2023 (MixGen).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from clap.config.augmentation_settings import AugmentationSettings

SOFTEST = 1e-3  # RMS of full scale, -60 dB: a softer clip counts as this loud in a mixture
STREAM = 1  # of random numbers, besides those of a clip's crop and caption, which have the same seed


@dataclass
class Changes:
    """What happens to each waveform of a batch, in the order of the attributes; each (batch,).

    Attributes:
        lengths: samples of the clips before they are mixed, at least 1.
        shift: samples by which a clip is rotated towards its end, below its length; None: no clip is.
        partner: row that is added to a row; the row itself if none is.
        level: of that row, relative to this one at equal RMS; 0 if none is added. None: no row is.
        gain: factor, negative with inverted polarity.
    """

    lengths: Tensor
    shift: Tensor | None
    partner: Tensor
    level: Tensor | None
    gain: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool) -> "Changes":
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Changes":
        """The changes in page-locked memory."""
        return self.map(Tensor.pin_memory)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Changes":
        tensors = [getattr(self, f.name) for f in fields(self)]
        return Changes(*(None if tensor is None else function(tensor) for tensor in tensors))

    def apply(self, waveform: Tensor) -> Tensor:
        """Changed waveforms (batch, samples) in [-1, 1], float32, on the device of the changes, without waiting for it.

        A row is zero after its own samples, a mixture after those of the longer clip.
        """
        lengths, factor = self.lengths[:, None], self.gain[:, None]
        if self.shift is not None:
            time = torch.arange(waveform.shape[1], device=waveform.device)
            source = time - self.shift[:, None]
            source = torch.where(source < 0, source + lengths, source)
            waveform = waveform.gather(1, torch.where(time < lengths, source, time))
        if self.level is not None:
            level = self.level[:, None]
            rms = (waveform.square().sum(dim=1, keepdim=True) / lengths).sqrt().clamp(min=SOFTEST)
            waveform = waveform + waveform[self.partner] * (level * rms / rms[self.partner])
            factor = factor / (1 + level.square()).sqrt()  # the sum of two sounds is as loud as the first
        peak = waveform.abs().amax(dim=1, keepdim=True) * factor.abs()
        return (waveform * factor).div_(peak.clamp(min=1))


def draw_changes(
    settings: AugmentationSettings,
    seed: Sequence[int],
    *,
    lengths: Sequence[int],
    groups: Sequence[int],
    sample_rate: int,
) -> Changes:
    """Draw the changes of a batch on the CPU.

    Clips are mixed in pairs: both rows become mixtures of the same two clips, at other levels, so that neither caption
    remains alone in the batch, as a negative of a mixture that it partly describes. Clips of one group are not mixed.

    Args:
        seed: of the batch; the same seed and batch give the same changes.
        lengths, groups: samples and group of each clip (batch,).
        sample_rate: Hz.
    """
    rng, rows, lengths = np.random.default_rng([*seed, STREAM]), len(lengths), np.maximum(lengths, 1)
    decibels = rng.uniform(-settings.gain, settings.gain, rows)
    sign = np.where(rng.random(rows) < settings.polarity, -1, 1)
    longest_shift = round(settings.shift * sample_rate)
    shift = rng.integers(-longest_shift, longest_shift, rows, endpoint=True)
    partner = choose_partners(np.asarray(groups), probability=settings.mix, rng=rng)
    differences = rng.uniform(-settings.mix_level, settings.mix_level, rows)
    level = np.where(partner == np.arange(rows), 0.0, to_factor(differences))
    return Changes(
        lengths=torch.from_numpy(lengths),
        shift=torch.from_numpy(shift % lengths) if settings.shift else None,
        partner=torch.from_numpy(partner),
        level=torch.from_numpy(level.astype(np.float32)) if settings.mix else None,
        gain=torch.from_numpy((sign * to_factor(decibels)).astype(np.float32)),
    )


def choose_partners(groups: np.ndarray, *, probability: float, rng: np.random.Generator) -> np.ndarray:
    """The partner of each row (batch,), mutually, or the row itself; the two are of different groups."""
    partner, order = np.arange(len(groups)), rng.permutation(len(groups))
    first, second = order[: len(order) // 2], order[len(order) // 2 : len(order) // 2 * 2]
    is_mixed = (rng.random(len(first)) < probability) & (groups[first] != groups[second])
    first, second = first[is_mixed], second[is_mixed]
    partner[first], partner[second] = second, first
    return partner


def join_groups(groups: Sequence[int], partner: Sequence[int]) -> list[int]:
    """Group of each row after mixing: two mixtures of the same two groups are positives of each other, and of no clip.

    A pair of groups has a negative number of its own, which no group has.
    """
    pairs = [sorted((group, groups[other])) for group, other in zip(groups, partner, strict=True)]
    return [low if low == high else -(low << 31 | high) - 1 for low, high in pairs]


def join_captions(captions: Sequence[str], partner: Sequence[int]) -> list[str]:
    """Caption of each row after mixing: `A dog barks.` and `Rain falls.` become `A dog barks and rain falls.`"""
    pairs = zip(captions, (captions[other] for other in partner), range(len(captions)), partner, strict=True)
    return [own if row == other else join_pair(own, added) for own, added, row, other in pairs]


def join_pair(first: str, second: str) -> str:
    is_acronym = second[1:2].isupper()
    return f"{first.rstrip().rstrip('.')} and {second if is_acronym else second[:1].lower() + second[1:]}"


def to_factor(decibels: np.ndarray) -> np.ndarray:
    return 10 ** (decibels / 20)
