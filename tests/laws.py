"""The laws of the library, each a function that checks one layer on one list of sequences, or one batch."""

import copy
import re
from collections.abc import Callable
from itertools import accumulate, permutations
from typing import Any

import torch
from reference import run_alone
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils.rnn import PackedSequence
from torch.testing import assert_close

from seqbatch import ContainerState, SeqbatchError, SequenceBatch, encode, encode_with_state, is_recurrent

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
    outputs, final = _encode(layer, SequenceBatch.from_padded(padded, batch.lengths, **options))
    alone, alone_final = run_alone(layer, sequences)
    found, wanted = [*outputs, *tensors_of(final)], [*alone, *alone_final]
    assert_close(found, wanted)
    weights = list(layer.parameters())
    gradient, *others = _gradients(found, [padded, *weights])
    expected = _gradients(wanted, [*sequences, *weights])
    assert_close(
        SequenceBatch.from_padded(gradient, batch.lengths, **options).to_sequences(), expected[: len(sequences)]
    )
    assert_close(others, expected[len(sequences) :])
    assert not gradient[~batch.mask(total_length=total, **options)].any(), "a gradient reaches padding"


def _padded(side: Any, batch_first: bool, masked: bool) -> Callable[[SequenceBatch], SequenceBatch]:
    def there_and_back(batch: SequenceBatch) -> SequenceBatch:
        options: Any = {"batch_first": batch_first, "padding_side": side}
        padded = batch.to_padded(total_length=batch.max_length + 1, **options)
        if not masked:
            return SequenceBatch.from_padded(padded, batch.lengths, **options)
        mask = batch.mask(total_length=batch.max_length + 1, **options)
        return SequenceBatch.from_mask(padded, mask, batch_first=batch_first)

    return there_and_back


def _packed(batch: SequenceBatch) -> SequenceBatch:
    """Leave out the sequences of no steps, which this layout cannot hold, and set them in again."""
    there = [i for i, length in enumerate(batch.lengths) if length]
    back = SequenceBatch.from_packed(batch[there].to_packed())
    assert back.lengths == tuple(batch.lengths[i] for i in there), "other lengths by way of packed"
    return SequenceBatch(back.values, batch.lengths)


def _listed(batch: SequenceBatch) -> SequenceBatch:
    """Make a list of no sequences hold their features too."""
    return SequenceBatch.from_sequences(batch.to_sequences() or [batch.values])[: batch.batch_size]


# From a batch to a layout, and back to a batch.
LAYOUTS: dict[str, Callable[[SequenceBatch], SequenceBatch]] = {
    "padded on the right, batch first": _padded("right", batch_first=True, masked=False),
    "padded on the right, time first": _padded("right", batch_first=False, masked=False),
    "padded on the left, batch first": _padded("left", batch_first=True, masked=False),
    "padded on the left, time first": _padded("left", batch_first=False, masked=False),
    "masked, batch first": _padded("right", batch_first=True, masked=True),
    "masked, time first": _padded("left", batch_first=False, masked=True),
    "packed": _packed,
    "nested": lambda batch: SequenceBatch.from_nested(batch.to_nested()),
    "offsets": lambda batch: SequenceBatch.from_offsets(batch.values, batch.offsets),
    "sequences": _listed,
}


def check_round_trip(batch: SequenceBatch) -> None:
    """From each layout to each other and back is exact, in values and gradients."""
    halfway = {name: there_and_back(batch) for name, there_and_back in LAYOUTS.items()}
    for first, second in permutations(LAYOUTS, 2):
        back = LAYOUTS[second](halfway[first])
        way = f"by way of {first} and {second}"
        assert back.lengths == batch.lengths, f"other lengths {way}"
        assert_same_bits(back.values, batch.values, f"other values {way}")
        if batch.values.requires_grad:
            weights = torch.arange(1, 1 + batch.values.numel()).cos().view(batch.values.shape).to(batch.dtype)
            assert back.values.requires_grad, f"no gradient {way}"
            (gradient,) = torch.autograd.grad(back.values, batch.values, weights, retain_graph=True)
            assert_same_bits(gradient, weights, f"another gradient {way}")


def assert_same_bits(found: Tensor, wanted: Tensor, message: str = "other values") -> None:
    """Compare bit by bit, also in dtypes that PyTorch cannot compare."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), message
    parts = [torch.view_as_real(one) if one.is_complex() else one for one in (found, wanted)]
    found, wanted = (one.reshape(-1).view(torch.uint8) for one in parts)
    assert torch.equal(found, wanted), message


def check_lengths(layer: nn.Module, sequences: Sequences) -> None:
    """Outputs have their input's lengths."""
    assert [len(output) for output in encode(layer, sequences)] == [len(sequence) for sequence in sequences]


def check_empty(layer: nn.Module, sequences: Sequences, state: Any = None) -> None:
    """A sequence of no steps gives an output of no steps, and its state is the initial state; others do not see it."""
    assert sequences, "one sequence at least, to know the features"
    there = [*range(len(sequences))]
    middle = len(there) // 2
    # At the front, in the middle and at the end, for an index that runs off the values does so at the end only.
    places: list[int | None] = [None, *there[:middle], None, *there[middle:], None]
    empty = [i for i, place in enumerate(places) if place is None]
    full = [i for i, place in enumerate(places) if place is not None]
    start = None if state is None else state.select([place or 0 for place in places])
    nothing = sequences[0][:0]
    outputs, final = _encode(layer, [nothing if place is None else sequences[place] for place in places], start)
    assert len(outputs) == len(places)
    assert [len(outputs[i]) for i in empty] == [0, 0, 0]
    without, without_final = _encode(layer, sequences, state)
    assert_close([outputs[i] for i in full], without)
    if final is not None:
        initial = final.reset(empty) if start is None else start
        assert_close(tensors_of(final.select(empty)), tensors_of(initial.select(empty)))
        assert_close(tensors_of(final.select(full)), tensors_of(without_final))


def check_memory(layer: nn.Module, features: int, times: float, ones: int = 511, longest: int = 512) -> None:
    """Forward and backward memory grows with the steps, not with batch x longest."""
    lengths = [1] * ones + [longest]
    batch = SequenceBatch(torch.randn(sum(lengths), features), lengths)
    with torch.profiler.profile(profile_memory=True) as profile:
        encode(layer, batch).values.sum().backward()
    # Not `profile.events()`, which leaves out what an operator allocates and counts it to the operator.
    recorded: Any = profile.profiler
    events = sorted(recorded.kineto_results.events(), key=lambda event: event.start_ns())
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    peak = max(accumulate(changes))
    assert peak >= batch.values.nbytes, "the outputs alone take more than what was measured"
    assert peak <= times * batch.values.nbytes, f"a peak of {peak / batch.values.nbytes:.1f} times the values"


def check_called_as_itself(layer: nn.Module, sequences: Sequences) -> None:
    """A layer with hooks is called as itself, and so are those in it, so that they run and what they return counts."""
    watched = copy.deepcopy(layer)
    plain, called = _called(watched, lambda: encode(watched, sequences))
    entered, left = [], []

    def double(module: nn.Module, args: Any, output: Any) -> Any:
        left.append(module)
        return _double(output)

    watched.register_forward_pre_hook(lambda module, args: entered.append(module))
    watched.register_forward_hook(double)
    hooked = encode(watched, sequences)
    if any(len(sequence) for sequence in sequences):
        assert len(entered) == len(left) == 1, "each hook runs once"
        assert entered[0] is left[0] is watched, "a hook is given another layer"
        assert_close(hooked, [2 * output for output in plain])
        longest = max(sequences, key=len)
        assert called == _called(watched, lambda: run_alone(watched, [longest]))[1]


def check_unmodified(layer: nn.Module, sequences: Sequences, state: Any = None) -> None:
    """Nothing of the caller's is modified: not the sequences, the list, the state, the batch, or the layer."""
    batch = SequenceBatch.from_sequences(sequences)
    listed = list(sequences)
    check = _watch(layer, [*sequences, batch.values, *tensors_of(state)])
    _encode(layer, sequences, state)
    encode(layer, batch)
    for sequence in sequences[:1]:
        encode(layer, sequence)
    check()
    assert all(one is other for one, other in zip(sequences, listed, strict=True))


def check_refused(layer: nn.Module, sequences: Any, kind: type[SeqbatchError], message: str, state: Any = None) -> None:
    """Bad input raises an error of this kind and message before any layer runs, and nothing is modified."""
    check = _watch(layer, [*(part for part in sequences if isinstance(part, Tensor)), *tensors_of(state)])
    entered: list[nn.Module] = []
    hook = register_module_forward_pre_hook(lambda module, args: entered.append(module))
    refused: Exception | None = None
    try:
        encode(layer, sequences) if state is None else encode_with_state(layer, sequences, state)
    except Exception as error:
        refused = error
    finally:
        hook.remove()
    assert isinstance(refused, kind), f"{refused!r} is no {kind.__name__}"
    assert re.search(message, str(refused)), f"{refused} does not match {message}"
    assert not [module for module in entered if not [*module.children()]], "a layer ran"
    check()


def tensors_of(state: Any) -> list[Tensor]:
    """Give the tensors of a state, those of a container layer by layer."""
    if state is None:
        return []
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, (tuple, ContainerState)):
        parts = state if isinstance(state, tuple) else state.states
        return [tensor for part in parts for tensor in tensors_of(part)]
    return [state.hidden, state.cell] if hasattr(state, "cell") else [state.hidden]


def _encode(layer: nn.Module, sequences: Any, state: Any = None) -> tuple[Any, Any]:
    if is_recurrent(layer):
        return encode_with_state(layer, sequences, state)
    return encode(layer, sequences), None


def _gradients(results: list[Tensor], sources: list[Tensor]) -> list[Tensor]:
    """Give the gradients of a sum weighted differently from element to element; zeros where there are none."""
    wanted = [source for source in sources if source.requires_grad]
    flat = torch.cat([torch.zeros(0), *(result.flatten() for result in results)])
    loss = (flat * torch.arange(1, 1 + len(flat)).cos()).sum()
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


def _called(layer: nn.Module, run: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Run something, and also give the names of the layers in a layer that were called, as often as they were."""
    names = {module: name for name, module in layer.named_modules() if name}
    called: list[str] = []
    hook = register_module_forward_hook(
        lambda module, args, output: called.append(names[module]) if module in names else None
    )
    try:
        return run(), sorted(called)
    finally:
        hook.remove()


def _watch(layer: nn.Module, tensors: list[Tensor]) -> Callable[[], None]:
    """Give a function that checks that these tensors and the layer are what they are now."""
    held = [*tensors, *layer.parameters()]
    before = [(tensor, tensor.detach().clone(), tensor._version, tensor.requires_grad) for tensor in held]
    attributes = _attributes(layer)

    def check() -> None:
        for tensor, value, version, requires_grad in before:
            assert tensor._version == version, "a tensor was written to"
            assert tensor.requires_grad == requires_grad
            if not tensor.is_meta:
                assert_close(tensor.detach(), value, rtol=0, atol=0, equal_nan=True)
        after = _attributes(layer)
        changed = [key for key in {**attributes, **after} if after.get(key, check) is not attributes.get(key, check)]
        assert not changed, f"the layer has changed: {changed}"

    return check


def _attributes(layer: nn.Module) -> dict[tuple[Any, ...], Any]:
    """Give all that a layer and those in it hold, also their parameters and hooks one by one."""
    return {
        (name, attribute, key): held
        for name, module in layer.named_modules()
        for attribute, value in vars(module).items()
        for key, held in (value.items() if isinstance(value, dict) else [("", value)])
    }
