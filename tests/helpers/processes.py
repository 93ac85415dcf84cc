"""Scripts in processes of their own, which must end in bounded time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import seqbatch

HELPERS = Path(__file__).parent
SECONDS = 600  # for the longest of them on a busy machine
# They import the package that is tested, and not another that may be installed.
PATHS = os.pathsep.join([str(HELPERS), str(Path(seqbatch.__file__).parents[1])])


def torchrun(script: Path, *options: str, processes: int = 2) -> tuple[int, str]:
    """Run a script in several processes, or in one without torchrun; return the exit status and all that they print."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    process = subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), str(script), *options],
        env=os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
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
