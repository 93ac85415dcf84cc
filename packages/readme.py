"""Builds the README that package indexes show: pyproject.toml names this file as the provider of `readme`."""

import re
from collections.abc import Mapping
from pathlib import Path

# An image, or a link to a heading or a file of the repository. An index has none of them.
_IMAGE = re.compile(r"^!\[[^]]*\]\((?!https?:)[^)]*\)\n\n", re.MULTILINE)
_LINK = re.compile(r"\[([^]]*)\]\((?!https?:)[^)]*\)")
# Sections and sentences that need a clone of the repository, and what an index shows in their place.
_OF_A_CLONE = [
    (
        r"^From a clone of this repository:\n\n```\n.*?^```\n",
        "```\npython3 -m pip install seqbatch\npython3 -m seqbatch\n```\n",
    ),
    (r"^Run Python outside of the clone.*?\n\n", ""),
    (r"^## Try it on real data\n.*?(?=^## )", ""),
    (r"^## Work on it\n.*?(?=^## )", ""),
    (
        r"^(## Read on\n\n)",
        r"\1These pages are in the folder `docs` of the source distribution, `seqbatch-*.tar.gz`:\n\n",
    ),
]


def dynamic_metadata(settings: Mapping[str, object], project: Mapping[str, object]) -> dict[str, dict[str, str]]:
    """Return README.md as an index shows it: with the text of relative links, and without what needs the repository."""
    text = Path("README.md").read_text(encoding="utf-8")
    for part, replacement in _OF_A_CLONE:
        text, number = re.subn(part, replacement, text, flags=re.MULTILINE | re.DOTALL)
        assert number == 1, f"README.md has {number} parts like {part}"
    return {"readme": {"content-type": "text/markdown", "text": _LINK.sub(r"\1", _IMAGE.sub("", text))}}
