"""The benchmark runs, and the page on performance, README and the results that are kept say the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import report

ROOT = Path(__file__).parents[1]
RESULTS = json.loads((ROOT / "docs" / "performance.json").read_text())
PAGE = (ROOT / "docs" / "performance.md").read_text()


@pytest.mark.parametrize("section", ["layers", "conversions"])
def test_the_page_has_the_tables_of_the_results(section: str) -> None:
    assert report.table(section, RESULTS[section]) in PAGE


@pytest.mark.parametrize("section", ["layers", "growth"])
def test_the_page_tells_of_every_case_where_another_is_faster(section: str) -> None:
    assert report.faster(section, RESULTS[section]) in PAGE


def test_readme_quotes_the_results() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    for kind, first in (("LSTM", "times faster in inference and"), ("GRU", "and"), ("RNN", "and")):
        table = report.table("layers", [result for result in RESULTS["layers"] if result["kind"] == kind.lower()])
        means = [line.split(" | ")[4] for line in table.splitlines() if "**geometric mean**" in line]
        assert f"{kind} {means[0]} {first} {means[1]}" in readme


def test_it_runs(tmp_path: Path) -> None:
    results, picture = tmp_path / "results.json", tmp_path / "picture.png"
    options = ["--what", "layers", "conversions", "--kinds", "gru", "--only", "tiny", "--rounds", "1"]
    command = [sys.executable, "tests/bench", *options, "--json", str(results), "--picture", str(picture)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| gru | train | tiny |" in done.stdout
    assert len(json.loads(results.read_text())["layers"]) == 2
    assert picture.stat().st_size > 10_000
