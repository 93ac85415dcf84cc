"""The kernels under the sanitizers of the compiler: recurrent_test.cpp and rows_test.cpp are built and run."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The folder of cmake and ninja, where the virtual environment is not activated.
PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
MINUTES = 20  # enough for the compiler on a busy machine


@pytest.mark.skipif(not (shutil.which("c++") or "CI" in os.environ), reason="needs a C++ compiler, which CI has")
def test_kernels_equal_plain_loops_without_an_error_of_memory(tmp_path: Path) -> None:
    def run(*command: str) -> None:
        # The program leaves threads of OpenMP behind, whose memory is not a leak.
        environment = {**os.environ, "PATH": PATH, "OMP_WAIT_POLICY": "passive", "ASAN_OPTIONS": "detect_leaks=0"}
        pipe, both = subprocess.PIPE, subprocess.STDOUT
        done = subprocess.run(command, env=environment, stdout=pipe, stderr=both, text=True, timeout=60 * MINUTES)
        assert done.returncode == 0, done.stdout

    # Little optimization, because sanitizers make the compiler slow.
    options = ("-DSEQBATCH_TEST=ON", "-DCMAKE_BUILD_TYPE=Test", "-DCMAKE_CXX_FLAGS=-O1 -g1")
    run("cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja", *options)
    programs = ("recurrent_test", "rows_test")
    run("cmake", "--build", str(tmp_path), "--target", *programs)
    for program in programs:
        run(str(tmp_path / program))
