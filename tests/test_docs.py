"""README and docs: links lead somewhere, pages stay short, snippets parse."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")


def find_anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def find_snippets(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path):
    for path, anchor in LINK.findall(page.read_text()):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor in find_anchors(target), f"{path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_is_short(page: Path):
    assert len(page.read_text().splitlines()) <= (170 if page.name == "README.md" else 200)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_parse(page: Path):
    for snippet in find_snippets(page, "python"):
        ast.parse(snippet)
    for snippet in find_snippets(page, "yaml"):
        assert yaml.safe_load(snippet)


def test_readme_leads_to_every_page():
    """In one step or in two: it links the page, or a page that does."""
    linked = {ROOT / path for path, _ in LINK.findall(PAGES[0].read_text())}
    further = {page.parent / path for page in linked & {*PAGES} for path, _ in LINK.findall(page.read_text())}
    assert not [page.name for page in PAGES[1:] if page not in linked | further]


EXAMPLES = ("foo", "my_study", "cnn14_small", "CORPUS", "STUDY")  # stems of files that a reader writes or names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path):
    named = re.findall(r"\b(?:clap|conf|tests|experiments|docs)/[\w/]+\.(?:py|yaml|md|ipynb|png)", page.read_text())
    assert [path for path in named if Path(path).stem not in EXAMPLES and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_exist(page: Path):
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", page.read_text())
    assert [test for file, test in named if f"def {test}(" not in (ROOT / file).read_text()] == []
