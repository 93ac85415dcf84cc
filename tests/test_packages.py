"""What package indexes show of seqbatch, and which versions of torch its packages are tried with."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def project() -> dict[str, Any]:
    """Return the table `project` of pyproject.toml as the build reads it, with what it computes."""
    command = [sys.executable, "-m", "scikit_build_core.build", "project-table"]
    table: dict[str, Any] = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    return table


def test_the_readme_of_an_index_has_no_links_that_break_there() -> None:
    readme = project()["readme"]
    assert readme["content-type"] == "text/markdown"
    text = readme["text"]
    links = re.findall(r"!?\[[^]]*\]\(([^)]*)\)", text)
    assert links == [link for link in re.findall(r"\]\((.*?)\)", README) if link.startswith("https:")]
    assert links
    assert SNIPPETS.findall(text) == SNIPPETS.findall(README)
    assert "- Tutorial: from one sequence to many" in text


def test_the_readme_of_an_index_says_how_to_install_and_needs_no_clone() -> None:
    text = project()["readme"]["text"]
    assert "## Install\n\n```\npython3 -m pip install seqbatch\npython3 -m seqbatch\n```\n" in text
    assert re.findall(r"clone|CONTRIBUTING|tox\b.*|\.venv", text) == []
    titles = re.findall(r"^## .*$", text, re.MULTILINE)
    assert titles[-3:] == ["## Install", "## Read on", "## Licence"]


def test_the_changelog_has_the_version_with_its_date() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    unreleased, newest = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[:2]
    assert unreleased == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", newest)


def test_the_readme_runs_with_what_it_says_is_needed(tmp_path: Path) -> None:
    needless = ["numpy", "hypothesis", "matplotlib", "onnx", "onnxscript", "tqdm"]
    program = "\n".join([f"import sys; sys.modules.update(dict.fromkeys({needless}))", *SNIPPETS.findall(README)])
    # Without warnings, because torch warns if it finds no NumPy.
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("extra", "library"), [("onnx", "onnxscript"), ("onnx", "onnx"), ("testing", "hypothesis")], ids=str
)
def test_without_an_extra_its_module_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, extra: str, library: str
) -> None:
    for module in [*sys.modules]:
        if module.startswith((f"seqbatch.{extra}", f"{library}.")):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    said = re.escape(f'Install what seqbatch.{extra} needs: pip install "seqbatch[{extra}]"')
    with pytest.raises(ModuleNotFoundError, match=rf"\b{library}\b.*{said}$") as raised:
        importlib.import_module(f"seqbatch.{extra}")
    assert raised.value.name == library


def test_the_oldest_torch_that_packages_are_tried_with_is_the_oldest_that_is_allowed() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (oldest,) = [one.removeprefix("torch>=") for one in dependencies if one.startswith("torch")]
    (versions,) = re.findall(r"packages/check\.py \{posargs:(.+)\}", (ROOT / "tox.ini").read_text())
    assert versions.split()[0].startswith(f"{oldest}.")


def test_the_page_on_compatibility_has_every_environment_and_the_versions_of_other_libraries() -> None:
    page, tox = (ROOT / "docs" / "compatibility.md").read_text(), (ROOT / "tox.ini").read_text()
    factors = ",".join(re.findall(r"^\[testenv:compat-.*\]$", tox, re.MULTILINE))
    environments = [f"{kind}{one}" for kind, ones in re.findall(r"(\w+)\{(.+?)\}", factors) for one in ones.split(",")]
    assert "torch2.10" in environments
    assert [name for name in environments if f"| `compat-{name}` |" not in page] == []
    table = page.partition("| library | version |\n")[2].partition("\n\n")[0].splitlines()[1:]
    pins = [
        f"{name}=={version}".lower().replace(" ", "")
        for names, versions in (line.strip("| ").split(" | ") for line in table)
        for name, version in zip(names.split(", "), versions.split(", "), strict=True)
    ]
    assert "torchdata==0.11.0" in pins
    assert set(pins) <= {*(ROOT / "constraints.txt").read_text().splitlines()}
