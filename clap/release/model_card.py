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
# Keys of a protocol that are hashes or versions; evaluation/protocol.json has all.
NOT_SHOWN = ("clip_manifest", "audio_manifest", "audio_definition", "definition", "evaluator", "other_splits")
SETTINGS = {  # recorded key -> its row in the table of the training; those that are not set are skipped
    "init_from": "initial weights",
    "audio_encoder.pretrained": "pretrained audio encoder",
    "text_encoder.pretrained": "pretrained text encoder",
    "freeze": "frozen parts",
    "lora.audio_encoder": "LoRA of the audio encoder",
    "lora.text_encoder": "LoRA of the text encoder",
    "loss": "loss",
    "augmentation": "augmentation",
    "dataset.batch_size": "batch size",
    "trainer.max_epochs": "epochs",
    "trainer.max_steps": "steps, at most",
    "optimizer.algorithm._target_": "optimizer",
    "optimizer.lr": "peak learning rate",
    "optimizer.schedule": "learning-rate schedule",
    "optimizer.warmup_steps": "warm-up, steps or share of them",
    "optimizer.weight_decay": "weight decay",
    "trainer.max_grad_norm": "gradient norm, at most",
    "trainer.ema_decay": "decay of averaged weights",
    "trainer.precision": "precision",
    "seed": "seed",
}
LEAK_CHECKS = {
    "complete": "complete, by recordings and samples; shared clips are stated above if there are any",
    "unknown": "not possible, because not all training clips are recorded",
}
SPLITS = ("test", "val", "train")  # in the order of the card
COMMIT = 12  # digits of a commit
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
        describe_limits(facts),
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
    layers = f" of {text['num_hidden_layers']} layers" if "num_hidden_layers" in text else ""
    transformer = f"{text.get('model_type', 'a transformer')}{layers}"
    towers = f"{encoder} and {transformer}" if has_text else f"{encoder}, without text encoder"
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


def describe_limits(facts: RunFacts) -> str:
    """What the model is for, and what is not known of it."""
    clips = facts.list_clips()
    trained = [corpus for split, corpus in clips if split == "train"]
    tested = list(dict.fromkeys(protocol["dataset"] for protocol in facts.protocols.values()))
    lines = [
        "For search, labels without training examples, and as features. A similarity ranks sounds or texts; it is not "
        "a calibrated probability.",
        f"Evaluated on {', '.join(tested)} only: what it does on other sounds or in other languages is not known."
        if tested
        else "No evaluation is recorded for this checkpoint.",
    ]
    if trained and set(trained) <= {"synthetic"} and facts.params.get("init_from", "None") in UNSET:
        lines.append("Trained on scenes that software renders (`synthetic`): it has heard no recording.")
    return "## Uses and limits\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"


def describe_data(facts: RunFacts) -> str:
    """The corpora of the run, clips of each split, and what was excluded from training."""
    clips = facts.list_clips()
    if not clips:
        target = (facts.config.get("dataset") or {}).get("_target_", "")
        corpus = f"the corpus {target.rpartition('.')[2]}" if target else "a corpus that it does not name"
        return f"## Data\n\nThe checkpoint records {corpus}, but not the number of its clips.\n"
    rows = [
        (split, corpus, count.removesuffix(" clips"))
        for (split, corpus), count in sorted(clips.items(), key=order_split)
    ]
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
    known = {key: value.rpartition(".")[2] if key.endswith("_target_") else value for key, value in known.items()}
    rows = [(name, hide_path(known[key])) for key, name in SETTINGS.items() if known.get(key, "None") not in UNSET]
    if "seconds" in facts.cost:
        rows.append(("hours", f"{facts.cost['seconds'] / 3600:.3g}"))
    rows += [("steps", f"{facts.cost['steps']}")] if "steps" in facts.cost else []
    rows += [("machine", facts.tags["machine"])] if "machine" in facts.tags else []
    rows += [("commit", show_commit(facts.tags["git_commit"]))] if "git_commit" in facts.tags else []
    rows.append(("clap version", __version__))
    return f"## Training\n\n{to_markdown([('setting', 'value'), *rows])}"


def show_commit(commit: str) -> str:
    """A short commit, and whether files differed from it."""
    number, _, changed = commit.partition("-")
    return f"`{number[:COMMIT]}`{' with uncommitted changes' if changed else ''}"


def order_split(item: tuple[tuple[str, str], str]) -> tuple[int, str]:
    """Sort key of (split, corpus), clips: the test splits first."""
    (split, corpus), _ = item
    return SPLITS.index(split), corpus


def describe_evaluation(facts: RunFacts) -> str:
    """Table of metrics with intervals, and the protocol of each evaluation."""
    if not facts.results:
        return "## Evaluation\n\nNo metric is recorded for this checkpoint.\n"
    tests = {name: protocol for name, protocol in facts.protocols.items() if protocol["split"] == "test"}
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
        for result in sorted(facts.results, key=lambda result: SPLITS.index(result.metric.partition("/")[0]))
    ]
    header = ("split", "metric", "value", "95 % interval", "chance", "clips", "protocol")
    return (
        f"## Evaluation\n\n{to_markdown([header, *rows])}\n"
        "The interval is over the choice of clips (bootstrap; Wilson's for few hits) of this one training run: it does "
        "not include the variance between seeds. Chance is the expected value for a random order. Numbers are "
        "comparable if their protocols have the same hash. Scores of each clip are in `evaluation/`, with the "
        "protocols in full.\n\n"
        + "\n".join(describe_protocol(name, protocol) for name, protocol in (tests or facts.protocols).items())
    )


def describe_protocol(name: str, protocol: Mapping[str, Any]) -> str:
    """A protocol as a list of its definitions."""
    hidden = (*NOT_IN_HASH, *NOT_SHOWN, "dataset", "split", "left_out")
    skipped = {"skipped_clips": len(protocol.get("left_out", ()))}
    kept = {key: value for key, value in protocol.items() if key not in hidden} | skipped
    if "leak_check" in protocol:
        kept["comparison_with_the_training_clips"] = LEAK_CHECKS.get(protocol["leak_check"], protocol["leak_check"])
    lines = [f"- {key.replace('_', ' ')}: {show_value(value)}" for key, value in kept.items()]
    return f"### {name}, protocol `{protocol['hash']}`\n\n" + "\n".join(lines) + "\n"


def show_value(value: Any) -> str:
    """Text as it is, lists with commas, the rest as JSON; cut to WIDEST characters."""
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return shorten(value if isinstance(value, str) else json.dumps(value), WIDEST)


def describe_licence(licence: str) -> str:
    return (
        f"## Licence\n\nThe weights: {licence}, as the owner of this repository states. Corpora and initial weights "
        "have licences, which may restrict the use of weights that were trained with them.\n"
    )


def format_interval(result: Result) -> str:
    """`0.012 to 0.034`."""
    if result.interval is None:
        return EMPTY
    return f"{format_number(result.interval.low)} to {format_number(result.interval.high)}"
