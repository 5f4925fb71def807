"""Prompts for zero-shot classification and captions from labels (Radford et al. 2021, section 3.1.4)."""

from collections.abc import Sequence

TEMPLATE = "this is a sound of {}."  # as in LAION-CLAP and MS-CLAP
TEMPLATES = ("the sound of {}",)  # for captions from labels, evaluation and serving
CLASS_TEMPLATES = (*TEMPLATES, "a recording of {}", "this is a sound of {}", "{}")  # for training on a single label


def check_templates(templates: Sequence[str], *, what: str, key: str) -> list[str]:
    """The templates as a list.

    Raises:
        ValueError: no templates, or one without `{}` for the label, which the message calls `what`.
    """
    if not templates or any("{}" not in template for template in templates):
        raise ValueError(f"templates={list(templates)}: each needs {{}} for the {what}; set {key}")
    return list(templates)


def check_prompts(labels: Sequence[str], template: str | Sequence[str]) -> list[str]:
    """Check labels and templates; returns the templates as a list.

    Raises:
        ValueError: no labels, a blank or repeated label, no templates, or one without `{}` for the label.
    """
    if isinstance(labels, str):
        raise ValueError(f"labels={labels!r} is a string; give a list of labels")
    if not labels or any(not label.strip() for label in labels):
        raise ValueError(f"labels={list(labels)}: give one or more labels that are not blank")
    if repeated := [label for i, label in enumerate(labels) if label in labels[:i]]:
        raise ValueError(f"label {repeated[0]!r} is given twice, which lowers all probabilities; give each label once")
    templates = [template] if isinstance(template, str) else list(template)
    if not templates or any("{}" not in text for text in templates):
        raise ValueError(f"template={template!r}: each needs {{}} for the label; give another template")
    return templates


def fill_templates(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """All prompts of the first label, then of the second, and so on."""
    return [template.replace("{}", label) for label in labels for template in templates]
