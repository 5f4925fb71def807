"""Allowed types and values of config keys, and error messages that suggest the closest name."""

import difflib
import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

# Keys that accept other types than that of their yaml value, by full name or last part.
TYPES: dict[str, tuple[type, ...]] = {
    "pretrained": (bool, str),
    "resume": (str, type(None)),
    "init_from": (str, type(None)),
    "spec_augment": (dict, type(None)),
    "study": (dict, type(None)),
    "tracking.uri": (str, type(None)),
    "trainer.monitor": (str, type(None)),
    "trainer.max_steps": (int, type(None)),
    "trainer.patience": (int, type(None)),
    "trainer.save_every": (int, type(None)),
    "dataset.max_clips": (int, type(None)),
    "dataset.cache": (str, type(None)),
    "dataset.exclude": (str, type(None)),
}
# Keys that set where a run reads, writes and computes; they do not change its result.
LOCAL_KEYS = ("dataset.root", "dataset.num_workers", "device", "resume", "tracking.uri", "tracking.experiment")
SPLITS = ("train", "val", "test")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "bf16", "fp16")
SCHEDULES = ("cosine", "constant")
CAPTION_POLICIES = ("sample", "all", "keywords")
WINDOW_POLICIES = ("mean", None)
POOLINGS = ("first", "last", "mean", "pooler")
FILL_MODES = ("repeat_pad", "repeat", "pad")
MEL_SCALES = ("slaney", "htk")
# Keys with a fixed set of values, by full name or last part; the class that receives a value checks it as well.
CHOICES = {
    "trainer.precision": PRECISIONS,
    "optimizer.schedule": SCHEDULES,
    "device": DEVICES,
    "dataset.captions": CAPTION_POLICIES,
    "split": SPLITS,
    "windows": WINDOW_POLICIES,
    "pooling": (*POOLINGS, None),
    "fill": FILL_MODES,
    "mel_scale": MEL_SCALES,
}
TYPE_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list with items of the same type",
    dict: "a mapping",
    type(None): "null",
}


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


def check_value(line: str, key: str, value: Any, current: Any) -> None:
    """Reject a value whose type differs from that of the yaml value."""
    if value == "???":
        raise ValueError(f"{line}: the interpolation does not resolve; refer to a key that has a value")
    last = key.rpartition(".")[2]
    if (choices := CHOICES.get(key) or CHOICES.get(last)) and value not in choices:
        raise ValueError(f"{line}: {key} must be one of {', '.join(choice or 'null' for choice in choices)}")
    types = TYPES.get(key) or TYPES.get(last)
    if types and type(value) not in types:
        raise ValueError(f"{line}: {key} must be {' or '.join(TYPE_NAMES[kind] for kind in types)}")
    if current == "???" and value is None:
        raise ValueError(f"{line}: {key} must not be null; give a value")
    if types or current in (None, "???") or _fits(value, current):
        return
    shown = json.dumps(list(current) if isinstance(current, dict) else current)
    wanted = f"{TYPE_NAMES[type(current)]}, such as {shown} in the yaml"
    raise ValueError(f"{line}: {key} must be {wanted}{_spelling(key, value, current)}")


def _fits(value: Any, current: Any) -> bool:
    """Whether a value has the type of another: an int fits a float, and list items fit an item of the other list."""
    if isinstance(current, list) and isinstance(value, list):
        return not current or all(any(_fits(item, known) for known in current) for item in value)
    return type(value) is type(current) or (type(value) is int and isinstance(current, float))


def _spelling(key: str, value: Any, current: Any) -> str:
    """How to write a number as a string or a single item as a list: Hydra infers the type from the spelling."""
    if isinstance(current, str) and isinstance(value, int | float):
        return f"; write '{key}=\"{json.dumps(value)}\"'"
    if isinstance(current, list) and isinstance(value, str | int | float):
        return f"; write '{key}=[{value}]'"
    return ""
