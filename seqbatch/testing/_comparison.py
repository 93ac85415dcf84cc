"""Tools of the laws: run a layer, and compare the tensors of a state, gradients, and bits."""

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch._checks.grammar import complaint, type_name
from seqbatch._encode import encode, encode_with_state
from seqbatch._encode.registry import is_recurrent
from seqbatch.errors import SeqbatchTypeError

# From a layer, sequences and a state, or None, to outputs and a state, or None.
Run = Callable[..., tuple[Any, Any]]


def run_encoder(layer: nn.Module, sequences: Any, state: Any = None) -> tuple[Any, Any]:
    """Run `encode_with_state`, or `encode` with None for the state if the layer keeps none."""
    if is_recurrent(layer):
        return encode_with_state(layer, sequences, state)
    return encode(layer, sequences), None


def run_for_outputs(layer: nn.Module, sequences: Any, state: None = None) -> tuple[Any, None]:
    """Run `encode`, when only the outputs are needed; a recurrent layer may use other code for that."""
    return encode(layer, sequences), None


def by_each_function(layer: nn.Module, check: Callable[[Run], None], state: Any = None) -> None:
    """Check a layer by `run_encoder` and, if it keeps a state and none is given, by `encode` too."""
    if not is_recurrent(layer):
        check(run_encoder)
        return
    functions: dict[str, Run] = {"encode_with_state": run_encoder}
    if state is None:
        functions["encode"] = run_for_outputs
    for name, function in functions.items():
        try:
            check(function)
        except AssertionError as error:
            raise AssertionError(f"by {name}: {error}") from error


def tensors_of(state: Any) -> list[Tensor]:
    """Return the tensors in a state: a Tensor, a tuple or list, or the attributes of an attrs class."""
    if state is None:
        return []
    if isinstance(state, Tensor):
        return [state]
    if attrs.has(type(state)):
        state = [getattr(state, field.name) for field in attrs.fields(type(state))]
    if isinstance(state, (tuple, list)):
        return [tensor for part in state for tensor in tensors_of(part)]
    raise TypeError(f"a state must be a Tensor, an attrs class, a tuple or a list of these; got {type(state).__name__}")


def select(state: Any, indices: list[int]) -> Any:
    """Select the states of some sequences; None stays None."""
    if state is None:
        return None
    if isinstance(state, Tensor) or not hasattr(state, "select"):  # because `Tensor.select` does something else
        must = "have a method select, from a list of indices to the state of those sequences, as RNNState"
        raise complaint(SeqbatchTypeError, "state", must, type_name(state), "Make it an attrs class that has one.")
    return state.select(indices)


def as_real(tensor: Tensor) -> Tensor:
    """View complex numbers as pairs of real ones."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def gradients(results: list[Tensor], sources: list[Tensor]) -> list[Tensor]:
    """Compute the gradients of a sum with a different weight for each element; zeros for unused sources."""
    wanted = [source for source in sources if source.requires_grad]
    flat = torch.cat([torch.zeros(0), *(as_real(result).flatten().cpu() for result in results)])
    loss = (flat * torch.arange(1, 1 + len(flat)).cos()).sum()
    if not wanted or not loss.requires_grad:
        return [torch.zeros_like(source) for source in wanted]
    found = torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=True)
    return [
        torch.zeros_like(source) if gradient is None else gradient
        for source, gradient in zip(wanted, found, strict=True)
    ]


def assert_alike(found: Any, wanted: Any, told: str = "") -> None:
    """Compare at the dtype's default tolerance, where NaN equals NaN; prefix the message."""
    assert_close(found, wanted, equal_nan=True, msg=lambda difference: f"{told}: {difference}" if told else difference)
