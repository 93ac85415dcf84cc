"""Runs every Python snippet of README.md and of the pages in docs, each page from top to bottom as one program."""

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=["*.md"]).pytest()
# Which need that package installed; another test copies and runs them.
collect_ignore = ["docs/examples/plugin/tests"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore the warnings of other libraries in the page about them."""
    for item in items:
        if item.path.name == "with_other_libraries.md":
            # Libraries warn about their own settings, and about names that this version of torch deprecates.
            item.add_marker(pytest.mark.filterwarnings("ignore"))
