"""Accuracy and mean average precision of a classifier's head."""

from collections.abc import Callable

import pytest
import torch
from labelled_tones import PITCHES, LabelledTones, make_clip
from sklearn.metrics import average_precision_score

from clap import Clap, ClapAudioClassifier, ClapDataset
from clap.dataset.loader import make_loader
from clap.evaluation.classification import Classification, MultiLabelClassification
from clap.evaluation.embedded_split import make_evaluation_loader
from clap.evaluation.evaluator import Evaluator, evaluate_split
from clap.evaluation.linear_probe import LinearProbe
from clap.evaluation.results import Evaluation
from clap.evaluation.zero_shot import ZeroShot


def evaluate(clap: Clap | ClapAudioClassifier, corpus: LabelledTones, evaluator: Evaluator) -> Evaluation:
    form = {"sample_rate": clap.sample_rate, "window": clap.window}
    loaders = {
        kind: make_loader(ClapDataset(corpus, kind, **form), clap.collate, batch_size=6, num_workers=0, shuffle=False)
        for kind in ("train", "test")
    }
    others = {"train": make_evaluation_loader(loaders["train"])}
    return evaluate_split(clap, loaders["test"], {"one": evaluator}, other_loaders=others)["one"]


@pytest.fixture
def classifier(tiny_clap: Callable) -> ClapAudioClassifier:
    torch.manual_seed(1)
    classifier = ClapAudioClassifier(tiny_clap(), [*PITCHES, "silence"]).eval()
    torch.nn.init.normal_(classifier.head.weight)
    return classifier


def read_logits(classifier: ClapAudioClassifier, corpus: LabelledTones) -> torch.Tensor:
    dataset = ClapDataset(corpus, "test", sample_rate=classifier.sample_rate, window=classifier.window)
    features = classifier.get_audio_embeddings([item.waveform for item in dataset], classifier.sample_rate)
    return classifier.head(features).detach()


def test_accuracy_is_the_share_of_right_clips_with_a_label(classifier: ClapAudioClassifier):
    corpus = LabelledTones()
    found = evaluate(classifier, corpus, Classification())
    logits, names = read_logits(classifier, corpus), classifier.class_names
    hits = [names[row.argmax()] == clip.label for row, clip in zip(logits, corpus.clips("test"), strict=True)]
    assert found.metrics["test/tones/classification/accuracy"] == pytest.approx(sum(hits) / 6)
    assert found.chance == {"test/tones/classification/accuracy": 0.25}
    assert sorted(found.clip_ids) == sorted(clip.id for clip in corpus.clips("test"))
    assert found.protocol["class_names"] == names and found.protocol["clips_with_label"] == 6


def test_mean_average_precision_equals_that_of_scikit_learn(classifier: ClapAudioClassifier):
    corpus = LabelledTones(several=True)
    found = evaluate(classifier, corpus, MultiLabelClassification())
    logits, clips = read_logits(classifier, corpus), corpus.clips("test")
    present = sorted({label for clip in clips for label in clip.all_labels}, key=classifier.class_names.index)
    column = classifier.class_names.index
    own = [
        average_precision_score([name in clip.all_labels for clip in clips], logits[:, column(name)])
        for name in present
    ]
    name = "test/tones/classification/mean_average_precision"
    assert found.metrics[name] == pytest.approx(sum(own) / len(own), abs=1e-6)
    assert found.protocol["classes_without_clips"] == 1 and 0 < found.chance[name] < 1


def test_unknown_class_of_the_split_is_named(classifier: ClapAudioClassifier):
    corpus = LabelledTones(test=[make_clip("new", "shrill")])
    with pytest.raises(ValueError, match="test clip new of tones has the class 'shrill', which is not one of the 4"):
        evaluate(classifier, corpus, Classification())


def test_evaluation_with_text_refuses_a_classifier(classifier: ClapAudioClassifier):
    with pytest.raises(ValueError, match="evaluation one compares clips with text, and a classifier has no text"):
        evaluate(classifier, LabelledTones(), ZeroShot())


def test_model_without_a_head_is_refused(tiny_clap: Callable):
    with pytest.raises(ValueError, match="evaluation one needs a classifier, and this model has no head"):
        evaluate(tiny_clap(), LabelledTones(), Classification())


def test_linear_probe_reads_the_features_of_a_classifier(classifier: ClapAudioClassifier):
    found = evaluate(classifier, LabelledTones(), LinearProbe(c_grid=[1.0]))
    assert found.metrics["test/tones/linear_probe/accuracy"] >= 1 / 3
