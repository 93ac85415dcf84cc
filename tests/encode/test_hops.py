"""The path of one call from `encode` to the kernel: each file is entered once."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import seqbatch
from seqbatch import SequenceBatch, _kernels, encode

PACKAGE = Path(seqbatch.__file__).parent
# What serves at every hop: the batch and what its methods call, checks, and queries of a layer or of PyTorch.
EVERYWHERE = ("_batch", "_checks", "_encoders/_layer_checks", "_ops", "_state", "_structure", "_torch", "errors")
# What engines share, and what the structure of a batch calls.
SHARED = ("_engines/_interface", "_engines/_stack", "_engines/_stock", "_kernels/row_copies")


def file_of(frame: FrameType) -> str | None:
    """Return the file of the package that a function is in, or None if it is another's or serves at every hop."""
    path = Path(frame.f_code.co_filename)
    if not path.is_relative_to(PACKAGE):
        return None
    file = path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")
    return None if file.startswith(EVERYWHERE) or file in SHARED else file


def files_entered(layer: nn.Module, xs: Any) -> list[str]:
    """Return the files that a call of `encode` enters, in order; calls within a file and returns to it do not count."""
    entered: list[str] = []
    open_files: list[str | None] = []

    def follow(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            file = file_of(frame)
            if file and file not in open_files and file not in entered[-1:]:
                entered.append(file)
            open_files.append(file)
        elif event == "return" and open_files:
            open_files.pop()

    before = sys.getprofile()
    sys.setprofile(follow)
    try:
        with torch.no_grad():  # because the shortcut calls the autograd function of an engine
            encode(layer, xs)
    finally:
        sys.setprofile(before)
    return entered


XS = [torch.zeros(4, 2), torch.zeros(0, 2), torch.zeros(3, 2)]
TO_THE_BATCH = ["_encode", "_encode/registry", "_encode/inputs"]
# The engines are asked in order.
ENGINES = ["_engines/native", *(["_kernels"] if _kernels.IS_THERE else ["_engines/stepwise", "_engines/packed"])]
FROM_THE_ENCODER = [
    *("_encoders/recurrent", "_encoders/_recurrent_checks", "_encoders/_recurrent_runs"),
    *("_engines/_choice", *ENGINES),
    "_encode/results",
]
CALLS: dict[str, tuple[Any, list[str]]] = {
    "ragged": (XS[::2], [] if _kernels.IS_THERE else FROM_THE_ENCODER),
    "with an empty sequence": (XS, FROM_THE_ENCODER),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_file_is_entered_once(name: str) -> None:
    xs, rest = CALLS[name]
    encode(nn.LSTM(2, 3), xs)  # so that what is imported or loaded on first use is there
    assert files_entered(nn.LSTM(2, 3), xs) == [*TO_THE_BATCH, *rest]


@pytest.mark.skipif(not _kernels.IS_THERE, reason="only the kernels have a shortcut")
def test_a_batch_takes_the_shortcut() -> None:
    batch = SequenceBatch.from_sequences(XS[::2])
    encode(nn.LSTM(2, 3), batch)
    assert files_entered(nn.LSTM(2, 3), batch) == TO_THE_BATCH
