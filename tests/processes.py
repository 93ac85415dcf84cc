"""Scripts in processes of their own, which must end in bounded time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SECONDS = 120


def torchrun(script: Path, *options: str) -> tuple[int, str]:
    """Run a script in two processes; give the exit status and all that they print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*command, str(script), *options],
        env=os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        printed, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()  # upon which it ends the two
        printed, _ = process.communicate()
        pytest.fail(f"not done after {SECONDS} seconds:\n{printed}")
    return process.returncode, printed
