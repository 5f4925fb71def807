"""Allowed types and values of config keys, and error messages that suggest the closest name."""

import difflib
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

# Keys that accept other types than that of their yaml value, by full name or last part.
TYPES: dict[str, tuple[type, ...]] = {
    "pretrained": (bool, str),
    "audio_encoder.name": (str, type(None)),
    "text_encoder.name": (str, type(None)),
    "text_encoder.tokenizer": (str, type(None)),
    "text_encoder.model": (dict, type(None)),
    "fusion.merge": (dict, type(None)),
    "checkpoint": (str,),
    "metric": (str, type(None)),
    "dataset.root": (str, type(None)),
    "dataset.train": (str, list, type(None)),
    "dataset.val": (str, list, type(None)),
    "dataset.test": (str, list, type(None)),
    "htsat_checkpoint": (str,),
    "dataset.metadata": (str, dict),
    "resume": (str, type(None)),
    "init_from": (str, type(None)),
    "lora.audio_encoder": (dict, type(None)),
    "lora.text_encoder": (dict, type(None)),
    "loss.teachers": (list,),
    "spec_augment": (dict, type(None)),
    "classifier": (dict, type(None)),
    "study": (dict, type(None)),
    "tracking.uri": (str, type(None)),
    "trainer.cache_frozen": (bool, str),
    "trainer.channels_last": (bool, str),
    "trainer.fused_attention": (bool, str),
    "trainer.monitor": (str, type(None)),
    "trainer.max_steps": (int, type(None)),
    "trainer.max_grad_norm": (float, int, type(None)),
    "trainer.patience": (int, type(None)),
    "optimizer.warmup_steps": (int, float),
    "trainer.save_every": (int, type(None)),
    "trainer.save_every_minutes": (float, int, type(None)),
    "trainer.eval_every_steps": (int, type(None)),
    "trainer.eval_every_minutes": (float, int, type(None)),
    "trainer.micro_batch_size": (int, type(None)),
    "trainer.ema_decay": (float, int, type(None)),
    "unfreeze_at": (int, type(None)),
    "dataset.test_fold": (int, type(None)),
    "dataset.train_folds": (list, type(None)),
    "dataset.test_folds": (list, type(None)),
    "dataset.max_clips": (int, type(None)),
    "dataset.cache": (str, type(None)),
    "dataset.cache_gigabytes": (float, int, type(None)),
    "dataset.exclude": (str, type(None)),
    "dataset.rewritings": (str, type(None)),
    "relevance": (str, type(None)),
    "hydra.sweeper.n_jobs": (int, type(None)),
    "hydra.sweeper.storage": (str, type(None)),
    "hydra.sweeper.study_name": (str, type(None)),
    "hydra.sweeper.params": (dict, type(None)),
}
# Mappings {name: options of a corpus}, whose names are the user's own, and options of an evaluator: overrides may add
# names and options, which the class that receives them checks.
OPEN_MAPPINGS = ("dataset.corpora", "evaluation_datasets", "evaluation.robustness.options")
# Keys that set where a run reads, writes and computes; they do not change its result.
LOCAL_KEYS = (
    "dataset.root",
    "dataset.num_workers",
    "dataset.cache_gigabytes",
    "dataset.shard_cache",
    "dataset.shard_cache_gigabytes",
    "dataset.persistent_workers",
    "dataset.prefetch_factor",
    "device",
    "resume",
    "trainer.cache_frozen",
    "trainer.profile",
    "tracking.uri",
    "tracking.experiment",
)
TRAINED_PARTS = ("audio_encoder", "text_encoder", "audio_projection", "text_projection")  # that `freeze` may list
SPLITS = ("train", "val", "test")
DEVICES = ("auto", "cpu", "cuda")
SWITCHES = ("auto", True, False)  # auto: on where it is faster
PRECISIONS = ("fp32", "bf16", "fp16")
MICRO_BATCH_NORMS = ("frozen", "micro")
FROZEN_WINDOWS = ("random", "middle")
PARALLEL = ("ddp", "fsdp")
GATHERS = ("full", "local")
SCHEDULES = ("cosine", "constant")
CAPTION_POLICIES = ("sample", "all", "keywords", "rewritten")
WINDOW_POLICIES = ("mean", None)
CLASSIFIER = "classifier"  # key of the head of a ClapAudioClassifier
CLASSIFIER_FEATURES = ("encoder", "projection")
POOLINGS = ("first", "last", "mean", "pooler")
FILL_MODES = ("repeat_pad", "repeat", "pad")
MEL_SCALES = ("slaney", "htk")
SAMPLERS = ("tpe", "random", "cmaes")
PRUNERS = (None, "median", "hyperband")
# Keys with a fixed set of values, by full name or last part; the class that receives a value checks it as well.
CHOICES = {
    "trainer.precision": PRECISIONS,
    "trainer.micro_batch_norm": MICRO_BATCH_NORMS,
    "trainer.frozen_windows": FROZEN_WINDOWS,
    "trainer.parallel": PARALLEL,
    "loss.gather": GATHERS,
    "classifier.features": CLASSIFIER_FEATURES,
    "optimizer.schedule": SCHEDULES,
    "device": DEVICES,
    "dataset.captions": CAPTION_POLICIES,
    "split": SPLITS,
    "windows": WINDOW_POLICIES,
    "pooling": (*POOLINGS, None),
    "fill": FILL_MODES,
    "mel_scale": MEL_SCALES,
    "hydra.sweeper.sampler": SAMPLERS,
    "hydra.sweeper.pruner": PRUNERS,
}
PLAIN_TEXT = re.compile(r"(\.{0,2}/|[A-Za-z_])[A-Za-z0-9_/.+-]*")  # Hydra reads it as text without quotes
# Smallest values of numbers, by full name; the class that receives a value checks it as well.
MINIMA = {
    "embed_dim": 1,
    "dataset.batch_size": 1,
    "dataset.prefetch_factor": 1,
    "optimizer.lr": 0,
    "optimizer.audio_encoder_lr": 0,
    "optimizer.text_encoder_lr": 0,
    "optimizer.weight_decay": 0,
    "optimizer.warmup_steps": 0,
    "optimizer.min_lr": 0,
    "hydra.sweeper.n_trials": 1,
    "hydra.sweeper.n_jobs": 1,
    "hydra.sweeper.seed": 0,
}
NAME = re.compile(r"\w([\w .-]*[\w-])?", re.ASCII)  # accepted by MLflow and by file systems
LONGEST_NAME = 100
TYPE_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list with items of the same type",
    dict: "a mapping",
    type(None): "null",
}


def single_key(key: str) -> str:
    """The key of a single corpus for an option in an open mapping: `dataset.corpora.mine.root` is a `dataset.root`."""
    for mapping in OPEN_MAPPINGS:
        name, _, option = key.removeprefix(f"{mapping}.").partition(".")
        if key.startswith(f"{mapping}.{name}.") and option:
            return f"dataset.{option}"
    return key


def suggest(name: str, allowed: Iterable[str]) -> str:
    """The text "; did you mean NAME?" with the closest allowed name, or an empty string if none is close."""
    nearest = difflib.get_close_matches(name, list(allowed), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def suggest_key(key: str, keys: Iterable[str]) -> str:
    """Text that suggests keys with the same or a similar last part, else the keys of the same node."""
    parent, _, last = key.rpartition(".")
    by_last = defaultdict(list)
    for known in set(keys) - {key}:
        by_last[known.rpartition(".")[2]].append(known)
    names = [last] if last in by_last else difflib.get_close_matches(last, by_last, cutoff=0.7)
    found = difflib.get_close_matches(key, [known for name in names for known in by_last[name]], cutoff=0.0)
    if found:
        return f"; did you mean {' or '.join(found)}?"
    siblings = [known for known in keys if known.rpartition(".")[0] == parent]
    return f"; keys: {', '.join(siblings)}" if siblings else "; --cfg job prints all keys"


def choose_weights(part: str, pretrained: bool | str, name: str | None) -> str | None:
    """The source of the weights that `pretrained` selects: None (false), `name` (true), or `pretrained` itself.

    Args:
        part: audio_encoder or text_encoder, for errors.

    Raises:
        ValueError: `pretrained` is true and `name` is None.
    """
    if pretrained is True and name is None:
        raise ValueError(
            f"{part}.pretrained=true, but {part}.name is null; set {part}.pretrained to a file, a folder, "
            "a hub name or false"
        )
    return name if pretrained is True else pretrained or None


def quote_override(key: str, value: object) -> str:
    """`key=value` as Hydra reads it back, for a command of several words (`shlex.join`)."""
    text = str(value)
    if PLAIN_TEXT.fullmatch(text) and text.lower() not in ("true", "false", "null", "nan", "inf"):
        return f"{key}={text}"
    # Hydra halves the backslashes in front of a quote, and keeps others.
    escaped = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ("\\" if found[2] else "") + found[2], text)
    return f'{key}="{escaped}"'


def shell_override(key: str, value: object) -> str:
    """`key=value` to be pasted into a shell."""
    return shlex.quote(quote_override(key, value))


def check_name(name: Any, what: str) -> str:
    """Return a name that becomes part of metrics and file names.

    Raises:
        ValueError: MLflow or a file system refuses it.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise ValueError(
            f"{what}: {name!r} cannot be part of a metric or file name; use letters a to z, digits, - and _, with "
            f"spaces and dots only inside, at most {LONGEST_NAME} characters"
        )
    return name


def check_yaml_values(config: dict[str, Any]) -> None:
    """Reject a value of a composed config, by dotted key, of a wrong type (`root: 2021`) or below the minimum."""
    for name, value in config.items():
        key = single_key(name)
        types = TYPES.get(key) or TYPES.get(key.rpartition(".")[2])
        if types and type(value) not in types and not str(value).startswith("${"):
            allowed = " or ".join(TYPE_NAMES[kind] for kind in types)
            quoted = "; quote it in the yaml" if str in types else ""
            raise ValueError(f"{name}: {json.dumps(value)} must be {allowed}{quoted}")
        minimum = MINIMA.get(key)
        if minimum is not None and isinstance(value, int | float) and value < minimum:
            raise ValueError(f"{name}={value} must be at least {minimum}")


def check_learning_rates(*, lr: float, min_lr: float, warmup_steps: float) -> None:
    """ValueError if a schedule rises at its end, or its warm-up is neither a number of steps nor a share."""
    if min_lr > lr:
        raise ValueError(f"optimizer.min_lr={min_lr} must be at most optimizer.lr={lr}; lower it")
    if warmup_steps > 1 and warmup_steps % 1:
        raise ValueError(f"optimizer.warmup_steps={warmup_steps} must be a whole number of steps, or a share below 1")


def check_value(line: str, key: str, value: Any, current: Any, *, typed: str | None = None) -> None:
    """Reject a value whose type differs from that of the yaml value.

    Args:
        typed: the value as it was typed, for the hint how to quote it.
    """
    if value == "???":
        problem = (
            "the interpolation does not resolve; refer to a key that has a value" if "${" in line else "give a value"
        )
        raise ValueError(f"{line}: {problem}")
    last, known = key.rpartition(".")[2], single_key(key)
    if value == "" and str in (TYPES.get(known) or ()):  # a path or name; an empty path would be the working directory
        raise ValueError(f"{line}: {key} must not be empty; give a value, or remove the override")
    if current == "???" and value is None:
        raise ValueError(f"{line}: {key} must not be null; give a value")
    if (choices := CHOICES.get(known) or CHOICES.get(last)) and value not in choices:
        raise ValueError(f"{line}: {key} must be one of {', '.join(choice or 'null' for choice in choices)}")
    types = TYPES.get(known) or TYPES.get(last)
    if types and current == "???":
        types = tuple(kind for kind in types if kind is not type(None))
    if types and type(value) not in types:
        allowed = " or ".join(TYPE_NAMES[kind] for kind in types)
        raise ValueError(f"{line}: {key} must be {allowed}{_spelling(key, value, types, typed)}")
    if types or current in (None, "???") or _fits(value, current):
        return
    shown = json.dumps(list(current) if current and isinstance(current, dict) else current)
    wanted = f"{TYPE_NAMES[type(current)]}, such as {shown} in the yaml"
    raise ValueError(f"{line}: {key} must be {wanted}{_spelling(key, value, (type(current),), typed)}")


def _fits(value: Any, current: Any) -> bool:
    """Whether a value has the type of another: an int fits a float, and list items fit an item of the other list."""
    if isinstance(current, list) and isinstance(value, list):
        return not current or all(any(_fits(item, known) for known in current) for item in value)
    return type(value) is type(current) or (type(value) is int and isinstance(current, float))


def _spelling(key: str, value: Any, types: tuple[type, ...], typed: str | None) -> str:
    """How to write a number as a string or a single item as a list: Hydra infers the type from the spelling."""
    typed = json.dumps(value) if typed is None else typed
    if str in types and not isinstance(value, str | dict | type(None)):
        return f"; write {shell_override(key, typed)}"
    if list in types and isinstance(value, str | int | float):
        return f"; write {shlex.quote(f'{key}=[{typed}]')}"
    return ""
