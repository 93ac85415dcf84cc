"""The pages agree with the repository: the table of modules, the paths that they name, and the links between them."""

import re
from pathlib import Path

import house
import pytest
from torch import nn

from seqbatch._encode import registry

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
every_page = pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
# The folders of seqbatch/, of which pages may leave out the name of the package.
PACKAGES = [path.name for path in (ROOT / "seqbatch").iterdir() if path.is_dir()]
FOLDERS = ("seqbatch", "tests", "benchmarks", "docs", "packages")


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub builds it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_page_has_the_table_of_modules() -> None:
    assert house.table() in house.PAGE.read_text(), "run `python tests/helpers/house.py --write`"


def test_layers_that_the_readme_calls_unsupported_are() -> None:
    (sentence,) = re.findall(
        r"^- \*\*Not supported\*\*.+?\.\n", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    names = re.findall(r"`nn\.(\w+)`", sentence)
    assert len(names) > 5
    registered = {*registry._entries, *registry._cross_attentions}
    assert [name for name in names if registered & {*getattr(nn, name).__mro__}] == []


@every_page
def test_paths_in_pages_exist(page: Path) -> None:
    spans = re.findall(r"`([\w.]+/[\w./*]*|[\w]+\.md)`", page.read_text())
    for span in spans:
        first = span.split("/")[0]
        if first in (*FOLDERS, *PACKAGES):
            root = ROOT if first in FOLDERS and "/" in span else ROOT / "seqbatch"
            assert [*root.glob(span.rstrip("/"))], span


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith("http"):
            name, _, fragment = target.partition("#")
            found = (page.parent / name).resolve() if name else page
            assert found.exists(), target
            if fragment:
                headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
                assert fragment in map(anchor, headings), target


def test_pre_commit_has_the_version_of_ruff_that_ci_has() -> None:
    hooks, constraints = ((ROOT / name).read_text() for name in (".pre-commit-config.yaml", "constraints.txt"))
    assert re.findall(r"ruff-pre-commit\n    rev: v(.+)", hooks) == re.findall(
        r"^ruff==(.+)$", constraints, re.MULTILINE
    )
