"""Runs every Python snippet of README.md and of the pages in docs, each page from top to bottom as one program."""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=["*.md"]).pytest()
# Which need that package installed; another test copies and runs them.
collect_ignore = ["docs/examples/plugin/tests"]
