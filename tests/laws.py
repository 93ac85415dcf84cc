"""The laws of the library, each a function that checks one layer on one list of sequences."""

import copy
from typing import Any

import torch
from reference import run_alone
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing import assert_close

from seqbatch import ContainerState, SequenceBatch, encode, encode_with_state, is_recurrent

Sequences = list[Tensor]


def check_alone(layer: nn.Module, sequences: Sequences, state: Any = None) -> None:
    """Each output, state and gradient equals that of the sequence run alone through the plain layer."""
    outputs, final = _encode(layer, sequences, state)
    found = [*outputs, *tensors_of(final)]
    alone, alone_final = run_alone(layer, sequences, None if state is None else tensors_of(state))
    wanted = [*alone, *(alone_final or [part.detach() for part in tensors_of(final)])]
    assert_close(found, wanted)
    sources = [*sequences, *([] if state is None else tensors_of(state)), *layer.parameters()]
    assert_close(_gradients(found, sources), _gradients(wanted, sources))


def check_order(layer: nn.Module, sequences: Sequences, order: list[int], state: Any = None) -> None:
    """Permuting the sequences, and the state, permutes the results."""
    outputs, final = _encode(layer, sequences, state)
    permuted, permuted_final = _encode(
        layer, [sequences[i] for i in order], None if state is None else state.select(order)
    )
    assert_close(permuted, [outputs[i] for i in order])
    if final is not None:
        assert_close(tensors_of(permuted_final), tensors_of(final.select(order)))


def check_padding(layer: nn.Module, sequences: Sequences, poison: float, side: Any, batch_first: bool) -> None:
    """What stands in padding reaches no result and no gradient."""
    batch = SequenceBatch.from_sequences(sequences)
    total = batch.max_length + 2
    options: dict[str, Any] = {"batch_first": batch_first, "padding_side": side}
    padded = batch.detach().to_padded(padding_value=poison, total_length=total, **options).requires_grad_()
    outputs = encode(layer, SequenceBatch.from_padded(padded, batch.lengths, **options)).to_sequences()
    wanted, _ = run_alone(layer, sequences)
    assert_close(outputs, wanted)
    weights = list(layer.parameters())
    gradient, *others = _gradients(outputs, [padded, *weights])
    expected = _gradients(wanted, [*sequences, *weights])
    assert_close(
        SequenceBatch.from_padded(gradient, batch.lengths, **options).to_sequences(), expected[: len(sequences)]
    )
    assert_close(others, expected[len(sequences) :])
    assert not gradient[~batch.mask(total_length=total, **options)].any(), "a gradient reaches padding"


def check_lengths(layer: nn.Module, sequences: Sequences) -> None:
    """Outputs have their input's lengths."""
    assert [len(output) for output in encode(layer, sequences)] == [len(sequence) for sequence in sequences]


def check_empty(layer: nn.Module, sequences: Sequences, state: Any = None) -> None:
    """A sequence of no steps gives an output of no steps, and its state is the initial state; others do not see it."""
    assert sequences, "one sequence at least, to know the features"
    start = None if state is None else state.select([0, *range(len(sequences))])
    outputs, final = _encode(layer, [sequences[0][:0], *sequences], start)
    assert len(outputs[0]) == 0
    without, without_final = _encode(layer, sequences, state)
    assert_close(outputs[1:], without)
    if final is not None:
        initial = final.reset([0]) if start is None else start
        assert_close(tensors_of(final.select([0])), tensors_of(initial.select([0])))
        rest = list(range(1, len(outputs)))
        assert_close(tensors_of(final.select(rest)), tensors_of(without_final))


def check_memory(layer: nn.Module, features: int, times: float) -> None:
    """Forward and backward memory grows with the steps, not with batch x longest."""
    lengths = [1] * 511 + [512]
    batch = SequenceBatch(torch.randn(sum(lengths), features), lengths)
    with torch.profiler.profile(profile_memory=True) as profile:
        encode(layer, batch).values.sum().backward()
    changes = [event.cpu_memory_usage for event in profile.events() or [] if event.name == "[memory]"]
    peak = now = 0
    for change in changes:
        now += change
        peak = max(peak, now)
    assert changes
    assert peak <= times * batch.values.nbytes, f"a peak of {peak / batch.values.nbytes:.1f} times the values"


def check_called_as_itself(layer: nn.Module, sequences: Sequences) -> None:
    """A layer with hooks is called as itself, so that they run and what they return counts."""
    watched = copy.deepcopy(layer)
    plain = encode(watched, sequences)
    calls = []

    def double(module: nn.Module, args: Any, output: Any) -> Any:
        calls.append(module)
        return _double(output)

    watched.register_forward_hook(double)
    hooked = encode(watched, sequences)
    if any(len(sequence) for sequence in sequences):
        assert len(calls) == 1
        assert type(calls[0]) is type(layer)
        assert_close(hooked, [2 * output for output in plain])


def check_unmodified(layer: nn.Module, sequences: Sequences, state: Any = None) -> None:
    """Nothing of the caller's is modified: not the sequences, the list, the state, the batch, or the layer."""
    batch = SequenceBatch.from_sequences(sequences)
    held = [*sequences, batch.values, *tensors_of(state), *layer.parameters()]
    before = [(tensor, tensor.detach().clone(), tensor._version) for tensor in held]
    listed, attributes, hooks = list(sequences), set(vars(layer)), len(layer._forward_hooks)
    _encode(layer, sequences, state)
    encode(layer, batch)
    for sequence in sequences[:1]:
        encode(layer, sequence)
    for tensor, value, version in before:
        assert tensor._version == version, "a tensor was written to"
        assert_close(tensor.detach(), value, rtol=0, atol=0)
    assert all(one is other for one, other in zip(sequences, listed, strict=True))
    assert set(vars(layer)) == attributes
    assert len(layer._forward_hooks) == hooks


def tensors_of(state: Any) -> list[Tensor]:
    """Give the tensors of a state, those of a container layer by layer."""
    if state is None:
        return []
    if isinstance(state, ContainerState):
        return [tensor for part in state.states for tensor in tensors_of(part)]
    return [state.hidden, state.cell] if hasattr(state, "cell") else [state.hidden]


def _encode(layer: nn.Module, sequences: Sequences, state: Any) -> tuple[list[Tensor], Any]:
    if is_recurrent(layer):
        return encode_with_state(layer, sequences, state)
    return encode(layer, sequences), None


def _gradients(results: list[Tensor], sources: list[Tensor]) -> list[Tensor]:
    """Give the gradients of a sum weighted differently from element to element; zeros where there are none."""
    wanted = [source for source in sources if source.requires_grad]
    terms = [(result * torch.arange(1, 1 + result.numel()).view_as(result).cos()).sum() for result in results]
    loss = sum(terms, torch.zeros(()))
    if not wanted or not loss.requires_grad:
        return [torch.zeros_like(source) for source in wanted]
    found = torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=True)
    return [
        torch.zeros_like(source) if gradient is None else gradient
        for source, gradient in zip(wanted, found, strict=True)
    ]


def _double(output: Any) -> Any:
    if isinstance(output, PackedSequence):
        return PackedSequence(2 * output.data, *output[1:])
    if isinstance(output, tuple):
        return (_double(output[0]), *output[1:])
    return 2 * output
