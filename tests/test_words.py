"""The words of docstrings, comments and pages: standard verbs, plain grammar, and short sentences in the pages."""

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("seqbatch", "tests", "benchmarks", "docs", "packages")
FOLDERS = [folder for name in NAMES if (folder := ROOT / name).exists()]
PYTHON = [ROOT / "conftest.py", *(path for folder in FOLDERS for path in sorted(folder.rglob("*.py")))]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = [ROOT / name for name in ("pyproject.toml", "tox.ini", "CMakeLists.txt", ".pre-commit-config.yaml")]

# A docstring begins with what a function does: return, compute, check, raise, build, convert, run.
WRONG_BEGINNINGS = re.compile(r"(Tell|Give|Have|Make sure|Let|Say|Ask)\b")
WRONG_WORDS = re.compile(
    r"(?<!there )\bis no (?!longer)|\b(nobody|everybody|whoever|whom|tells?|told)\b|\bof no steps\b", re.IGNORECASE
)
WRONG_ORDER = re.compile(r"(?:^|[.?!] )(?:Of|Nor|So many|So much)\b")
MOST_WORDS = 30


def docstrings(tree: ast.AST) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def names_of_tests(tree: ast.AST) -> Iterator[str]:
    """Yield the names of tests as prose."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name.replace("_", " ")


def comments(text: str) -> Iterator[str]:
    """Yield the comments of a Python file; lines of comments below each other are one comment."""
    last, lines = (0, 0), [""]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if token.start != (last[0] + 1, last[1]):
                yield " ".join(lines)
                lines = []
            last = token.start
            lines.append(token.string.lstrip("# "))
    yield " ".join(lines)


def wrong_words(prose: Iterable[str]) -> list[str]:
    """Return the words that prose must not have, and the beginnings of sentences with an inverted order."""
    texts = [" ".join(one.split()) for one in prose]
    return [found[0] for text in texts for wrong in (WRONG_WORDS, WRONG_ORDER) for found in wrong.finditer(text)]


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
def test_words_of_code_are_plain(path: Path) -> None:
    text = path.read_text()
    found = [*docstrings(ast.parse(text))]
    assert [one.splitlines()[0] for one in found if WRONG_BEGINNINGS.match(one)] == []
    assert wrong_words([*found, *comments(text)]) == []


@pytest.mark.parametrize("path", named([*PAGES, *(path for path in OTHERS if path.exists())]))
def test_words_of_pages_are_plain(path: Path) -> None:
    assert wrong_words([path.read_text()]) == []


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


def test_wrong_words_are_found() -> None:
    prose = [
        "It is no list. Nobody\nwas told.",
        "There is no list. It is no longer. Offsets tell",
        "of no steps",
        "Of two.",
    ]
    assert wrong_words(prose) == ["is no ", "Nobody", "told", "tell", "of no steps", "Of"]
    source = "x = 1  # one\n# two\n# three\n\n# four\n"
    assert [one for one in comments(source) if one] == ["one", "two three", "four"]
    assert [*docstrings(ast.parse("def f():\n    'Give.'"))] == ["", "Give."]
    assert WRONG_BEGINNINGS.match("Give.")
    assert not WRONG_BEGINNINGS.match("Given lengths.")
