"""Captions from labels and tags by templates (Wu et al. 2023, section 3.3, without the language model)."""

from collections.abc import Sequence
from dataclasses import replace

from clap.corpus import Clip
from clap.prompts import TEMPLATES


def fill_keyword_templates(keywords: Sequence[str], templates: Sequence[str] = TEMPLATES) -> tuple[str, ...]:
    """One caption per template, with all keywords in place of `{}`: "the sound of rain, wind and thunder"."""
    *rest, last = keywords
    joined = f"{', '.join(rest)} and {last}" if rest else last
    return tuple(template.replace("{}", joined) for template in templates)


def use_keywords(clip: Clip) -> Clip:
    """The clip with captions from its keywords, if it has some."""
    if not clip.keywords:
        return clip
    return replace(clip, captions=fill_keyword_templates(clip.keywords), captions_from_labels=True)
