"""seqbatch.onnx: slices and single steps, `take`, `concat_steps`, `merge` and `split`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from graph_models import PATTERNS, SMALL, signals
from onnx_models import IGNORED, Session, Told
from torch.testing import assert_close

from seqbatch import SequenceBatch

pytestmark = IGNORED


def results(batch: SequenceBatch) -> dict[str, Any]:
    ones = torch.ones(batch.batch_size, dtype=torch.int64)
    marks = SequenceBatch(batch.values.new_ones(batch.batch_size, 4), ones)
    long = SequenceBatch.concat_steps([marks, batch, marks])
    steps = long.with_values(long.positions)
    return {
        "start": batch[:, 1:],
        "end": batch[:, :-1],
        "other": batch[:, 1::2],
        "step": long[:, 1],
        "last": long[:, -2],
        "take": long.take(SequenceBatch.concat_steps([steps.reverse(), steps[:, 1:2]])),
        "concat": long,
        "merge": batch.merge(torch.full((1,), batch.batch_size)).sum(),
        "split": batch.merge(torch.full((1,), batch.batch_size)).split(batch.structure),
    }


def test_steps(tmp_path: Path) -> None:
    run = Session(Told(results), signals([3, 5, 0]), tmp_path / "model.onnx")
    for lengths in (PATTERNS | SMALL).values():
        wanted = [
            one.to_padded(batch_first=True) if isinstance(one, SequenceBatch) else one
            for one in results(signals(lengths)).values()
        ]
        assert_close(run(signals(lengths)), wanted)


@pytest.mark.parametrize("call", [lambda batch: batch[:, 1], lambda batch: batch[:, -2]])
def test_a_sequence_that_is_too_short_stops_the_run(call: Any, tmp_path: Path) -> None:
    run = Session(Told(call), signals([3, 5, 2]), tmp_path / "model.onnx")
    assert_close(run(signals([2, 4]))[0], call(signals([2, 4])))
    for lengths in ([1, 3], [3, 0], [3, 1]):
        with pytest.raises(Exception, match=r"Gather.*out of data bounds"):
            run(signals(lengths))


# A call, lengths that fit it, and others that do not.
BAD: dict[str, tuple[Any, list[list[int]], list[list[int]]]] = {
    "merge": (lambda batch: batch.merge(batch.structure.tensor).sum(), [[2, 0], [1, 1, 1]], [[2, 1], [1, 0, 1]]),
    "split": (
        lambda batch: batch.split(batch.structure.tensor.flip(0)).sum(),
        [[2, 3, 2], [4], [0, 1, 0]],
        [[2, 1], [0, 3, 1]],
    ),
    "take": (
        lambda batch: batch.take(batch.with_values(torch.ones(batch.total_steps, dtype=torch.int64))),
        [[2, 3], [0, 4]],
        [[1, 3], [2, 0, 1]],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_stops_the_run(name: str, tmp_path: Path) -> None:
    call, right, wrong = BAD[name]
    run = Session(Told(call), signals(right[0]), tmp_path / "model.onnx")
    for lengths in right:
        wanted = call(signals(lengths))
        wanted = wanted.to_padded(batch_first=True) if isinstance(wanted, SequenceBatch) else wanted
        assert_close(run(signals(lengths))[0], wanted)
    for lengths in wrong:
        with pytest.raises(Exception, match="out of data bounds"):
            run(signals(lengths))
