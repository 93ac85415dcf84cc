"""seqbatch.onnx: layers that PyTorch's own exporter writes so that they do other than in PyTorch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from graph_models import PATTERNS, SMALL
from onnx_models import IGNORED, Layered, Session, Within
from torch import nn
from torch.testing import assert_close

from seqbatch import SequenceBatch

pytestmark = IGNORED
SIZES = PATTERNS | SMALL


@pytest.mark.parametrize(
    ("options", "features", "dtype"),
    [
        ({}, (), torch.int64),
        ({}, (2,), torch.int32),
        ({"padding_idx": 0}, (2,), torch.int64),
        ({"padding_idx": -1}, (), torch.int32),
    ],
)
def test_ids_out_of_range_stop_the_run(options: Any, features: tuple[int, ...], dtype: Any, tmp_path: Path) -> None:
    layer = nn.Embedding(9, 4, **options)
    model = Within(layer, torch.no_grad) if options else Layered(layer)

    def make(lengths: list[int]) -> SequenceBatch:
        return SequenceBatch(torch.randint(9, (sum(lengths), *features), dtype=dtype), lengths)

    run = Session(model, make([3, 5, 0]), tmp_path / "model.onnx")
    for lengths in SIZES.values():
        padded = make(lengths).to_padded(batch_first=True, padding_value=-1)  # which is not read
        batch = SequenceBatch.from_padded(padded, lengths, batch_first=True)
        with torch.no_grad():
            assert_close(run.given(padded, lengths)[0], model(batch).to_padded(batch_first=True))
    for wrong in (-1, -9, -10, 9):
        padded = make([2, 2]).to_padded(batch_first=True)
        padded[1, 1] = wrong
        with pytest.raises(Exception, match=r"Gather.*out of data bounds"):
            run.given(padded, [2, 2])
        assert_close(run.given(padded, [2, 1])[0][0], model.layer(padded[0]).detach())


@pytest.mark.parametrize(
    ("layer", "features", "dtype"),
    [
        (nn.GroupNorm(2, 4), (4,), torch.float32),
        (nn.GroupNorm(1, 4, eps=0.5), (4,), torch.float64),
        (nn.GroupNorm(2, 4, affine=False), (4, 3), torch.float32),
        (nn.GroupNorm(4, 4), (4, 3, 2), torch.float32),
        (nn.GroupNorm(2, 4), (4, 3), torch.float16),  # with weights in single precision
    ],
    ids=str,
)
def test_group_norm(layer: nn.Module, features: tuple[int, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for weight in layer.parameters():
        weight.data.uniform_(0.3, 2.0)
    model = Layered(layer.double() if dtype is torch.float64 else layer)

    def make(lengths: list[int]) -> SequenceBatch:
        return SequenceBatch(torch.randn(sum(lengths), *features).to(dtype), lengths)

    run = Session(model, make([3, 5, 0]), tmp_path / "model.onnx")
    for lengths in SIZES.values():
        batch = make(lengths)
        with torch.no_grad():
            wanted = model(batch).to_padded(batch_first=True)
        (found,) = run(batch)
        assert_close(found, wanted)
        for row, sequence in zip(found, batch, strict=True):
            assert_close(row[: len(sequence)], layer(sequence))
