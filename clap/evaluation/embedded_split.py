"""A split through the audio encoder."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from clap.corpus import Clip
from clap.dataset.clips import ClapDataset
from clap.model import Clap

log = logging.getLogger(__name__)


@dataclass
class EmbeddedSplit:
    """A split through the model: audio_embedding (clips, embed_dim), index (clips,), what could not be read."""

    dataset: ClapDataset
    audio_embedding: Tensor
    index: list[int]
    problems: dict[str, str]

    @property
    def clips(self) -> list[Clip]:
        """The clip of each row."""
        return [self.dataset.clips[i] for i in self.index]

    def by_corpus(self) -> "list[EmbeddedSplit]":
        """The split of each corpus alone, for corpora that are mixed in training are different tasks."""
        parts = []
        for dataset, chosen in self.dataset.by_corpus:
            place = {index: new for new, index in enumerate(chosen)}
            rows = [row for row, index in enumerate(self.index) if index in place]
            ids = {clip.id for clip in [*dataset.clips, *dataset.missing]}
            problems = {clip_id: problem for clip_id, problem in self.problems.items() if clip_id in ids}
            index = [place[self.index[row]] for row in rows]
            if not index:
                raise ValueError(f"no clip of {dataset.name} ({dataset.kind}) can be used; mend them or leave it out")
            parts.append(EmbeddedSplit(dataset, self.audio_embedding[rows], index, problems))
        return parts


def embed_split(clap: Clap, loader: DataLoader) -> EmbeddedSplit:
    """Every clip of the loader's dataset through the audio encoder, in evaluation mode."""
    dataset: ClapDataset = loader.dataset
    embeddings, index, problems = [], [], {}
    with clap.inference():
        for batch in loader:
            problems |= {dataset.clips[i].id: problem for i, problem in batch.problems.items()}
            if len(batch):
                batch = batch.to(clap.device)
                embeddings.append(clap.embed_audio(batch.waveform, batch.lengths))
                index += batch.index.tolist()
    for clip_id, problem in problems.items():
        log.warning("%s split: %s left out (%s)", dataset.kind, clip_id, problem)
    problems = {clip.id: "missing" for clip in dataset.missing} | problems  # the dataset has named the missing ones
    if len(problems) > dataset.max_bad_fraction * dataset.num_listed or not index:
        clip_id, problem = next(iter(problems.items()))
        raise ValueError(
            f"{len(problems)} of {dataset.num_listed} clips of {dataset.name} ({dataset.kind}) cannot be used, "
            f"the first is {clip_id} ({problem}); mend them or raise dataset.max_bad_fraction, now "
            f"{dataset.max_bad_fraction:g}"
        )
    return EmbeddedSplit(dataset, torch.cat(embeddings), index, problems)
