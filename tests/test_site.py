"""The site has every public name once in its reference, and the picture that its script draws."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in sorted((DOCS / "api").glob("*.md"))])
def test_the_reference_holds_every_public_name_once(page: Path) -> None:
    text = page.read_text()
    (name,) = re.findall(r"^\.\. module:: (\S+)$", text, re.MULTILINE)
    assert page.stem == name.rpartition(".")[2]
    described = re.findall(r"^\.\. auto(?:class|exception|function):: (\w+)$", text, re.MULTILINE)
    assert sorted(described) == sorted(importlib.import_module(name).__all__)


def test_every_public_module_has_a_page() -> None:
    package = Path(importlib.import_module("seqbatch").__path__[0])
    modules = {path.name for path in package.iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert {page.stem for page in (DOCS / "api").glob("*.md")} == {"seqbatch", *modules}


def test_the_picture_of_layouts_is_what_its_script_draws(tmp_path: Path) -> None:
    command = [sys.executable, str(DOCS / "pictures" / "layouts.py"), str(tmp_path / "layouts.svg")]
    subprocess.run(command, check=True)
    assert (tmp_path / "layouts.svg").read_bytes() == (DOCS / "pictures" / "layouts.svg").read_bytes()
