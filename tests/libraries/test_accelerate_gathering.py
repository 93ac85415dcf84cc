"""accelerate: what it gathers, broadcasts, reduces and dispatches is right, or an error, in one process and in two."""

import pickle
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, operations
from processes import HELPERS, torchrun
from torch import distributed

from seqbatch import ContainerState, LSTMState, RNNState, SeqbatchTypeError, SequenceBatch

SCRIPT = HELPERS / "ranks" / "gathering.py"
CHECKS = [
    "gathered",
    "gathered objects",
    "gathered for metrics",
    "gathered for metrics in containers",
    "pickled",
    "padded",
    "broadcasts",
    "reduced",
    "moved",
    "parts",
]


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_gathered_is_right_or_an_error(processes: int) -> None:
    status, printed = torchrun(SCRIPT, processes=processes)
    assert status == 0, printed
    assert [line for line in printed.splitlines() if line.endswith(": passed")] == [f"{one}: passed" for one in CHECKS]


@pytest.mark.parametrize(
    ("processes", "form", "split", "said"),
    [
        (1, "batch", "whole", "TypeError: Can only find the batch size of tensors but got <class 'seqbatch"),
        (1, "batch", "split", "TypeError: Can only find the batch size of tensors but got <class 'seqbatch"),
        (2, "batch", "whole", "TypeError: Can only concatenate tensors but got <class 'seqbatch"),
        (2, "batch", "split", "TypeError: Unsupported types (<class 'seqbatch"),
        (2, "dict", "whole", "TypeError: Can only concatenate tensors but got <class 'seqbatch"),
        (2, "dict", "split", "TypeError: Unsupported types (<class 'seqbatch"),
    ],
)
def test_a_loader_that_dispatches_batches_raises(processes: int, form: str, split: str, said: str) -> None:
    status, printed = torchrun(SCRIPT, form, split, processes=processes)
    assert status == 1, printed
    assert said in printed
    assert "labels" not in printed  # not one batch came out


@pytest.mark.parametrize("split", ["whole", "split"])
def test_in_one_process_dispatching_a_dict_changes_nothing(split: str) -> None:
    status, printed = torchrun(SCRIPT, "dict", split, processes=1)
    assert status == 0, printed
    assert [line for line in printed.splitlines() if line.startswith("labels")] == [
        "labels [0, 1], lengths (3, 0)",
        "labels [2, 3], lengths (5, 1)",
        "labels [4, 5], lengths (2, 4)",
        "labels [6], lengths (2,)",
    ]


BATCH = SequenceBatch(torch.arange(3), [2, 1])
HIDDEN = torch.zeros(1, 1, 2, 3)
STATES = [RNNState(HIDDEN), LSTMState(HIDDEN, HIDDEN), ContainerState((RNNState(HIDDEN), None))]


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run accelerate's own code as in one of two processes, which gathers from the other what it has itself."""

    def gather(objects: list[Any], own: Any) -> None:
        objects[:] = [pickle.loads(pickle.dumps(own)) for _ in objects]

    state = SimpleNamespace(num_processes=2, distributed_type=DistributedType.MULTI_CPU, device=torch.device("cpu"))
    monkeypatch.setattr(operations, "PartialState", lambda: state)
    monkeypatch.setattr(distributed, "all_gather_object", gather)


def gather_for_metrics(value: Any) -> Any:
    accelerator: Any = SimpleNamespace(gradient_state=SimpleNamespace(end_of_dataloader=False))
    return Accelerator.gather_for_metrics(accelerator, value)


@pytest.mark.usefixtures("two_processes")
@pytest.mark.parametrize("held", [BATCH, *STATES])
def test_what_would_be_taken_apart(held: Any) -> None:
    joined = (
        r"^`object` must be a SequenceBatch or a list, because accelerate joins what the processes have by iterating "
    )
    counted = (
        r"^`input_data` must be a SequenceBatch itself, because accelerate takes apart what holds one, and counts "
        r"items as samples; got a {}\. Gather each field by itself, or call "
        r"accelerate\.utils\.gather_object\(\[input_data\]\)\.$"
    )
    for value in ({"x": held}, (held, 1), {"x": [{"y": held}]}, [held], [{"x": held}]):
        with pytest.raises(SeqbatchTypeError, match=counted.format(type(value).__name__)):
            gather_for_metrics(value)
        if not isinstance(value, list):
            found = rf"it; got a {type(value).__name__}\. Gather \[object\], a list\.$"
            with pytest.raises(SeqbatchTypeError, match=joined + found):
                operations.gather_object(value)
        assert len(operations.gather_object([value])) == 2  # as both errors advise
    assert pickle.loads(pickle.dumps({"x": held}))["x"].batch_size == held.batch_size


@pytest.mark.usefixtures("two_processes")
def test_what_is_gathered_as_it_is() -> None:
    for found in (operations.gather_object(BATCH), gather_for_metrics(BATCH)):
        assert [one.tolist() for one in found] == [[0, 1], [2]] * 2
    assert [one.lengths for one in operations.gather_object([BATCH])] == [(2, 1)] * 2
    with pytest.raises(SeqbatchTypeError, match=r"^`state` must not be iterated or unpacked"):
        operations.gather_object(STATES[0])


def test_pickling_where_accelerate_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "accelerate.utils.operations")
    assert pickle.loads(pickle.dumps({"x": BATCH}))["x"].lengths == BATCH.lengths
