"""The law Bits: results of a sequence are the same bits alone and in any batch, however the batch is run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._encode.registry import is_recurrent
from seqbatch.testing._comparison import Run, as_real, by_each_function, run_encoder, select, tensors_of
from seqbatch.testing._oracle import Sequences

_THREADS = (1, 2, 3)

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes


def check_bits(layer: nn.Module, sequences: Sequences, state: Any = None, *, in_chunks: bool | None = None) -> None:
    """Law Bits: outputs, states and gradients of each sequence are the same bits as when it runs alone.

    The sequences run all together, in other orders, some of them, each of them twice, from a list and from a batch,
    with 1, 2 and 3 threads, with gradients recorded, under `torch.no_grad` and `torch.inference_mode`, without
    gradients of the sequences, and in chunks. Each result is compared with that of `encode` or `encode_with_state` on
    one sequence. The gradients are those of the sequences and of `state`, not those of the weights.

    Seqbatch promises this law only for recurrent layers and cells of PyTorch that run by its kernels: on the CPU, in
    float32 and float64. Other layers may obey it.

    Args:
        layer: as for `check_alone`.
        sequences: Tensors `(steps, *features)`; copies of them are run.
        state: as for `check_alone`.
        in_chunks: whether chunks of a sequence, each from the state after the one before, are compared with the whole.
            By default if the layer keeps a state and no layer in it is bidirectional. Pass False for a layer with a
            state that looks ahead, such as `TwoWay`.

    Raises:
        AssertionError: the law is broken. Signs of zeros count; a NaN equals every other NaN.
        SeqbatchTypeError: a state has no `select`.

    >>> check_bits(nn.ReLU(), [torch.randn(4, 5), torch.randn(2, 5)])
    """
    if in_chunks is None:
        in_chunks = is_recurrent(layer) and not any(getattr(one, "bidirectional", False) for one in layer.modules())
    by_each_function(layer, lambda run: _check_bits_by(layer, run, sequences, state, in_chunks), state)


@attrs.frozen
class _Results:
    """What each sequence gets, by name, and the gradients of the state that all start from."""

    of_each: list[dict[str, Tensor]]
    of_state: list[Tensor]


def _check_bits_by(layer: nn.Module, run: Run, sequences: Sequences, state: Any, in_chunks: bool) -> None:
    """Check the law for one function that runs the layer."""
    everyone = [*range(len(sequences))]

    def results(indices: list[int], **options: Any) -> _Results:
        return _run_together(layer, run, sequences, state, indices, **options)

    alone = [results([i]) for i in everyone]

    def require_same(found: _Results, how: str, indices: list[int] = everyone) -> None:
        for i, one in zip(indices, found.of_each, strict=True):
            for name, tensor in one.items():
                _assert_same(tensor, alone[i].of_each[0][name], f"{how}, the {name} of sequence {i}")
        for j, gradient in enumerate(found.of_state):
            # The gradient from one sequence alone is 0 for all others, so the sum is exact.
            parts = [torch.zeros_like(gradient), *(alone[i].of_state[j] for i in indices)]
            _assert_same(gradient, torch.stack(parts).sum(0), f"{how}, the gradient of the initial state")

    for how, indices in {
        "all together": everyone,
        "in reverse order": everyone[::-1],
        "every second one": everyone[::2],
        "each twice": everyone * 2,
    }.items():
        require_same(results(indices), how, indices)
    require_same(results(everyone, as_batch=True), "from a SequenceBatch")
    for number in _THREADS:
        with _threads(number):
            require_same(results(everyone), f"with {number} threads")
            for i in everyone:
                require_same(results([i]), f"alone with {number} threads", [i])
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            require_same(results(everyone), f"under torch.{mode.__name__}")
    require_same(results(everyone, recorded=False), "without gradients of the sequences")
    if run is not run_encoder:
        require_same(_run_together(layer, _run_for_outputs, sequences, None, everyone), "by encode_with_state")
    elif in_chunks:
        half = max(map(len, sequences), default=0) // 2
        require_same(results(everyone, cuts=[0, 1, max(half, 1), None]), "in chunks")


def _run_together(
    layer: nn.Module,
    run: Run,
    sequences: Sequences,
    state: Any,
    indices: list[int],
    *,
    cuts: Sequence[int | None] = (0, None),
    as_batch: bool = False,
    recorded: bool = True,
) -> _Results:
    """Run some sequences together, one chunk after the other, and back if gradients are recorded."""
    chunks = [[_copy_as_leaf(sequences[i][start:end], recorded) for i in indices] for start, end in pairwise(cuts)]
    current = select(state, indices)
    outputs = []
    for chunk in chunks:
        output, current = run(layer, SequenceBatch.from_sequences(chunk) if as_batch else chunk, current)
        outputs.append([*output])
    of_each = [
        {"output": torch.cat(parts)}
        | {f"final state (tensor {j})": part for j, part in enumerate(tensors_of(select(current, [i])))}
        for i, parts in enumerate(zip(*outputs, strict=True))
    ]
    if not torch.is_grad_enabled():
        return _Results(of_each, [])
    starts = [part for part in tensors_of(state) if part.requires_grad]
    columns = [[chunk[i] for chunk in chunks] for i in range(len(indices))]
    sources = [part for column in columns for part in column if part.requires_grad]
    found = iter(_gradients([tensor for one in of_each for tensor in one.values()], [*sources, *starts]))
    for one, column in zip(of_each, columns, strict=True):
        if column[0].requires_grad:
            one["gradient"] = torch.cat([next(found) for _ in column])
    return _Results(of_each, [*found])


def _run_for_outputs(layer: nn.Module, sequences: Any, state: None) -> tuple[Any, None]:
    return run_encoder(layer, sequences, state)[0], None


def _copy_as_leaf(sequence: Tensor, recorded: bool) -> Tensor:
    """Copy a sequence, and let the copy require a gradient if it can."""
    can = sequence.is_floating_point() or sequence.is_complex()
    return sequence.detach().clone().requires_grad_(recorded and can)


def _gradients(results: list[Tensor], sources: list[Tensor]) -> list[Tensor]:
    """Return gradients of weighted sums, or zeros where none flow; the weights of a result depend on its shape only."""
    reached = [result for result in results if result.requires_grad]
    if not (reached and sources):
        return [torch.zeros_like(source) for source in sources]
    weights = [(torch.arange(one.numel()) * 3 % 11 - 4.5).view(one.shape).to(one) for one in reached]
    return [*torch.autograd.grad(reached, sources, weights, allow_unused=True, materialize_grads=True)]


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Set PyTorch's number of threads, and restore it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _assert_same(found: Tensor, wanted: Tensor, what: str) -> None:
    """Compare as bits, but for NaN, which equals NaN."""
    must = f"{what} must have the bits that it has alone"
    kinds = [(tuple(one.shape), one.dtype) for one in (found, wanted)]
    assert kinds[0] == kinds[1], f"{must}, and so its shape and dtype, {kinds[1]}; got {kinds[0]}"
    one, other = as_real(found.detach()), as_real(wanted.detach())
    # As integers, because denormal numbers may compare as zeros.
    same = (_bits(one) == _bits(other)) | (one.isnan() & other.isnan())
    if not same.all():
        first, alone = one[~same][0].item(), other[~same][0].item()
        count = f"{(~same).sum()} of {same.numel()} numbers differ"
        raise AssertionError(f"{must}; {count}, the first is {first!r} and not {alone!r}")


def _bits(tensor: Tensor) -> Tensor:
    """Return the bits of numbers as integers of their size."""
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])
