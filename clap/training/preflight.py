"""Before training: settings without effect are logged, recordings of the evaluated splits are checked."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from clap.audio_encoder.base import LogMelEncoder
from clap.dataset.clips import ClapDataset
from clap.dataset.digest import hash_digests
from clap.dataset.loader import EpochSampler
from clap.process_group import gather_objects, world_size
from clap.training.parallel import is_tracking
from clap.training.train_clips import check_test_recordings
from clap.training.unfreezing import check_unfreezing
from clap.waveform import AudioError, AudioHeader, TooLongError, check_duration

if TYPE_CHECKING:  # the trainer imports this module
    from clap.training.trainer import ClapTrainer

log = logging.getLogger(__name__)
MOST_HEADERS = 10_000  # recordings of a split that are checked, evenly spaced; a header takes about 1 ms


def check_trainer(trainer: "ClapTrainer") -> None:
    """Log settings that have no effect, and check the recordings of the validation and test split.

    Raises:
        ValueError: no parameter is trained, an epoch has no batch, more recordings than `max_bad_fraction` allows
            cannot be read, or test clips are of recordings that are trained on.
    """
    if not any(parameter.requires_grad for _, parameter in trainer.named_parameters()):
        raise ValueError("no parameter is trained: all parts and the logit scale are fixed; see freeze and loss")
    check_unfreezing(trainer)
    if world_size() > 1:
        check_same_clips(trainer.data_digests)
    trainer.frozen.check()
    check_sharding(trainer.train_loader)
    log_untrained_norms(trainer)
    log_ineffective_settings(trainer)
    log_idle_fusion(trainer)
    check_test_recordings(trainer)
    for name, dataset in trainer.validation.datasets.items():
        if name != "train":
            check_recordings(dataset)


def log_untrained_norms(trainer: "ClapTrainer") -> None:
    """Warn of batch norms that gradient caching freezes before they have seen a batch."""
    settings, rows = trainer.settings, trainer.train_loader.batch_sampler.batch_size / world_size()
    if settings.micro_batch_size is None or settings.micro_batch_norm != "frozen" or rows <= settings.micro_batch_size:
        return
    norms = [module for module in trainer.clap.modules() if is_tracking(module)]
    if trainer.step == 0 and any(norm.num_batches_tracked == 0 for norm in norms):
        log.warning(
            "trainer.micro_batch_norm=frozen keeps batch norms as they are, and these have not seen a batch; set "
            "trainer.micro_batch_norm=micro, or start from trained weights (init_from, audio_encoder.pretrained)"
        )


def check_same_clips(digests: Mapping[str, Tensor]) -> None:
    """ValueError if the processes have found different clips, as where one could not fetch a shard; collective.

    Args:
        digests: of the clips (clips,) of each dataset.
    """
    found = gather_objects({name: (len(own), hash_digests(own.numpy())) for name, own in digests.items()})
    for rank, other in enumerate(found):
        for name, (count, _) in found[0].items():
            if other[name] != found[0][name]:
                raise ValueError(
                    f"rank 0 has {count} {name} clips and rank {rank} has {other[name][0]}, or others; make the same "
                    "files available to all processes, and start again"
                )


def check_sharding(loader: DataLoader) -> None:
    """ValueError if several processes would train on the same batches."""
    if world_size() > 1 and not isinstance(loader.batch_sampler, EpochSampler):
        if not isinstance(getattr(loader, "sampler", None), DistributedSampler):
            raise ValueError(
                f"each of the {world_size()} processes would train on all batches of this loader; build it with "
                "clap.open_loader, or with torch's DistributedSampler"
            )


def log_ineffective_settings(trainer: "ClapTrainer") -> None:
    """Warn of splits that do not exist and of intervals longer than the training."""
    loader, settings = trainer.train_loader, trainer.settings
    if not len(loader):
        raise ValueError(
            f"an epoch of {len(loader.dataset)} training clips has no batch; lower the batch size, or keep the last "
            "incomplete batch (drop_last=False)"
        )
    steps = settings.num_steps(loader)
    if not trainer.validation.has("val"):
        log.warning("there is no validation split: checkpoints/best is the last checkpoint")
    elif settings.eval_every > 1 and settings.eval_every * len(loader) > steps:
        log.warning(
            "trainer.eval_every=%d epochs is longer than the training: the only validation is at its end",
            settings.eval_every,
        )
    if not trainer.validation.has("test"):
        log.warning("there is no test split: metrics.json has no test metrics")
    if settings.log_every > steps:
        log.warning(
            "trainer.log_every=%d is more than the %d steps of the training: no loss is logged",
            settings.log_every,
            steps,
        )
    if loader.batch_size and not loader.drop_last and len(loader.dataset) % loader.batch_size == 1:
        log.warning("the last batch of each epoch has a single clip and is skipped; set drop_last=True")


def log_idle_fusion(trainer: "ClapTrainer") -> None:
    """Warn if training reads no clip that is longer than the window, so that its fusion never acts."""
    encoder, dataset = trainer.clap.audio_encoder, trainer.train_loader.dataset
    if not isinstance(encoder, LogMelEncoder) or not encoder.whole_clip or not isinstance(dataset, ClapDataset):
        return
    shortest = encoder.window + encoder.frontend.hop_length / encoder.sample_rate  # of a longer clip
    longest = max(corpus.max_duration for corpus in dataset.corpora)
    if longest >= shortest:
        longest = dataset.find_longest(MOST_HEADERS)
    if longest < shortest:
        untrained = "" if encoder.fusion.num_views == 1 else ", and longer clips in evaluation pass untrained weights"
        log.warning(
            "the fusion has no effect: training reads at most %.4g s of a clip, the window is %.4g s%s; set "
            "fusion=none, raise dataset.max_duration, or lower audio_encoder.frontend.window",
            *(longest, encoder.window, untrained),
        )


def check_recordings(dataset: ClapDataset) -> None:
    """Read the headers of a split's recordings and log those that cannot be read or are too long; collective.

    A recording that is damaged behind its header is found when it is decoded. Of a split with more than MOST_HEADERS
    recordings, this many are checked.

    Raises:
        ValueError: more recordings than `max_bad_fraction` allows cannot be read.
    """
    recorded = np.flatnonzero(dataset.clips.have_recording()).tolist()
    chosen = recorded[:: -(-len(recorded) // MOST_HEADERS) or 1]
    found = zip(chosen, dataset.share_headers(chosen), strict=True)
    checked = ((index, find_clip_problem(dataset, index, header)) for index, header in found)
    problems = [(dataset.clips[index].id, problem) for index, problem in checked if problem is not None]
    for _, problem in problems:
        log.warning("%s split: %s", dataset.kind, problem)
    count = len(problems) + len(dataset.missing)
    if problems and count > dataset.max_bad_fraction * dataset.num_listed:
        clip_id, problem = problems[0]
        raise ValueError(
            f"{count} of {dataset.num_listed} clips of {dataset.name} ({dataset.kind}) cannot be used, the first is "
            f"{clip_id} ({problem}); fix them or raise dataset.max_bad_fraction, now {dataset.max_bad_fraction:g}"
        )


def find_clip_problem(dataset: ClapDataset, index: int, header: AudioHeader | AudioError | None) -> AudioError | None:
    """Why the clip at an index cannot be used, as far as its header shows; None if nothing is known against it."""
    if not isinstance(header, AudioHeader):
        return header
    corpus = dataset.owners[index]
    try:
        duration = min(header.duration, dataset.limit_duration(corpus) or header.duration)
        check_duration(dataset.clips[index].recording, duration, corpus.longest_clip)
    except TooLongError as error:
        return error
    return None
