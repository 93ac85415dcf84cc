"""Installing from sources: with a C++ compiler the kernels are built, without one everything else is installed."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import compiler
from compiler import needs_compiler

ROOT = Path(__file__).parents[2]
SECONDS = 1200  # for the compiler on a busy machine
USE = """
import torch
from torch import nn
from seqbatch import _kernels, encode

lstm, xs = nn.LSTM(5, 3), [torch.randn(4, 5), torch.randn(7, 5)]
for x, hidden in zip(xs, encode(lstm, xs)):
    torch.testing.assert_close(hidden, lstm(x)[0])
print(_kernels.IS_THERE)
"""


def run(folder: Path, *arguments: str, **environment: str) -> str:
    """Run Python in a folder, and return what it prints."""
    # The folder of cmake and ninja, where the virtual environment is not activated.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PATH": path, **environment}
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    done = subprocess.run(command, cwd=folder, env=environment, stdout=pipe, stderr=both, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout
    return done.stdout


def install(source: Path, folder: Path, *more: str, **environment: str) -> tuple[str, str]:
    """Install from a source into a folder; return the tag of the wheel and what pip prints."""
    options = ("--no-deps", "--no-build-isolation", "--no-input", "--disable-pip-version-check", "--no-cache-dir")
    command = ("-m", "pip", "install", "--verbose", *options, *more, "--target", str(folder), str(source))
    printed = run(ROOT, *command, **environment)
    (wheel,) = folder.glob("seqbatch-*.dist-info/WHEEL")
    return wheel.read_text().split("Tag: ")[1].split()[0], printed


def check_that_no_function_is_shared_by_instruction_sets(folder: Path) -> None:
    """The linker keeps one of several weak functions, and that for AVX-512 would crash on an older processor."""
    objects = [*folder.rglob("recurrent.cpp.o")]
    assert "baseline" in {path.relative_to(folder).parts[1].removesuffix(".dir") for path in objects}
    nm = compiler.run("c++", "-print-prog-name=nm").strip()
    for path in objects:
        symbols = compiler.run(nm, "--demangle", str(path))
        assert " T seqbatch::" in symbols
        assert re.findall(r" W (.*)", symbols) == []


@needs_compiler
def test_sources_and_a_compiler_make_kernels_for_this_platform(tmp_path: Path) -> None:
    program = f"from scikit_build_core.build import build_sdist; build_sdist({str(tmp_path)!r})"
    run(ROOT, "-c", program)
    (source,) = tmp_path.glob("seqbatch-*.tar.gz")
    folder, build = tmp_path / "installed", tmp_path / "build"
    tag, printed = install(source, folder, f"--config-settings=build-dir={build}")
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert tag == f"cp311-abi3-{platform}"
    assert "seqbatch was built with its kernels." in printed
    assert (folder / "seqbatch" / "py.typed").exists()
    assert run(tmp_path, "-c", USE, PYTHONPATH=str(folder)) == "True\n"
    assert "kernels   in use, for " in run(tmp_path, "-m", "seqbatch", PYTHONPATH=str(folder))
    assert {path.name for path in folder.iterdir() if path.suffix != ".dist-info"} == {"seqbatch"}
    check_that_no_function_is_shared_by_instruction_sets(build)


def test_without_a_compiler_all_but_the_kernels_is_installed(tmp_path: Path) -> None:
    folder = tmp_path / "installed"
    tag, printed = install(ROOT, folder, CXX=str(tmp_path / "no-compiler"))
    assert tag == "py3-none-any"
    assert "seqbatch was built WITHOUT its kernels: there is no C++ compiler with OpenMP, or " in printed
    assert [*folder.glob("seqbatch/_kernels/*.so")] == []
    assert run(tmp_path, "-c", USE, PYTHONPATH=str(folder)) == "False\n"
    reported = run(tmp_path, "-m", "seqbatch", PYTHONPATH=str(folder))
    assert "kernels   not built, because there was no C++ compiler" in reported
