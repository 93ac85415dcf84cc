"""accelerate: what it gathers, broadcasts, reduces and dispatches is right, or an error, in one process and in two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SCRIPT = TESTS / "ranks" / "gathering.py"
SECONDS = 240
CHECKS = [
    "gathered",
    "gathered objects",
    "gathered for metrics",
    "gathered for metrics in containers",
    "padded",
    "broadcasts",
    "reduced",
    "moved",
    "parts",
]


def run(processes: int, *options: str) -> tuple[int, str]:
    """Run the script in one process, or in several by torchrun; give the exit status and all that they print."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    process = subprocess.Popen(
        [sys.executable, *(torchrun if processes > 1 else []), str(SCRIPT), *options],
        env=os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        printed, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()  # upon which torchrun ends the others
        printed, _ = process.communicate()
        pytest.fail(f"not done after {SECONDS} seconds:\n{printed}")
    return process.returncode, printed


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_gathered_is_right_or_an_error(processes: int) -> None:
    status, printed = run(processes)
    assert status == 0, printed
    assert [line for line in printed.splitlines() if line.endswith(": passed")] == [f"{one}: passed" for one in CHECKS]


@pytest.mark.parametrize(
    ("processes", "form", "split", "said"),
    [
        (1, "batch", "whole", "TypeError: Can only find the batch size of tensors but got <class 'seqbatch"),
        (1, "batch", "split", "TypeError: Can only find the batch size of tensors but got <class 'seqbatch"),
        (2, "batch", "whole", "TypeError: Can only concatenate tensors but got <class 'seqbatch"),
        (2, "batch", "split", "TypeError: Unsupported types (<class 'seqbatch"),
        (2, "dict", "whole", "TypeError: Can only concatenate tensors but got <class 'seqbatch"),
        (2, "dict", "split", "TypeError: Unsupported types (<class 'seqbatch"),
    ],
)
def test_a_loader_that_dispatches_batches_raises(processes: int, form: str, split: str, said: str) -> None:
    status, printed = run(processes, form, split)
    assert status == 1, printed
    assert said in printed
    assert "labels" not in printed  # not one batch came out


@pytest.mark.parametrize("split", ["whole", "split"])
def test_in_one_process_dispatching_a_dict_changes_nothing(split: str) -> None:
    status, printed = run(1, "dict", split)
    assert status == 0, printed
    assert [line for line in printed.splitlines() if line.startswith("labels")] == [
        "labels [0, 1], lengths (3, 0)",
        "labels [2, 3], lengths (5, 1)",
        "labels [4, 5], lengths (2, 4)",
        "labels [6], lengths (2,)",
    ]
