"""Conversions between layouts: who is measured, from what to what, and how.

Every call starts from tensors and lengths alone, in another order of the sequences, so that none gains by what was
computed for a batch before. All results are copies but those of "padded to list" by hand and by torchrua, which are
views.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import peers
import torch
from measure import medians
from torch import Tensor
from torch.nested import as_nested_tensor, nested_tensor_from_jagged, to_padded_tensor
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
    unpack_sequence,
    unpad_sequence,
)
from workloads import Sequences

from seqbatch import SequenceBatch

Way = Callable[..., Any]
# A conversion is far shorter than a layer, and a median over more rounds costs little; but above so many seconds, which
# is a hundred times what is possible, one round is enough.
ROUNDS = 4
SLOW = 0.1


def _lists(sequences: list[Tensor]) -> tuple[list[Tensor]]:
    return (sequences,)


def _padded(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    padded = pad_sequence([one.detach() for one in sequences], batch_first=True, padding_value=7)
    lengths = torch.tensor([len(one) for one in sequences])
    return padded.requires_grad_(sequences[0].requires_grad), lengths


def _packed(sequences: list[Tensor]) -> tuple[PackedSequence]:
    packed = pack_sequence([one.detach() for one in sequences], enforce_sorted=False)
    return (packed._replace(data=packed.data.requires_grad_(sequences[0].requires_grad)),)


# What each task starts from.
TASKS: dict[str, Callable[[list[Tensor]], tuple[Any, ...]]] = {
    "list to padded": _lists,
    "list to packed": _lists,
    "list to nested": _lists,
    "list to flat to list": _lists,
    "padded to list": _padded,
    "padded to packed": _padded,
    "packed to list": _packed,
    "packed to padded": _packed,
}

SEQBATCH: dict[str, Way] = {
    "list to padded": lambda xs: SequenceBatch.from_sequences(xs).to_padded(batch_first=True),
    "list to packed": lambda xs: SequenceBatch.from_sequences(xs).to_packed(),
    "list to nested": lambda xs: SequenceBatch.from_sequences(xs).to_nested(),
    "list to flat to list": lambda xs: SequenceBatch.from_sequences(xs).to_sequences(),
    "padded to list": lambda x, lengths: SequenceBatch.from_padded(x, lengths, batch_first=True).to_sequences(),
    "padded to packed": lambda x, lengths: SequenceBatch.from_padded(x, lengths, batch_first=True).to_packed(),
    "packed to list": lambda packed: SequenceBatch.from_packed(packed).to_sequences(),
    "packed to padded": lambda packed: SequenceBatch.from_packed(packed).to_padded(batch_first=True),
}

# The function of torch.nn.utils.rnn that is there for the task.
PYTORCH: dict[str, Way] = {
    "list to padded": lambda xs: pad_sequence(xs, batch_first=True),
    "list to packed": lambda xs: pack_sequence(xs, enforce_sorted=False),
    "padded to list": lambda x, lengths: unpad_sequence(x, lengths, batch_first=True),
    "padded to packed": lambda x, lengths: pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False),
    "packed to list": unpack_sequence,
    "packed to padded": lambda packed: pad_packed_sequence(packed, batch_first=True)[0],
}


def _sliced(padded: Tensor, lengths: Tensor) -> list[Tensor]:
    return [row[:length] for row, length in zip(padded, lengths.tolist(), strict=True)]


def _nested_by_hand(sequences: list[Tensor]) -> Tensor:
    lengths = torch.tensor([len(one) for one in sequences], device=sequences[0].device)
    return nested_tensor_from_jagged(torch.cat(sequences), lengths=lengths)


BY_HAND: dict[str, Way] = {
    "list to nested": _nested_by_hand,
    "list to flat to list": lambda xs: list(torch.cat(xs).split([len(x) for x in xs])),
    "padded to list": _sliced,
    "packed to list": lambda packed: _sliced(*pad_packed_sequence(packed, batch_first=True)),
}


def _narrowed(padded: Tensor, lengths: Tensor) -> list[Tensor]:
    nested = torch.nested.narrow(padded, 1, 0, lengths.to(padded.device), layout=torch.jagged)
    return list(nested.unbind())


# It neither makes nor reads what is packed.
NESTED: dict[str, Way] = {
    "list to padded": lambda xs: to_padded_tensor(as_nested_tensor(xs, layout=torch.jagged), 0),
    "list to nested": lambda xs: as_nested_tensor(xs, layout=torch.jagged),
    "list to flat to list": lambda xs: list(as_nested_tensor(xs, layout=torch.jagged).unbind()),
    "padded to list": _narrowed,
}


def _by_torchrua(library: Any) -> dict[str, Way]:
    if library is None:
        return {}

    def read(padded: Tensor, lengths: Tensor) -> Any:
        return library.L(data=padded, token_sizes=lengths.to(padded.device))

    return {
        "list to padded": lambda xs: library.new_left(xs).data,
        "list to packed": library.new_pack,
        "list to flat to list": lambda xs: list(library.new_cat(xs).split()),
        "padded to list": lambda x, lengths: list(read(x, lengths).split()),
        "padded to packed": lambda x, lengths: read(x, lengths).pack(),
        "packed to list": lambda packed: list(library.cat_pack_split(packed)),
        "packed to padded": lambda packed: library.cat_pack_to_left(packed).data,
    }


def ways_of(task: str) -> dict[str, Way]:
    """Those that can do a task; seqbatch is the first."""
    contenders = {
        "seqbatch": SEQBATCH,
        "PyTorch": PYTORCH,
        "by hand": BY_HAND,
        "torch.nested": NESTED,
        "torchrua": _by_torchrua(peers.torchrua()),
    }
    return {name: ways[task] for name, ways in contenders.items() if task in ways}


def measure(task: str, batch: Sequences, training: bool, rounds: int, device: str) -> dict[str, Any]:
    """Measure all ways of doing a task; give the milliseconds of each."""
    torch.manual_seed(0)
    sequences = batch.sequences(training, device)

    def arguments() -> tuple[Any, ...]:
        return TASKS[task]([sequences[i] for i in torch.randperm(len(sequences)).tolist()])

    ways = ways_of(task)
    taken = check(ways, arguments(), training)
    run = backward if training else forward
    calls = {name: partial(run, way) for name, way in ways.items()}
    limits = {name: 1 for name, seconds in taken.items() if seconds > SLOW}
    ms = medians(calls, ROUNDS * rounds, arguments, limits)
    return {"workload": batch.name, "task": task, "training": training, "ms": ms}


def forward(way: Way, *given: Any) -> Any:
    """Convert, and ask for no gradients."""
    with torch.no_grad():
        return way(*given)


def backward(way: Way, source: Any, *rest: Any) -> tuple[Any, ...]:
    """Convert, and go back to the gradients of the source; that of the result is the result, which is at hand."""
    outputs = values_of(way(source, *rest))
    return torch.autograd.grad(outputs, values_of(source), outputs)


def values_of(layout: Any) -> list[Tensor]:
    """Return the tensors that hold the values of a layout, through which gradients flow."""
    if isinstance(layout, PackedSequence):
        return [layout.data]
    if isinstance(layout, Tensor):
        return [layout.values() if layout.is_nested else layout]
    return list(layout)


def check(ways: dict[str, Way], given: tuple[Any, ...], training: bool) -> dict[str, float]:
    """Raise unless all ways give what the first other one gives: values, and gradients for training.

    Returns:
        seconds that each took.
    """
    results, taken = [], {}
    for name, way in ways.items():
        start = time.perf_counter()
        gradients = backward(way, *given) if training else ()
        result = forward(way, *given)
        taken[name] = time.perf_counter() - start
        results.append([*_plain(result), *gradients])
    for found in results:
        torch.testing.assert_close(found, results[1], rtol=0, atol=0)
    return taken


def _plain(layout: Any) -> list[Tensor]:
    """Convert a layout to tensors that can be compared: a packed batch may hold equal lengths in any order."""
    if isinstance(layout, PackedSequence):
        return list(unpack_sequence(layout))
    if isinstance(layout, Tensor):
        return list(layout.unbind()) if layout.is_nested else [layout]
    return list(layout)
