"""The model card of a checkpoint: README.md with the metadata that the Hugging Face hub reads.

Mitchell et al. 2019, "Model Cards for Model Reporting". Every number comes from the files of the run.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from clap import __version__
from clap.evaluation.results import NOT_IN_HASH, label_metric
from clap.release.run_facts import Result, RunFacts, hide_path
from clap.text_table import EMPTY, format_number, shorten, to_markdown

UNPUBLISHED = ("synthetic", "csv")  # names of corpora that are not of a published data set
RETRIEVAL = "audio-text-retrieval"
TASKS = {"zero_shot": "zero-shot-audio-classification", "text_to_audio": RETRIEVAL, "audio_to_text": RETRIEVAL}
WIDEST = 300  # characters of a value of a protocol in the card
MANIFESTS = ("clip_manifest", "audio_manifest")
# Recorded keys of the training table; those that are not set are skipped.
SETTINGS = (
    *("init_from", "audio_encoder.pretrained", "text_encoder.pretrained", "freeze", "lora.audio_encoder"),
    *("lora.text_encoder", "loss", "augmentation", "dataset.batch_size", "trainer.max_epochs", "trainer.max_steps"),
    *("optimizer.algorithm._target_", "optimizer.lr", "optimizer.schedule", "optimizer.warmup_steps"),
    *("optimizer.weight_decay", "trainer.max_grad_norm", "trainer.ema_decay", "trainer.precision", "seed"),
)
UNSET = ("None", "False", "[]", "{}", "none", "")


def make_card(facts: RunFacts, *, repo: str, licence: str, has_text: bool, has_huggingface: bool) -> str:
    """The text of README.md.

    Args:
        repo: owner/name.
        licence: an identifier of the hub, such as mit.
        has_text: whether the model has a text encoder.
        has_huggingface: whether the subfolder for transformers exists.
    """
    parts = [
        describe_model(facts, repo, has_text=has_text),
        describe_use(repo, has_text=has_text, has_huggingface=has_huggingface),
        describe_data(facts),
        describe_training(facts),
        describe_evaluation(facts),
        describe_licence(licence),
    ]
    metadata = describe_metadata(facts, repo=repo, licence=licence, has_text=has_text)
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(parts)


def describe_metadata(facts: RunFacts, *, repo: str, licence: str, has_text: bool) -> ModelCardData:
    """The metadata of the hub: licence, data sets, tags, and the numbers as a model-index."""
    corpora = dict.fromkeys(corpus for (split, corpus) in facts.list_clips() if split == "train")
    shown = choose_results(facts.results)
    return ModelCardData(
        language="en",
        license=licence,
        library_name="clap",
        pipeline_tag="zero-shot-audio-classification" if has_text else "feature-extraction",
        tags=["clap", "audio", "language-audio-pretraining", RETRIEVAL],
        datasets=[corpus for corpus in corpora if corpus not in UNPUBLISHED] or None,
        metrics=list(dict.fromkeys(result.metric.rpartition("/")[2] for result in shown)) or None,
        model_name=repo.rpartition("/")[2],
        eval_results=[make_entry(result) for result in shown] or None,
    )


def choose_results(results: Iterable[Result]) -> list[Result]:
    """Those of the test splits, or without any those of the others."""
    results = list(results)
    return [result for result in results if result.metric.startswith("test/")] or results


def make_entry(result: Result) -> EvalResult:
    """An entry of the model-index."""
    split, corpus, task = result.metric.split("/")[:3]
    interval = f" (95 % interval {format_interval(result)})" if result.interval else ""
    return EvalResult(
        task_type=TASKS.get(task, "audio-classification"),
        dataset_type=corpus,
        dataset_name=corpus,
        dataset_split=split,
        metric_type=result.metric.rpartition("/")[2],
        metric_value=round(result.value, 6),
        metric_name=f"{label_metric(result.metric)}{interval}",
    )


def describe_model(facts: RunFacts, repo: str, *, has_text: bool) -> str:
    encoder = facts.config["audio_encoder"]["_target_"].rpartition(".")[2]
    text = (facts.config.get("text_encoder") or {}).get("model") or {}
    towers = (
        f"{encoder} and {text.get('model_type', 'a transformer')}" if has_text else f"{encoder}, without text encoder"
    )
    size = f", {facts.cost['parameters'] / 1e6:.1f} M parameters" if "parameters" in facts.cost else ""
    frontend = facts.config["audio_encoder"].get("frontend", {})
    window = f"windows of {frontend['window']:g} s at {frontend['sample_rate']} Hz, " if "window" in frontend else ""
    return (
        f"# {repo.rpartition('/')[2]}\n\n"
        f"A contrastive language-audio model (CLAP; Elizalde et al. 2023, Wu et al. 2023): {towers}{size}; "
        f"{window}embeddings of {facts.config['embed_dim']} values.\n"
    )


def describe_use(repo: str, *, has_text: bool, has_huggingface: bool) -> str:
    lines = ["from clap import Clap", "", f'clap = Clap.from_ckpt("{repo}")']
    lines += ['audio = clap.get_audio_embeddings(["dog.wav"])  # (1, embed_dim), unit norm']
    if has_text:
        lines += ['text = clap.get_text_embeddings(["a dog barks", "rain on a roof"])']
        lines += ["logits = clap.compute_similarity(audio, text)  # (1, 2)"]
    code = "\n".join(lines)
    part = f"## Use\n\n```python\n{code}\n```\n"
    if has_huggingface:
        part += f'\nThe same model in transformers: `ClapModel.from_pretrained("{repo}", subfolder="huggingface")`.\n'
    return part


def describe_data(facts: RunFacts) -> str:
    """The corpora of the run, clips of each split, and what was excluded from training."""
    clips = facts.list_clips()
    if not clips:
        target = (facts.config.get("dataset") or {}).get("_target_", "")
        corpus = f"the corpus {target.rpartition('.')[2]}" if target else "a corpus that it does not name"
        return f"## Data\n\nThe checkpoint records {corpus}, but not the number of its clips.\n"
    rows = [(split, corpus, count.removesuffix(" clips")) for (split, corpus), count in sorted(clips.items())]
    excluded = []
    if facts.params.get("dataset.exclude_evaluated") == "True":
        excluded.append("clips that an evaluated corpus has too (`dataset.exclude_evaluated`)")
    if (name := facts.params.get("dataset.exclude", "None")) not in UNSET:
        excluded.append(f"the clips of the list {hide_path(name)} (`dataset.exclude`)")
    skipped = f"\nExcluded from training: {', '.join(excluded)}.\n" if excluded else ""
    return f"## Data\n\n{to_markdown([('split', 'corpus', 'clips used'), *rows])}{skipped}"


def describe_training(facts: RunFacts) -> str:
    """The settings that matter, the cost and the code."""
    known = {**facts.params, **{key: value for key, value in facts.tags.items() if key in ("loss", "augmentation")}}
    rows = [(key, hide_path(known[key])) for key in SETTINGS if known.get(key, "None") not in UNSET]
    if "seconds" in facts.cost:
        rows.append(("hours", f"{facts.cost['seconds'] / 3600:.3g}"))
    rows += [("steps", f"{facts.cost['steps']}")] if "steps" in facts.cost else []
    rows += [
        (name, facts.tags[tag]) for name, tag in (("machine", "machine"), ("commit", "git_commit")) if tag in facts.tags
    ]
    rows.append(("clap version", __version__))
    return f"## Training\n\n{to_markdown([('setting', 'value'), *rows])}"


def describe_evaluation(facts: RunFacts) -> str:
    """Table of metrics with intervals, and the protocol of each evaluation."""
    if not facts.results:
        return "## Evaluation\n\nNo metric is recorded for this checkpoint.\n"
    rows = [
        (
            "/".join(result.metric.split("/")[:2]),
            label_metric(result.metric),
            format_number(result.value),
            format_interval(result),
            format_number(result.chance),
            result.clips.removesuffix(" clips"),
            f"`{result.protocol}`",
        )
        for result in facts.results
    ]
    header = ("split", "metric", "value", "95 % interval", "chance", "clips", "protocol")
    return (
        f"## Evaluation\n\n{to_markdown([header, *rows])}\n"
        "The interval is over the choice of clips (bootstrap; Wilson's for few hits) of this one training run: it does "
        "not include the variance between seeds. Chance is the expected value for a random order. Numbers are "
        "comparable if their protocols have the same hash. Scores of each clip are in `evaluation/`, with the "
        "protocols in full.\n\n"
        + "\n".join(describe_protocol(name, protocol) for name, protocol in facts.protocols.items())
    )


def describe_protocol(name: str, protocol: Mapping[str, Any]) -> str:
    """A protocol as a list of its definitions."""
    hidden = (*NOT_IN_HASH, *MANIFESTS, "dataset", "split")
    kept = {key: value for key, value in protocol.items() if key not in hidden}
    count = len(protocol.get("left_out", ()))
    kept |= {"left_out": f"{count} clip{'s' if count != 1 else ''}"}
    lines = [
        f"- {key}: {value if isinstance(value, str) else shorten(json.dumps(value), WIDEST)}"
        for key, value in kept.items()
    ]
    return f"### {name}, protocol `{protocol['hash']}`\n\n" + "\n".join(lines) + "\n"


def describe_licence(licence: str) -> str:
    return f"## Licence\n\nThe weights: {licence}. The corpora have licences of their own.\n"


def format_interval(result: Result) -> str:
    """`0.012 to 0.034`."""
    if result.interval is None:
        return EMPTY
    return f"{format_number(result.interval.low)} to {format_number(result.interval.high)}"
