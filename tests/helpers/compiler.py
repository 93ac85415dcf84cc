"""The C++ compiler, for tests that build the kernels; CI has one."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The folder of cmake and ninja, where the virtual environment is not activated.
PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
SECONDS = 1200  # enough for the compiler on a busy machine

needs_compiler = pytest.mark.skipif(
    not (shutil.which("c++") or "CI" in os.environ), reason="needs a C++ compiler, which CI has"
)


def run(*command: str, **environment: str) -> str:
    """Run a program, and return what it prints."""
    environment = {**os.environ, "PATH": PATH, **environment}
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    done = subprocess.run(command, env=environment, stdout=pipe, stderr=both, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(folder: Path, *targets: str, **options: str) -> None:
    """Build targets of CMakeLists.txt in a folder, with these variables of CMake."""
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    run("cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *definitions)
    run("cmake", "--build", str(folder), "--target", *targets)
