"""Smoke test of an installed seqbatch: `python -I packages/smoke.py "in use"`.

The argument is how the line about the kernels must begin in what `python -m seqbatch` prints.
"""

import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import torch
from torch import nn

from seqbatch import encode


def run_readme() -> None:
    """Run the first snippet of the README that the package index shows."""
    found = re.search(
        r"^```python\n(.*?)^```$", str(metadata("seqbatch").json["description"]), re.MULTILINE | re.DOTALL
    )
    assert found
    exec(found[1], {})


def check_results() -> None:
    """Check that outputs and gradients of each sequence are those of the sequence alone."""
    lstm = nn.LSTM(5, 3, num_layers=2, bidirectional=True)
    xs = [torch.randn(steps, 5, requires_grad=True) for steps in (4, 1, 7)]
    for x, outputs in zip(xs, encode(lstm, xs), strict=True):
        alone, _ = lstm(x)
        torch.testing.assert_close(outputs, alone)
        grads = [torch.autograd.grad(one.square().sum(), x, retain_graph=True) for one in (outputs, alone)]
        torch.testing.assert_close(*grads)
    assert encode(lstm, [torch.zeros(0, 5)])[0].shape == (0, 6)


def check_openmp() -> None:
    """Check on Linux that the kernels and torch share one OpenMP runtime, because two slow each other."""
    maps = Path("/proc/self/maps")
    if maps.exists():
        found = {line.split()[-1] for line in maps.read_text().splitlines() if re.search(r"/lib(g|i)?omp", line)}
        assert len(found) == 1, found


def check_report(kernels: str) -> None:
    """Print the report, and check what it says about the kernels."""
    command = [sys.executable, "-I", "-m", "seqbatch"]
    report = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(report, flush=True)
    assert f"\nkernels   {kernels}" in report


if __name__ == "__main__":
    run_readme()
    check_results()
    check_openmp()
    check_report(sys.argv[1])
