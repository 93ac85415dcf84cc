"""The words of docstrings, comments and pages: standard verbs, plain grammar, and short sentences in the pages."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = [folder for name in ("seqbatch", "tests", "benchmarks", "docs") if (folder := ROOT / name).exists()]
PYTHON = [ROOT / "conftest.py", *(path for folder in FOLDERS for path in sorted(folder.rglob("*.py")))]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = [ROOT / name for name in ("pyproject.toml", "tox.ini", "CMakeLists.txt", ".pre-commit-config.yaml")]

# A docstring begins with what a function does: return, compute, check, raise, build, convert, run.
WRONG_BEGINNINGS = re.compile(r"(Tell|Give|Make sure|Let|Say|Ask)\b")
WRONG_WORDS = re.compile(r"(?<!there )\bis no (?!longer)|\b(nobody|everybody|whoever|whom)\b", re.IGNORECASE)
MOST_WORDS = 30


def docstrings(tree: ast.AST) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def comments(text: str) -> str:
    """Return the comments of a Python file, which may continue on the next line."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return " ".join(token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT)


def paragraphs(text: str) -> Iterator[str]:
    """Yield the prose of a Markdown page: its paragraphs, headings, items of lists and cells of tables.

    Blocks of code are left out, a span of code becomes one word, and of a link its text remains.
    """
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"(`+)(.+?)\1", "code", text, flags=re.DOTALL)
    text = re.sub(r"!?\[([^]]*)\](\([^)]*\))?", r"\1", text)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|#]|\d+\.) ?)", text):
        yield from (" ".join(cell.split()) for cell in (block.split("|") if block.startswith("|") else [block]))


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a page."""
    for paragraph in paragraphs(text):
        yield from re.split(r"(?<=[.?!])[*)\"']*\s+", paragraph)


def words_of(sentence: str) -> int:
    return len(re.findall(r"\w[^\s/]*", sentence))


def named(paths: list[Path]) -> list[object]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


@pytest.mark.parametrize("path", named(PYTHON))
def test_docstrings_begin_with_a_standard_verb(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert [text.splitlines()[0] for text in docstrings(tree) if WRONG_BEGINNINGS.match(text)] == []


@pytest.mark.parametrize("path", named(PYTHON))
def test_words_of_code_are_plain(path: Path) -> None:
    text = path.read_text()
    prose = [*docstrings(ast.parse(text)), comments(text)]
    if path != Path(__file__):  # which names the words in a pattern, and in no prose
        assert [found[0] for one in prose for found in WRONG_WORDS.finditer(" ".join(one.split()))] == []


@pytest.mark.parametrize("path", named([*PAGES, *(path for path in OTHERS if path.exists())]))
def test_words_of_pages_are_plain(path: Path) -> None:
    text = " ".join(path.read_text().split())
    assert [found[0] for found in WRONG_WORDS.finditer(text)] == []


@pytest.mark.parametrize("path", named(PAGES))
def test_sentences_of_pages_are_short(path: Path) -> None:
    long = [one for one in sentences(path.read_text()) if words_of(one) > MOST_WORDS]
    assert long == []


def test_sentences_are_found_and_counted() -> None:
    page = """
# Title

One `a b` [two](three four). Five
six!

```
code. code.
```
- seven (eight)
- nine

| ten | a/b |
"""
    assert [one for one in sentences(page) if one] == [
        "# Title",
        "One code two.",
        "Five six!",
        "- seven (eight)",
        "- nine",
        "ten",
        "a/b",
    ]
    assert [words_of(one) for one in ("# Title", "One code two.", "- seven (eight)", "a/b", "it's well-known")] == [
        1,
        3,
        2,
        2,
        2,
    ]
