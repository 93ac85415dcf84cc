"""Loading the library: the choice of an instruction set, the reasons why it is missing, and the mirrored structures."""

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kernel_calls import run_lstm
from torch import nn

import seqbatch
from seqbatch import SeqbatchValueError, _kernels

HEADERS = [*(Path(__file__).parents[2] / "seqbatch" / "_kernels").glob("*.h")]
SETS = ["baseline", "avx2", "avx512"]
ONE_RUNTIME = """
from seqbatch import _kernels

assert _kernels.IS_THERE
print(*{line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line or "libomp" in line})
"""


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python where seqbatch is the one that these tests run with."""
    environment = {**os.environ, "PYTHONPATH": str(Path(seqbatch.__file__).parents[1]), **environment}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., _kernels.Kernels]:
    """Return a function that loads a library with the given functions."""
    (tmp_path / "library.abi3.so").touch()

    def load(choice: str = "", **functions: Any) -> _kernels.Kernels:
        monkeypatch.setattr(ctypes, "CDLL", lambda path: SimpleNamespace(**functions))
        module = functions.pop("module", SimpleNamespace(INTERFACE=_kernels._INTERFACE))
        monkeypatch.setattr(_kernels, "_load_module", lambda path: module)
        return _kernels.load([str(tmp_path)], choice)

    return load


def functions(best: int = 0, *, attention: int = 0, rows: int = 0, **module: Any) -> dict[str, Any]:
    """Make the functions of a library for an instruction set; the sizes of its structures differ by the given bytes."""
    runs = ("attend", "attend_backward")
    names = [f"{run}_{dtype}" for run in runs for dtype in ("float", "double")]
    run = {f"seqbatch_{name}": SimpleNamespace() for name in (*names, "copy", "measure", "sort", "unpack")}
    sizes = {
        "attention": ctypes.sizeof(_kernels.Attention) + attention,
        "rows": ctypes.sizeof(_kernels.Rows) + rows,
    }
    told = {f"seqbatch_{name}_size": lambda size=size: size for name, size in sizes.items()}
    return {"seqbatch_isa": lambda: best, **told, **run, **module}


def test_the_kernels_of_this_processor_are_in_use() -> None:
    assert _kernels.IS_THERE, _kernels.MISSING
    assert _kernels.MISSING == ""
    assert SETS[_kernels.ISA_NUMBER] == _kernels.ISA


@pytest.mark.parametrize("name", SETS)
def test_a_lower_instruction_set_can_be_chosen(name: str) -> None:
    best = _kernels.load(_kernels.__path__, "").isa
    isa = SETS.index(name)
    if isa > best:
        with pytest.raises(SeqbatchValueError, match=f"must be at most {SETS[best]}, .*; got {name}\\.$"):
            _kernels.load(_kernels.__path__, name)
        return
    assert _kernels.load(_kernels.__path__, name).isa == isa
    lstm, values, lengths = nn.LSTM(5, 19), torch.randn(20, 5), [4, 9, 7]
    for x, hidden in zip(values.split(lengths), run_lstm(lstm, values, lengths, 2, isa).split(lengths), strict=True):
        torch.testing.assert_close(hidden, lstm(x)[0])


def test_a_set_that_the_processor_lacks_is_an_error(fake: Callable[..., _kernels.Kernels]) -> None:
    message = (
        "The environment variable SEQBATCH_KERNELS must be at most avx2, which is the best instruction set of this "
        "processor in the library; got avx512."
    )
    with pytest.raises(SeqbatchValueError, match=f"^{re.escape(message)}$"):
        fake("avx512", **functions(1))
    assert fake("avx2", **functions(1)).isa == 1


def test_a_word_that_is_not_known_is_an_error() -> None:
    message = "The environment variable SEQBATCH_KERNELS must be one of 0, baseline, avx2, avx512; got 'sse'."
    with pytest.raises(SeqbatchValueError, match=f"^{re.escape(message)}$"):
        _kernels.load(_kernels.__path__, "sse")


def test_zero_switches_them_off() -> None:
    assert _kernels.load(_kernels.__path__, "0") == _kernels.Kernels("switched off by SEQBATCH_KERNELS=0")


def test_a_python_without_the_limited_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, "EXTENSION_SUFFIXES", [".cpython-313t-x86_64-linux-gnu.so"])
    reason = "not loaded, because this Python has no limited API, as if it is free-threaded"
    assert _kernels.load(_kernels.__path__, "") == _kernels.Kernels(reason)


def test_no_library(tmp_path: Path) -> None:
    remedy = "install them (GCC or Clang; python3-dev on Debian), and then seqbatch again"
    why = "there was no C++ compiler with OpenMP, or no headers of Python, at installation"
    reason = f"not built, because {why}: {remedy}"
    assert _kernels.load([str(tmp_path)], "") == _kernels.Kernels(reason)


def test_no_library_in_a_checkout(tmp_path: Path) -> None:
    folder = tmp_path / "seqbatch" / "_kernels"
    folder.mkdir(parents=True)
    (folder / "recurrent.cpp").touch()
    remedy = "run Python in another folder, where it imports the installed seqbatch"
    assert _kernels.load([str(folder)], "") == _kernels.Kernels(f"not built in the checkout {tmp_path}: {remedy}")


def test_a_file_that_is_not_a_library(tmp_path: Path) -> None:
    (tmp_path / "library.abi3.so").write_text("not a library")
    assert _kernels.load([str(tmp_path)], "").missing.startswith("not loaded, because of the error: ")


def test_a_library_without_the_functions(fake: Callable[..., _kernels.Kernels]) -> None:
    assert fake().missing.startswith("not loaded, because of the error: ")


OTHER_SOURCES: dict[str, dict[str, Any]] = {
    "attention": {"attention": 8},
    "rows": {"rows": 8},
    "another interface": {"module": SimpleNamespace(INTERFACE=0)},
    "none": {"module": SimpleNamespace()},
}


@pytest.mark.parametrize("sizes", OTHER_SOURCES.values(), ids=OTHER_SOURCES)
def test_a_library_of_other_sources(fake: Callable[..., _kernels.Kernels], sizes: dict[str, Any]) -> None:
    reason = "not loaded, because the library was built from other sources: install seqbatch again"
    assert fake(**functions(**sizes)) == _kernels.Kernels(reason)


@pytest.mark.parametrize("structure", [_kernels.Attention, _kernels.Rows])
def test_structures_mirror_those_of_the_header(structure: type[ctypes.Structure]) -> None:
    text = "".join(path.read_text() for path in HEADERS)
    (body,) = re.findall(rf"struct {structure.__name__} {{\n(.*?)\n}};", text, re.DOTALL)
    found = re.findall(r"^ *(?:const )?(\w+)(\*?) (\w+);", body, re.MULTILINE)
    types = {
        "int32_t": ctypes.c_int32,
        "int64_t": ctypes.c_int64,
        "double": ctypes.c_double,
    }
    wanted = [(name, ctypes.c_void_p if is_pointer else types[kind]) for kind, is_pointer, name in found]
    assert wanted == [*structure._fields_]


def test_no_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(seqbatch_copy=lambda call: 1, seqbatch_attend_float=lambda call: 1)
    module = SimpleNamespace(forward=lambda *arguments: None, backward=lambda *arguments: None)
    monkeypatch.setattr(_kernels, "_kernels", _kernels.Kernels("", 0, library, module))
    with pytest.raises(
        MemoryError, match=r"^There is not enough memory to copy sequences\. Run fewer sequences at once"
    ):
        _kernels.copy(_kernels.Rows())
    x, message = torch.zeros(1), r"^There is not enough memory to run a recurrent layer\. Run fewer"
    with pytest.raises(MemoryError, match=message):
        _kernels.forward([], [x], keep=True)
    with pytest.raises(MemoryError, match=message):
        _kernels.backward([], x, x, [x], [x], [True])
    with pytest.raises(MemoryError, match=r"^There is not enough memory to compute attention\. Run fewer"):
        _kernels.compute_attention(_kernels.Attention(), False)


def test_there_is_one_runtime_of_openmp() -> None:
    assert len(start("-c", ONE_RUNTIME).stdout.split()) == 1  # that of torch, whose threads the kernels share


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        ("0", "kernels   switched off by SEQBATCH_KERNELS=0\n"),
        ("baseline", "kernels   in use, for baseline on "),
        ("1", "SeqbatchValueError: The environment variable SEQBATCH_KERNELS must be one of 0, "),
    ],
)
def test_the_environment_is_read_at_import(choice: str, found: str) -> None:
    done = start("-m", "seqbatch", SEQBATCH_KERNELS=choice)
    assert found in done.stdout + done.stderr
