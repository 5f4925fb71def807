"""Captions from labels and tags by templates (Wu et al. 2023, section 3.3, without the language model)."""

from collections.abc import Sequence

from clap.prompts import TEMPLATES


def fill_keyword_templates(keywords: Sequence[str], templates: Sequence[str] = TEMPLATES) -> tuple[str, ...]:
    """One caption per template, with all keywords in place of `{}`: "the sound of rain, wind and thunder"."""
    *rest, last = keywords
    joined = f"{', '.join(rest)} and {last}" if rest else last
    return tuple(template.replace("{}", joined) for template in templates)
