"""The laws No surprise and Errors: a layer is called as itself, nothing is modified, and bad input raises."""

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils.rnn import PackedSequence
from torch.testing import assert_close

from seqbatch._batch import SequenceBatch
from seqbatch._checks.grammar import complaint, describe
from seqbatch._encode import encode
from seqbatch._torch import version_of
from seqbatch.errors import SeqbatchError, SeqbatchTypeError
from seqbatch.testing._comparison import (
    Run,
    assert_alike,
    by_each_function,
    gradients,
    run_encoder,
    run_for_outputs,
    select,
    tensors_of,
)
from seqbatch.testing._oracle import Alone, Sequences, call_alone

# The remedy if no hook of a layer runs.
CALL_THE_LAYER = "call the layer itself, and not a function of its weights"


def check_called_as_itself(
    layer: nn.Module, sequences: Sequences, state: Any = None, *, alone: Alone = call_alone
) -> None:
    """Law No surprise: a layer and its submodules are called as themselves, so that their hooks take effect.

    Hooks run at least once, and their results apply to every sequence. The encoder decides how often they run: once, or
    once for each length, each sequence or each step.

    Args:
        layer: as for `check_alone`; it is copied.
        sequences: Tensors `(steps, *features)`.
        state: as for `check_alone`.
        alone: as for `check_alone`.

    Raises:
        AssertionError: the law is broken.
        SeqbatchTypeError: the layer cannot be copied, or a state has no `select`.

    >>> check_called_as_itself(nn.Linear(5, 3), [torch.randn(4, 5), torch.randn(2, 5)])
    """
    there = [i for i, sequence in enumerate(sequences) if len(sequence)]

    def check(run: Run) -> None:
        _check_hooks(layer, run, sequences, state, alone)
        if there:
            _check_backward_hooks(layer, run, [sequences[i] for i in there], select(state, there), alone)

    by_each_function(layer, check, state)


def _check_hooks(layer: nn.Module, run: Run, sequences: Sequences, state: Any, alone: Alone) -> None:
    """Check that forward hooks of the layer run and take effect, and that its submodules are called."""
    watched = copied(layer)
    (plain, _), called = submodules_called(watched, lambda: run(watched, sequences, state))
    entered, left = [], []

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        left.append(module)
        return sevens_like(output)

    watched.register_forward_pre_hook(lambda module, args: entered.append(module))
    watched.register_forward_hook(replace)
    hooked, _ = run(watched, sequences, state)
    if any(len(sequence) for sequence in sequences):
        assert entered, f"a hook before the layer must run at least once; {CALL_THE_LAYER}"
        assert left, f"a hook after the layer must run at least once; {CALL_THE_LAYER}"
        assert all(module is watched for module in entered + left), "a hook is given another layer"
        replaced = [torch.full_like(output, 7) for output in plain]
        assert_alike(hooked, replaced, "what a hook returns must count for every sequence")
        longest = max(sequences, key=len)
        wanted = submodules_called(watched, lambda: alone(watched, longest.clone(), None))[1]
        assert called == wanted, f"the layers in it that run must be {sorted(wanted)}; got {sorted(called)}"


def _check_backward_hooks(layer: nn.Module, run: Run, sequences: Sequences, state: Any, alone: Alone) -> None:
    """Check that a backward hook runs and takes effect, if it does for a sequence alone."""
    watched = copied(layer)
    ran: list[nn.Module] = []

    def stop(module: nn.Module, gradients: Any, _: Any) -> Any:
        ran.append(module)
        return tuple(None if gradient is None else torch.zeros_like(gradient) for gradient in gradients)

    watched.register_full_backward_hook(stop)

    def gradients_of(call: Callable[[Sequences], list[Tensor]], sequences: Sequences) -> list[Tensor]:
        sources = [one.detach().clone().requires_grad_(one.is_floating_point()) for one in sequences]
        return gradients(call(sources), sources)

    def run_alone(sequences: Sequences) -> list[Tensor]:
        return tensors_of(alone(watched, sequences[0], None))[:1]

    try:
        wanted = gradients_of(run_alone, sequences[:1])
    except RuntimeError as error:
        if "modified inplace" in str(error):  # because PyTorch refuses such hooks on a layer that works in place
            return
        raise
    if ran and not any(gradient.any() for gradient in wanted):
        ran.clear()
        found = gradients_of(lambda sequences: run(watched, sequences, state)[0], sequences)
        remedy = "PyTorch registers such hooks on the Tensors that a layer takes and returns: call it on Tensors"
        assert ran, f"a hook of the backward pass must run at least once; {remedy}"
        told = f"what a hook of the backward pass returns must count for every sequence; {remedy}"
        assert not any(gradient.any() for gradient in found), told


def check_unmodified(layer: nn.Module, sequences: Sequences, state: Any = None) -> None:
    """Law Errors: the caller's sequences, list, batch, state and layer are not modified.

    For the layer and its submodules this covers weights, buffers, hooks, attributes and training mode.

    Args:
        layer: as for `check_alone`.
        sequences: Tensors `(steps, *features)`.
        state: the state to start from, of a recurrent layer.

    Raises:
        AssertionError: the law is broken.

    >>> check_unmodified(nn.ReLU(inplace=True), [torch.randn(4, 5), torch.randn(2, 5)])
    """
    batch = SequenceBatch.from_sequences(sequences)
    check = watch(layer, sequences, state, batch.values)
    run_encoder(layer, sequences, state)
    encode(layer, batch)
    for sequence in sequences[:1]:
        encode(layer, SequenceBatch(sequence, [len(sequence)]))  # without a copy, as for one Tensor
    check()


def check_refused(layer: nn.Module, sequences: Any, kind: type[SeqbatchError], message: str, state: Any = None) -> None:
    r"""Law Errors: bad input raises before any layer runs, and nothing is modified.

    Args:
        layer: as for `check_alone`.
        sequences: the bad input, or input for which `state` is wrong.
        kind: the class of the error.
        message: a regular expression that its message must match.
        state: the state to start from, of a recurrent layer.

    Raises:
        AssertionError: the law is broken.

    >>> check_refused(nn.Linear(5, 3), [torch.randn(4, 2)], SeqbatchValueError, r"features that end with \(5,\)")
    """

    def check(run: Run) -> None:
        check_same = watch(layer, sequences, state)
        entered: list[nn.Module] = []
        hook = register_module_forward_pre_hook(lambda module, args: entered.append(module))
        refused: Exception | None = None
        try:
            run(layer, sequences, state)
        except Exception as error:
            refused = error
        finally:
            hook.remove()
        assert isinstance(refused, kind), f"{refused!r} is not a {kind.__name__}"
        assert re.search(message, str(refused)), f"{refused} does not match {message}"
        assert not [module for module in entered if not [*module.children()]], "a layer ran"
        check_same()

    check(run_encoder)
    if state is None:
        check(run_for_outputs)


def copied(layer: nn.Module) -> nn.Module:
    """Copy a layer deeply, or raise if it cannot be copied."""
    try:
        return copy.deepcopy(layer)
    except Exception as error:
        must = "be one that copy.deepcopy can copy, because copies of it are checked"
        remedy = f"Copying says: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise complaint(SeqbatchTypeError, "layer", must, describe(layer), remedy) from error


def sevens_like(output: Any) -> Any:
    """Return an output of sevens, whose effect shows even if it is fed back into the layer."""
    if isinstance(output, PackedSequence):
        return PackedSequence(sevens_like(output.data), *output[1:])
    if isinstance(output, tuple):
        return (sevens_like(output[0]), *output[1:])
    return torch.full_like(output, 7)


def submodules_called(layer: nn.Module, call: Callable[[], Any]) -> tuple[Any, set[str]]:
    """Call a function, and return its result and the names of the submodules that were called."""
    names = {module: name for name, module in layer.named_modules() if name}
    called: set[str] = set()
    hook = register_module_forward_hook(
        lambda module, args, output: called.add(names[module]) if module in names else None
    )
    try:
        return call(), called
    finally:
        hook.remove()


def watch(layer: nn.Module, sequences: Any, state: Any, *others: Tensor) -> Callable[[], None]:
    """Return a function that raises if sequences, their list, a state or a layer differ from what they are now."""

    def listed() -> list[Any]:
        return [*(sequences if isinstance(sequences, list) else []), *tensors_of(state)]

    holding = listed()
    given = [part for part in sequences if isinstance(part, Tensor)]
    held = [*given, *tensors_of(state), *others, *layer.parameters(), *layer.buffers()]
    before = [(tensor, tensor.detach().clone(), version_of(tensor), tensor.requires_grad) for tensor in held]
    attributes = _attributes(layer)

    def check() -> None:
        for tensor, value, version, requires_grad in before:
            assert version_of(tensor) == version, "a tensor was written to"
            assert tensor.requires_grad == requires_grad, "a tensor asks for gradients, or no longer does"
            if not tensor.is_meta:
                assert_close(tensor.detach(), value, rtol=0, atol=0, equal_nan=True)
        now = listed()
        same = len(now) == len(holding) and all(one is other for one, other in zip(now, holding, strict=True))
        assert same, "the list, or the state, holds other tensors"
        after = _attributes(layer)
        changed = [key for key in {**attributes, **after} if after.get(key, check) is not attributes.get(key, check)]
        assert not changed, f"the layer has changed: {changed}"

    return check


def _attributes(layer: nn.Module) -> dict[tuple[Any, ...], Any]:
    """Return all attributes of a layer and its submodules, with parameters and hooks one by one."""
    return {
        (name, attribute, key): held
        for name, module in layer.named_modules()
        for attribute, value in vars(module).items()
        for key, held in (value.items() if isinstance(value, dict) else [("", value)])
    }
