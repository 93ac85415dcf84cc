"""The errors of mypy and pyright: none in correct.py, and one on each line marked wrong in wrong.py.

Run where both checkers are installed: `python -m pytest tests/typing`.
"""

import json
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

import seqbatch

HERE = Path(__file__).parent
# Where the seqbatch is that this interpreter imports, if that is not where the checkers look anyway.
CHECKOUT = [path for path in [str(Path(seqbatch.__file__).parents[1])] if path not in site.getsitepackages()]

Reports = dict[str, dict[int, list[str]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a user's, that is far from any settings and from the sources."""
    folder = tmp_path_factory.mktemp("typing")
    for name in ("correct.py", "wrong.py"):
        shutil.copy(HERE / name, folder)
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": CHECKOUT}))
    return folder


@pytest.fixture(scope="module", params=["mypy", "pyright"])
def reports(request: pytest.FixtureRequest, folder: Path) -> Reports:
    """What a checker reports on both files: the messages of each line."""
    checkers: dict[str, Callable[[Path], Reports]] = {"mypy": _run_mypy, "pyright": _run_pyright}
    return checkers[request.param](folder)


def test_what_is_correct_passes(reports: Reports) -> None:
    assert reports["correct.py"] == {}


def test_what_is_wrong_is_reported(reports: Reports) -> None:
    lines = dict(enumerate((HERE / "wrong.py").read_text().splitlines(), 1))
    marked = {number for number, line in lines.items() if line.endswith("  # wrong")}
    reported = reports["wrong.py"]
    assert len(marked) > 100
    assert [lines[number].strip() for number in sorted(marked - reported.keys())] == [], "wrong, and not reported"
    assert {lines[number]: reported[number] for number in sorted(reported.keys() - marked)} == {}, "not wrong"


def test_all_that_is_public_has_a_type(folder: Path) -> None:
    output = _run("pyright", "--verifytypes", "seqbatch", "--ignoreexternal", "--outputjson", folder=folder)
    report = json.loads(output)["typeCompleteness"]
    assert {module["name"] for module in report["modules"]} >= {"seqbatch", "seqbatch.errors", "seqbatch.layers"}
    unknown = [
        f"{symbol['name']}: {problem['message']}"
        for symbol in report["symbols"]
        for problem in symbol["diagnostics"]
        if problem["severity"] == "error"
    ]
    assert unknown == []
    assert report["completenessScore"] == 1


def _run_mypy(folder: Path) -> Reports:
    options = ["--strict", "--config-file=", "--follow-imports=silent", "--output=json"]
    output = _run("mypy", *options, "correct.py", "wrong.py", folder=folder, MYPYPATH=os.pathsep.join(CHECKOUT))
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return _by_line((entry["file"], entry["line"], entry) for entry in found)


def _run_pyright(folder: Path) -> Reports:
    output = _run("pyright", "--pythonpath", sys.executable, "--project", ".", "--outputjson", folder=folder)
    found = json.loads(output)["generalDiagnostics"]
    return _by_line((Path(entry["file"]).name, entry["range"]["start"]["line"] + 1, entry) for entry in found)


def _by_line(found: Iterable[tuple[str, int, Mapping[str, Any]]]) -> Reports:
    """Sort messages into files and lines; notes only explain an error, and warnings count in no user's check."""
    reports: Reports = {"correct.py": {}, "wrong.py": {}}
    for name, line, entry in found:
        if entry["severity"] == "error":
            reports[name].setdefault(line, []).append(entry["message"])
    return reports


def _run(checker: str, *arguments: str, folder: Path, **variables: str) -> str:
    """Run a checker as a user would, who has not set it up."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(CHECKOUT), **variables)
    # `pyright --verifytypes` asks the first python on the path where packages are, and not the interpreter given.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    command = [sys.executable, "-m", checker, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), f"{checker} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout
