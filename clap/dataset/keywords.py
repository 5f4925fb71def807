"""Labels and tags as a sentence, by templates (Wu et al. 2023, section 3.3, without the language model)."""

from collections.abc import Sequence

from clap.prompts import TEMPLATES


def fill_keyword_templates(keywords: Sequence[str], templates: Sequence[str] = TEMPLATES) -> tuple[str, ...]:
    """One caption a template, `{}` standing for all keywords: "the sound of rain, wind and thunder"."""
    *rest, last = keywords
    together = f"{', '.join(rest)} and {last}" if rest else last
    return tuple(template.replace("{}", together) for template in templates)
