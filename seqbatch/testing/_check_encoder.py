"""check_encoder: all laws for one layer, on lengths that Hypothesis draws and shrinks."""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seqbatch._checks.grammar import describe
from seqbatch._encode.registry import is_recurrent
from seqbatch._torch import is_lazy
from seqbatch.testing import _bits_law, _laws, _memory_law, _padding_law, _side_effects
from seqbatch.testing._oracle import Alone, Sequences, call_alone
from seqbatch.testing._strategies import PATTERNS, lengths, make_all, maker

_Law = Callable[[nn.Module, Sequences, Any], None]

# Several chunks of steps, with sequences that end in different ones; not shrunk.
_LONG = [70, 0, 33, 1]


def check_encoder(
    layer: nn.Module,
    features: tuple[int, ...] = (),
    *,
    make: Callable[[int], Tensor] | None = None,
    make_state: Callable[[int], Any] | None = None,
    alone: Alone = call_alone,
    rule: Callable[[int], int] = int,
    times: float | None = 50,
    least: int = 0,
    examples: int = 10,
    bits: bool = False,
) -> None:
    """Check that the encoder of a layer obeys the laws, on lengths of each of six patterns, and once on long ones.

    Each check runs on a new copy of the layer, so that a change by an encoder shows in each law.

    Pass a layer in double precision, because results in single precision must agree to its own tolerance. It must not
    draw random numbers: call `layer.eval()`, or set dropout to 0.

    Args:
        layer: the layer; its encoder must be registered, and `copy.deepcopy` must be able to copy it.
        features: the shape of one step.
        make: from a number of steps to a Tensor `(steps, *features)`, of random numbers of PyTorch's default generator,
            which is seeded before. By default, values of the dtype of the layer's weights, which require gradients.
            For token ids pass your own.
        make_state: from a number of sequences to an initial state, for a recurrent layer; by default its laws are
            checked without a state.
        alone: the oracle, `(layer, sequence, state) -> output`, or `(output, state)` for a recurrent layer; by default
            it calls the layer, and one of PyTorch in its own form.
        rule: from the steps of a sequence, at least 1, to those of its output.
        times: the limit of the law Memory, as for `check_memory`: the peak memory per step of 511 sequences of one step
            with one of 512, relative to that of the long one alone. It is about 1 for most layers and 256 for an
            encoder that pads. None skips that law, as for values without gradients.
        least: the fewest steps that the layer takes. With 1 or more the law Empty is not checked, and all steps of the
            law Memory are multiplied by it.
        examples: the number of lists of lengths that are drawn for each law and pattern.
        bits: whether to check the law Bits, by `check_bits`; most layers of PyTorch break it.

    Raises:
        AssertionError: a law is broken, or its check raised. The message names the law, the smallest lengths found, and
            the difference; an error that was raised is the cause.
        SeqbatchTypeError: the layer cannot be copied.

    Source: Hypothesis, `hypothesis.given`.

    >>> check_encoder(nn.Linear(5, 3).double(), (5,), examples=1)
    """
    layer = _side_effects.copied(layer)
    dtypes = (weight.dtype for weight in layer.parameters() if weight.is_floating_point() or weight.is_complex())
    dtype = next(dtypes, torch.float64)
    make = make or maker(features, dtype)
    has_gradients = make(1).requires_grad
    if any(is_lazy(module) for module in layer.modules()):
        alone(layer, make(max(least, 1)), None)  # because a lazy copy would be modified by its first call
    states = [None] if make_state is None or not is_recurrent(layer) else [None, make_state]
    for name, law in _laws_of(alone, rule, has_gradients, least, bits).items():
        drawn = [lengths(pattern, least=least) for pattern in PATTERNS]
        if name in ("Alone", "Padding"):
            drawn.append(st.just([max(least, 1) * count for count in _LONG if count or not least]))
        for some, start in product(drawn, states):
            _check_law(layer, name, law, some, make, start, examples)
    if times is not None and has_gradients:
        try:
            _memory_law.check_memory(_side_effects.copied(layer), make, times=times, least=least)
        except Exception as error:
            raise broken_law(layer, "Memory", "", error) from error


def _laws_of(alone: Alone, rule: Callable[[int], int], has_gradients: bool, least: int, bits: bool) -> dict[str, _Law]:
    """Return the laws by name, each a function of a layer, sequences and a state."""
    found: dict[str, _Law] = {
        "Alone": lambda layer, xs, state: _laws.check_alone(layer, xs, state, alone=alone),
        "Order": lambda layer, xs, state: _laws.check_order(layer, xs, [*reversed(range(len(xs)))], state),
        "Padding": lambda layer, xs, state: _padding_law.check_padding(layer, xs, alone=alone),
        "Lengths": lambda layer, xs, state: _laws.check_lengths(layer, xs, rule=rule),
        "Stepwise": lambda layer, xs, state: _laws.check_stepwise(layer, xs),
        "Empty": lambda layer, xs, state: _laws.check_empty(layer, xs, state) if xs else None,
        "No surprise": lambda layer, xs, state: _side_effects.check_called_as_itself(layer, xs, state, alone=alone),
        "Errors (nothing is modified)": _side_effects.check_unmodified,
    }
    if bits:
        found["Bits"] = _bits_law.check_bits
    if not has_gradients:  # because token ids cannot be NaN
        del found["Padding"]
    if least:
        del found["Empty"]
    return found


def _check_law(
    layer: nn.Module,
    name: str,
    law: _Law,
    drawn: st.SearchStrategy[list[int]],
    make: Callable[[int], Tensor],
    make_state: Callable[[int], Any] | None,
    examples: int,
) -> None:
    """Check one law on drawn lengths; Hypothesis runs the smallest failing case last, so its error is raised."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,  # because a group of errors is not an AssertionError
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.nested_given],
    )
    @given(drawn)
    def run(lengths: list[int]) -> None:
        made, state = make_all(make, lengths), None if make_state is None else make_state(len(lengths))
        try:
            law(_side_effects.copied(layer), made, state)
        except Exception as error:
            start = "" if make_state is None else ", from a state"
            raise broken_law(layer, name, f" on sequences of {lengths} steps{start}", error) from error

    run()


def broken_law(layer: nn.Module, law: str, where: str, error: Exception) -> AssertionError:
    """Build the error that names the broken law and where it broke; for other errors it includes their type."""
    told = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    return AssertionError(f"{describe(layer)} breaks the law {law}{where}: {told}")
