"""`python -m seqbatch` prints what a bug report needs."""

import os
import platform
import re
import runpy
import sys
from importlib import metadata

import pytest
import torch

from seqbatch import _kernels


class Report:
    """Prints the report, and reads its lines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def lines(self) -> dict[str, str]:
        self.monkeypatch.delitem(sys.modules, "seqbatch.__main__", raising=False)  # which runpy does not run twice
        runpy.run_module("seqbatch", run_name="__main__")
        return {line[:10].rstrip(): line[10:] for line in self.capsys.readouterr().out.splitlines()}


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Report:
    for name in os.environ:
        if name.startswith(("SEQBATCH_", "OMP_", "GOMP_", "KMP_", "MKL_")):
            monkeypatch.delenv(name)
    return Report(monkeypatch, capsys)


def test_versions_and_the_machine(report: Report) -> None:
    lines = report.lines()
    assert re.fullmatch(
        rf"{re.escape(platform.machine())}, {os.cpu_count()} cores, \w+ in torch", lines.pop("processor")
    )
    assert lines.pop("GPU")
    assert lines.pop("kernels")
    assert lines == {
        "seqbatch": metadata.version("seqbatch"),
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
        "variables": "none",
    }


@pytest.mark.parametrize(
    ("isa", "missing", "kernels"),
    [("avx2", "", f"in use, for avx2 on {platform.machine()}"), ("", "not built", "not built")],
)
def test_kernels_are_in_use_or_it_says_why_not(
    report: Report, monkeypatch: pytest.MonkeyPatch, isa: str, missing: str, kernels: str
) -> None:
    monkeypatch.setattr(_kernels, "ISA", isa)
    monkeypatch.setattr(_kernels, "MISSING", missing)
    monkeypatch.setattr(_kernels, "IS_THERE", not missing)
    assert report.lines()["kernels"] == kernels


def test_variables_that_change_speed_are_listed(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQBATCH_KERNELS", "baseline")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MY_OMP_SECRET", "hidden")
    assert report.lines()["variables"] == "OMP_NUM_THREADS=1 SEQBATCH_KERNELS=baseline"


@pytest.mark.parametrize(("is_available", "gpu"), [(True, "A GPU"), (False, "none that torch can use")])
def test_the_gpu_is_named(report: Report, monkeypatch: pytest.MonkeyPatch, is_available: bool, gpu: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    assert report.lines()["GPU"] == gpu


def test_a_checkout_that_is_not_installed(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert report.lines()["seqbatch"] == "not installed; this is a checkout"
