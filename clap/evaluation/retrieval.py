"""Retrieval in both directions, any number of captions a clip (Koepke et al. 2022)."""

from collections import Counter

import torch

from clap.evaluation.embedded_split import Splits
from clap.evaluation.evaluator import Evaluator
from clap.evaluation.metrics import RETRIEVAL_METRICS, retrieval_metrics, retrieval_ranks, retrieval_scores
from clap.evaluation.results import Evaluation
from clap.model import Clap


class Retrieval(Evaluator):
    """Text to audio and audio to text over the whole split, every caption of every clip."""

    metric_names = RETRIEVAL_METRICS

    def __call__(self, clap: Clap, splits: Splits) -> Evaluation:
        split = splits.evaluated
        clips = split.clips
        captions = [caption for clip in clips for caption in clip.captions]
        counts = torch.tensor([len(clip.captions) for clip in clips])
        text_to_clip = torch.arange(len(clips)).repeat_interleave(counts).to(split.audio_embedding.device)
        similarity = split.audio_embedding @ clap.get_text_embeddings(captions).T  # (clips, texts)
        ranks = retrieval_ranks(similarity, text_to_clip)
        per_query = {
            "text_clip": text_to_clip.cpu().numpy(),
            "text_to_audio_rank": ranks.text_to_audio.cpu().numpy(),
            "audio_to_text_rank": ranks.audio_to_text.cpu().numpy(),
            "audio_to_text_best_rank": ranks.best_caption.cpu().numpy(),
        }
        clips_of_caption = Counter(caption for clip in clips for caption in set(clip.captions))
        protocol = {
            "captions_per_clip": sorted(set(counts.tolist())),
            "captions_of_several_clips": sum(count > 1 for count in clips_of_caption.values()),
            "text_to_audio": "every caption is a query; its own clip is the one right answer among all clips",
            "audio_to_text": "every clip is a query; recall and median rank take the best of its captions, "
            "mAP@10 divides by the number of its captions, at most 10",
            "ties": "count against the model",
        }
        return Evaluation(
            retrieval_metrics(ranks),
            [clip.id for clip in clips],
            scores=retrieval_scores(ranks),
            per_query=per_query,
            protocol=protocol,
        )
