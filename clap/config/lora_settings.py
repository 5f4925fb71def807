"""The options `lora.*` of conf/config.yaml."""

from collections.abc import Mapping
from typing import Any

from clap.config.values import suggest

PARTS = ("audio_encoder", "text_encoder")
DEFAULTS: dict[str, Any] = {"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": None}


def read_lora(lora: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """All options of the encoders with low-rank adapters; an encoder that is null has none.

    Raises:
        ValueError: an unknown encoder or key, or a value out of range.
    """
    given = {part: options for part, options in (lora or {}).items() if options is not None}
    if unknown := [part for part in given if part not in PARTS]:
        raise ValueError(f"lora.{unknown[0]}: only {' and '.join(PARTS)} can have adapters")
    return {part: read_options(f"lora.{part}", options) for part, options in given.items()}


def read_options(key: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one encoder, with defaults for those that are not given."""
    if unknown := [name for name in given if name not in DEFAULTS]:
        raise ValueError(
            f"{key}.{unknown[0]}: there is no such key; the keys are {', '.join(DEFAULTS)}"
            f"{suggest(unknown[0], DEFAULTS)}"
        )
    options = {**DEFAULTS, **given}
    names = options["target_modules"]
    allowed = {
        "r": ("an integer, at least 1", type(options["r"]) is int and options["r"] >= 1),
        "alpha": ("a number above 0", is_number(options["alpha"]) and options["alpha"] > 0),
        "dropout": ("at least 0 and below 1", is_number(options["dropout"]) and 0 <= options["dropout"] < 1),
        "target_modules": (
            "null, for all linear layers, or a list of names of layers",
            names is None or (isinstance(names, list) and names and all(isinstance(name, str) for name in names)),
        ),
    }
    for name, (range_, is_valid) in allowed.items():
        if not is_valid:
            raise ValueError(f"{key}.{name}={options[name]} must be {range_}")
    return options


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
