"""Training in two processes, started by torchrun: as in one, and an error in bounded time where one of them fails."""

import subprocess
import sys
from pathlib import Path

import pytest
from processes import HELPERS, SECONDS, torchrun

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "japanese_vowels_distributed.py"


@pytest.fixture(scope="module")
def checked() -> tuple[int, str]:
    """Return the output of the checks in two processes, all in one run."""
    return torchrun(HELPERS / "ranks" / "checks.py")


@pytest.mark.parametrize(
    "check",
    [
        "gradients",
        "gradients of some steps",
        "gradients of shards",
        "batches given back",
        "gradients added up",
        "weights",
        "sharded as one",
        "sharded layers",
        "some processes only",
        "dtypes",
        "resumed",
        "part of a part",
        "made before the group",
    ],
)
def test_two_processes_are_as_one(check: str, checked: tuple[int, str]) -> None:
    assert f"{check}: passed" in checked[1].splitlines(), checked[1]


def test_nothing_else_was_checked(checked: tuple[int, str]) -> None:
    status, printed = checked
    assert status == 0, printed
    assert printed.count(": passed") == 13


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("dies", "exitcode  : 7"),
        ("wrong", "must have features (5,), as samples[0]; got (6,)."),
        ("late", "Timed out waiting 3000ms"),
    ],
)
def test_a_fault_in_one_process_ends_both(fault: str, said: str) -> None:
    status, printed = torchrun(HELPERS / "ranks" / "faults.py", fault)
    assert status == 1
    assert said in printed


def results(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith(("train loss", "test loss"))]


def test_the_example_learns_in_two_processes() -> None:
    status, printed = torchrun(EXAMPLE, "--minimum-accuracy", "97")
    assert status == 0, printed
    assert "training: 100%" in printed
    assert printed.count("processes: 2, device: c") == 1
    assert len(results(printed)) == 2


def test_the_example_goes_on_where_it_stopped(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), "--epochs", "1", "--checkpoint", str(tmp_path / "checkpoint.pt")]
    first, second = (
        subprocess.run([*command, *more], capture_output=True, text=True, timeout=SECONDS, check=False)
        for more in ([], ["--minimum-accuracy", "100"])
    )
    assert first.returncode == 0, first.stderr
    assert "0/1" in first.stderr
    assert second.returncode == 1
    assert "0/1" not in second.stderr, "it was trained already"
    assert "is below 100 %" in second.stderr
    assert results(first.stdout) == results(second.stdout)
    other = subprocess.run([*command, "--epochs", "2"], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert other.returncode == 1
    assert other.stderr.endswith("error: the checkpoint is that of 1 epochs; pass --epochs 1\n")
    assert len(results(first.stdout)) == 2
