"""Builds the README that package indexes show: pyproject.toml names this file as the provider of `readme`."""

import re
from collections.abc import Mapping
from pathlib import Path

# An image, or a link to a heading or a file of the repository. An index has none of them.
_IMAGE = re.compile(r"^!\[[^]]*\]\((?!https?:)[^)]*\)\n\n", re.MULTILINE)
_LINK = re.compile(r"\[([^]]*)\]\((?!https?:)[^)]*\)")


def dynamic_metadata(settings: Mapping[str, object], project: Mapping[str, object]) -> dict[str, dict[str, str]]:
    """Return README.md with the text of relative links in their place, and without the pictures of the repository."""
    text = Path("README.md").read_text(encoding="utf-8")
    return {"readme": {"content-type": "text/markdown", "text": _LINK.sub(r"\1", _IMAGE.sub("", text))}}
