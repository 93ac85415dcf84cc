"""Runs the examples as a user would: each reaches its accuracy, prints and draws, and refuses wrong options."""

import argparse
import importlib.util
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
SECONDS = 1200  # for the longest of them on a busy machine


def run(name: str, *options: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_japanese_vowels_learns_prints_and_draws(tmp_path: Path) -> None:
    options = ("--minimum-accuracy", "97", "--output", "picture.png")
    done = run("japanese_vowels.py", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "test: SequenceBatch(370 sequences of 7 to 29 steps, features (12,), torch.float32, cpu)" in done.stdout
    assert "test accuracy" in done.stdout
    assert "recording  steps  speaker  predicted  probability" in done.stdout
    assert "training: 100%" in done.stderr
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that runs an example in this process, because in another imports take most of the time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)

    def call(name: str, *options: str) -> Any:
        monkeypatch.setattr(sys, "argv", [name, *options])
        with pytest.raises(SystemExit) as raised:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return raised.value.code

    return call


@pytest.mark.filterwarnings("ignore")  # of the libraries that the examples import
@pytest.mark.parametrize("model", ["gru", "conv", "transformer"])
def test_japanese_vowels_by_other_models(model: str, run_here: Callable[..., Any], tmp_path: Path) -> None:
    assert run_here("japanese_vowels.py", "--model", model, "--epochs", "15", "--minimum-accuracy", "95") == 0
    assert (tmp_path / "japanese_vowels.png").exists()


@pytest.mark.filterwarnings("ignore")  # of the libraries that the examples import
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("japanese_vowels.py", ["--epochs", "2", "--hidden", "8", "--minimum-accuracy", "99.9"], "is below 99.9 %"),
        (
            "stress.py",
            ["--words", "500", "--epochs", "1", "--size", "8", "--minimum-accuracy", "100"],
            "is below 100 %",
        ),
        ("forecast.py", ["--epochs", "1", "--size", "8", "--minimum-gain", "90"], "is below 90 %"),
        (
            "pronounce.py",
            ["--words", "300", "--held-out", "30", "--epochs", "1", "--size", "8", "--minimum-accuracy", "100"],
            "is below 100 %",
        ),
        (
            "recurrent_policy.py",
            ["--rollouts", "2", "--steps", "9", "--environments", "4", "--size", "8", "--minimum-return", "499"],
            "is below 499",
        ),
    ],
)
def test_a_fixed_seed_gives_the_same_numbers_and_too_low_ones_fail(
    name: str,
    options: list[str],
    said: str,
    run_here: Callable[..., Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    first = run(name, *options, folder=tmp_path)
    assert first.returncode == 1
    assert said in first.stderr
    # In a process where other random numbers have been drawn, and sets have another order.
    capfd.readouterr()
    assert run_here(name, *options) == 1
    assert capfd.readouterr().out == first.stdout


@pytest.mark.filterwarnings("ignore")  # of the libraries that the examples import
@pytest.mark.parametrize(
    ("name", "options", "code", "said"),
    [
        ("japanese_vowels.py", ["--help"], 0, "passes over the training recordings (40)"),
        (
            "japanese_vowels.py",
            ["--epochs", "0"],
            2,
            "error: argument --epochs: must be a positive whole number, not '0'",
        ),
        (
            "japanese_vowels.py",
            ["--output", "nowhere/x.png"],
            2,
            "error: argument --output: there is no folder 'nowhere'",
        ),
        (
            "japanese_vowels.py",
            ["--output", "x.gif"],
            2,
            "error: argument --output: must be a file that ends in .png, not 'x.gif'",
        ),
        ("stress.py", ["--epochs", "0"], 2, "must be at least 1"),
        ("stress.py", ["--output", "nowhere/x.png"], 2, "there is no folder 'nowhere'"),
        ("forecast.py", ["--lanes", "0"], 2, "must be at least 1"),
        ("forecast.py", ["--output", "nowhere/x.png"], 2, "there is no folder 'nowhere'"),
        ("pronounce.py", ["--width", "0"], 2, "must be at least 1"),
        ("pronounce.py", ["--output", "nowhere/x.png"], 2, "there is no folder 'nowhere'"),
        ("recurrent_policy.py", ["--steps", "1"], 2, "--steps at least 2"),
        ("recurrent_policy.py", ["--output", "nowhere/x.png"], 2, "there is no folder 'nowhere'"),
        ("deploy.py", ["--epochs", "0"], 2, "must be at least 1"),
    ],
)
def test_options(
    name: str,
    options: list[str],
    code: int,
    said: str,
    run_here: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_here(name, *options) == code
    printed = capsys.readouterr()
    assert said in (printed.err if code else printed.out)
    assert list(tmp_path.iterdir()) == []


def test_japanese_vowels_distributed_learns_in_one_process(tmp_path: Path) -> None:
    done = run("japanese_vowels_distributed.py", "--minimum-accuracy", "97", folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_seed_of_japanese_vowels_distributed_reaches_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "japanese_vowels_distributed"
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    drawn: list[list[float]] = []

    def draw(values: Tensor) -> Tensor:
        drawn.append(torch.randn(3).tolist())
        return values

    monkeypatch.setattr(example, "add_noise", draw)
    recordings = [(torch.randn(3, 12), speaker) for speaker in range(9)]
    distributed.init_process_group("gloo", init_method="tcp://localhost:0", rank=0, world_size=1)
    try:
        for seed in (0, 1, 0):  # a batch in each of three epochs
            options = argparse.Namespace(epochs=3, hidden=2, batch=9, seed=seed, checkpoint=None)
            example.train(options, {"train": recordings}, torch.device("cpu"))
    finally:
        distributed.destroy_process_group()
    assert drawn[6:] == drawn[:3]
    assert len({*map(tuple, drawn)}) == 6


def test_stress_learns_prints_and_draws(tmp_path: Path) -> None:
    options = ("--epochs", "3", "--minimum-accuracy", "86", "--output", "picture.png")
    done = run("stress.py", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^held out: SequenceBatch\(\d+ sequences of", done.stdout, re.MULTILINE)
    assert "held-out words whose stressed vowel is found" in done.stdout
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_forecast_learns_prints_and_draws(tmp_path: Path) -> None:
    options = ("--minimum-gain", "25", "--output", "picture.png")
    done = run("forecast.py", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "held out: SequenceBatch(11 sequences of 36 to 1328 steps, features (8,), torch.float32, cpu)" in done.stdout
    assert "held-out error in °C" in done.stdout
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_pronounce_learns_prints_and_draws(tmp_path: Path) -> None:
    sizes = ("--words", "10000", "--held-out", "1000", "--epochs", "3")
    done = run("pronounce.py", *sizes, "--minimum-accuracy", "25", "--output", "picture.png", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^held out: SequenceBatch\(1000 sequences of", done.stdout, re.MULTILINE)
    rates = [float(rate) for rate in re.findall(r"beam of \d: ([\d.]+) % of phonemes are wrong", done.stdout)]
    assert len(rates) == 2
    assert max(rates) < 25
    assert "in the dictionary" in done.stdout
    assert "training: 100%" in done.stderr
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_recurrent_policy_learns_with_a_memory_and_not_without(tmp_path: Path) -> None:
    options = ("--rollouts", "20", "--minimum-return", "150", "--output", "picture.png")
    done = run("recurrent_policy.py", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = re.search(r"^without memory: mean return ([\d.]+) in 100 new episodes", done.stdout, re.MULTILINE)
    assert found is not None
    assert float(found[1]) < 75
    assert "with memory: 100%" in done.stderr
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_deploy_says_the_same_in_every_way(tmp_path: Path) -> None:
    done = run("deploy.py", "--epochs", "15", "--minimum-accuracy", "95", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for way in ("eager", "compiled", "exported", "onnxruntime"):
        assert f"{way:11}    370  " in done.stdout
    assert {path.name for path in (tmp_path / "deployed").iterdir()} > {"weights.pt", "program.pt2", "model.onnx"}
