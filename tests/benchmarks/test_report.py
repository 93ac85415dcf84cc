"""The benchmark runs, and the page on performance, README and the results that are kept say the same."""

import json
import re
import subprocess
import sys
from pathlib import Path

import attrs
import by_hand
import families
import pytest
import report
import sampling
from torch import Tensor, nn
from workloads import WIDTHS

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "docs" / "performance.json").read_text())
PAGE = (ROOT / "docs" / "performance.md").read_text()


def test_the_page_has_the_means_of_recurrent_layers() -> None:
    assert report.summary("layers", RESULTS["layers"]) in PAGE


@pytest.mark.parametrize("section", ["steps", "conversions", "families"])
def test_the_page_has_means_of_the_results_and_all_where_another_is_faster(section: str) -> None:
    header, line, *means = report.summary(section, RESULTS[section]).splitlines()
    shown = PAGE[PAGE.index(f"{header}\n{line}\n") :].partition("\n\n")[0].splitlines()[2:]
    assert [row for row in shown if row not in means] == []
    slower = [row for row in means if any(float(cell) < 1 for cell in row.strip("| ").split(" | ")[2:] if cell)]
    assert [row for row in slower if row not in shown] == []


@pytest.mark.parametrize("section", ["layers", "growth"])
def test_the_page_tells_of_every_case_where_another_is_faster(section: str) -> None:
    assert report.faster(section, RESULTS[section]) in PAGE


def test_the_page_on_training_has_the_table_of_sampling() -> None:
    assert sampling.table(RESULTS["sampling"]) in (ROOT / "docs" / "training.md").read_text()


@pytest.mark.parametrize(
    ("page", "quotes"),
    [
        (
            "README.md",
            {
                "lstm": "An LSTM is {} times as fast as packing by hand in inference, and {} times in training.",
                "gru": "For a GRU it is {} and {},",
                "rnn": "for an RNN {} and {}.",
            },
        ),
        (
            "docs/decisions/own_kernels.md",
            {"lstm": "| LSTM | {} | {} |", "gru": "| GRU | {} | {} |", "rnn": "| RNN | {} | {} |"},
        ),
    ],
)
def test_pages_quote_the_results(page: str, quotes: dict[str, str]) -> None:
    text = " ".join((ROOT / page).read_text().split())
    for kind, quote in quotes.items():
        results = [result for result in RESULTS["layers"] if result["layer"] == kind]
        means = [line.split(" | ")[2] for line in report.summary("layers", results).splitlines()[2:]]
        assert quote.format(*means) in text


def test_it_prints_and_draws_results(tmp_path: Path) -> None:
    options = ["--tables", "docs/performance.json", "--picture", str(tmp_path / "performance.svg")]
    command = [sys.executable, "benchmarks", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for section in ("layers", "steps", "conversions", "families"):
        assert report.table(section, RESULTS[section]) in done.stdout
    names = ["performance-growth.svg", "performance-sampling.svg", "performance.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        picture = (tmp_path / name).read_text()
        assert picture == (ROOT / "docs" / "pictures" / name).read_text()
        # Without black, white and a background it can be read on light pages and on dark ones.
        colours = {*re.findall(r"#\w{6}\b", picture)}
        assert colours & {"#757d85"}
        assert colours.isdisjoint(("#000000", "#ffffff"))
        assert 'style="fill: none"' in picture.split('id="patch_1"')[1].split("</g>")[0]


def test_it_runs(tmp_path: Path) -> None:
    results, picture = tmp_path / "results.json", tmp_path / "picture.png"
    what = ["--what", "layers", "steps", "conversions", "families", "--kinds", "gru", "--families", "BatchNorm1d"]
    options = [*what, "--only", "tiny", "--rounds", "1", "--json", str(results), "--picture", str(picture)]
    command = [sys.executable, "benchmarks", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| gru | train | tiny |" in done.stdout
    assert "| BatchNorm1d | train | tiny, 8 x 5-40 x 64 |" in done.stdout
    found = json.loads(results.read_text())
    assert ["ONNX Runtime" in result["ms"] for result in found["layers"]] == [True, False]  # which trains nothing
    assert [[*result["ms"]] for result in found["steps"]] == [["seqbatch", "itself"]] * 12
    # In training what a sequence gets depends on the others, so there is no way one by one.
    contenders = [[*result["ms"]] for result in found["families"]]
    assert contenders == [["seqbatch", "padded by hand", "one by one"], ["seqbatch", "padded by hand"]]
    assert picture.stat().st_size > 10_000


def test_the_layer_of_a_family_is_not_timed_where_another_gives_other_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = attrs.evolve(families.FAMILIES["BatchNorm1d"], by_hand=by_hand.step_samples)  # with padding among the steps
    monkeypatch.setitem(families.FAMILIES, "BatchNorm1d", wrong)
    families.measure("BatchNorm1d", WIDTHS[0], False, 1, "cpu")
    with pytest.raises(AssertionError, match="not close"):
        families.measure("BatchNorm1d", WIDTHS[0], True, 1, "cpu")


def test_the_layer_of_a_family_is_not_timed_where_another_gives_other_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def halved(layer: nn.Module, sequences: list[Tensor]) -> list[Tensor]:
        return [(output + output.detach()) / 2 for output in by_hand.steps(layer, sequences)]

    wrong = attrs.evolve(families.FAMILIES["Linear"], by_hand=halved)
    monkeypatch.setitem(families.FAMILIES, "Linear", wrong)
    families.measure("Linear", WIDTHS[0], False, 1, "cpu")
    with pytest.raises(AssertionError, match="not close"):
        families.measure("Linear", WIDTHS[0], True, 1, "cpu")
