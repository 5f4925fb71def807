"""Prompts for zero-shot classification and captions from labels (Radford et al. 2021, section 3.1.4)."""

import re
from collections.abc import Iterable, Sequence

TEMPLATES = ("the sound of {}",)  # for captions from labels, evaluation, inference and serving
CLASS_TEMPLATES = (*TEMPLATES, "a recording of {}", "this is a sound of {}", "{}")  # for training on a single label

SURROGATE = re.compile(r"[\ud800-\udfff]")  # left of a text that was cut, or of bytes that are not UTF-8


def check_texts(texts: Iterable[str], what: str, *, clip: str | None = None) -> list[str]:
    """The texts as a list.

    Args:
        what: the kind of text, for the message, as `clip` is: the id of their clip.

    Raises:
        ValueError: a text is not a string, is blank, or contains half of a surrogate pair; the message names its
            position.
    """
    texts = list(texts)
    for position, text in enumerate(texts):
        problem = find_problem(text)
        if problem is not None:
            owner = "" if clip is None else f" of clip {clip!r}"
            raise ValueError(f"{what} {position} of {len(texts)}{owner} {problem}")
    return texts


def find_problem(text: object) -> str | None:
    """Why a text cannot be tokenized; None if it can."""
    if not isinstance(text, str):
        return f"is {text!r}, of type {type(text).__name__}; give a string"
    if not text.strip():
        return f"is blank: {text!r}; write a text, or drop it"
    if not text.isascii() and (found := SURROGATE.search(text)):
        return f"contains {found[0]!r}, half of a surrogate pair: {text!r}; decode it as UTF-8"
    return None


def check_templates(templates: Sequence[str], *, what: str, key: str) -> list[str]:
    """The templates as a list.

    Raises:
        ValueError: no templates, or one without `{}` for the label, which the message calls `what`.
    """
    if not templates or any("{}" not in template for template in check_texts(templates, "template")):
        raise ValueError(f"templates={list(templates)}: each needs {{}} for the {what}; set {key}")
    return list(templates)


def check_prompts(labels: Sequence[str], template: str | Sequence[str]) -> list[str]:
    """Check labels and templates; returns the templates as a list.

    Raises:
        ValueError: no labels, a blank or repeated label, no templates, or one without `{}` for the label.
    """
    if isinstance(labels, str):
        raise ValueError(f"labels={labels!r} is a string; give a list of labels")
    if not (labels := check_texts(labels, "label")):
        raise ValueError("labels=[]: give one or more labels")
    if repeated := [label for i, label in enumerate(labels) if label in labels[:i]]:
        raise ValueError(f"label {repeated[0]!r} is given twice, which lowers all probabilities; give each label once")
    return check_templates([template] if isinstance(template, str) else template, what="label", key="template")


def fill_templates(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """All prompts of the first label, then of the second, and so on; ValueError as of `check_texts`."""
    return [template.replace("{}", label) for label in check_texts(labels, "label") for template in templates]
