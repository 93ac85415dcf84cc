"""check_encoder: one layer on the laws, by lengths that Hypothesis draws and makes as small as can be."""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seqbatch._checks import describe
from seqbatch._registry import is_recurrent
from seqbatch.encoders._layers import is_lazy
from seqbatch.testing import _bits, _conduct, _laws, _memory, _padding
from seqbatch.testing._alone import Alone, Sequences, call_alone
from seqbatch.testing._strategies import PATTERNS, lengths, make_all, maker

_Law = Callable[[nn.Module, Sequences, Any], None]

# More than one chunk of steps, of which the sequences end in different ones; from these no smaller case is sought.
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

    Each time it is checked on a new copy of the layer, so that what an encoder changes shows in each law.

    Give it a layer in double precision, or results of single precision must agree to its own tolerance; and one that
    draws no random numbers: `layer.eval()`, or dropout of 0.

    Args:
        layer: the layer; its encoder must be registered, and `copy.deepcopy` must be able to copy it.
        features: the shape of one step.
        make: from a number of steps to a Tensor `(steps, *features)`, of random numbers of PyTorch's default generator,
            which is seeded before; by default values of the dtype of the layer's weights, which require gradients. For
            token ids give your own.
        make_state: from a number of sequences to a state to start from, for a recurrent layer; by default its laws are
            checked from no state only.
        alone: the oracle, `(layer, sequence, state) -> output`, or `(output, state)` for a recurrent layer; by default
            it calls the layer, and one of PyTorch as that asks for.
        rule: from the steps of a sequence, 1 at least, to those of its output.
        times: how many times the memory that one sequence of 512 steps takes by itself, by the step, may be in use at
            the peak of forward and backward, for 511 sequences of one step beside it: about 1 for most layers, 256 for
            an encoder that pads; None to leave that law out, as for values without gradients.
        least: how many steps a sequence must have, for a layer that takes none shorter. With 1 or more the law Empty is
            not checked; for that of memory all steps are multiplied by it.
        examples: how many lists of lengths are drawn for each law and pattern.
        bits: whether the law Bits is checked, by `check_bits`; most layers of PyTorch break it.

    Raises:
        AssertionError: a law is broken, or something is raised where it is checked; it says which law, the smallest
            lengths found that show it, and what differs or was raised, which is its cause.
        SeqbatchTypeError: the layer cannot be copied.

    Source: Hypothesis, `hypothesis.given`.

    >>> check_encoder(nn.Linear(5, 3).double(), (5,), examples=1)
    """
    layer = _conduct.copied(layer)
    dtypes = (weight.dtype for weight in layer.parameters() if weight.is_floating_point() or weight.is_complex())
    dtype = next(dtypes, torch.float64)
    make = make or maker(features, dtype)
    has_gradients = make(1).requires_grad
    if any(is_lazy(module) for module in layer.modules()):
        alone(layer, make(max(least, 1)), None)  # or its copies would take their sizes, which changes them
    states = [None] if make_state is None or not is_recurrent(layer) else [None, make_state]
    for name, law in _laws_of(alone, rule, has_gradients, least, bits).items():
        drawn = [lengths(pattern, least=least) for pattern in PATTERNS]
        if name in ("Alone", "Padding"):
            drawn.append(st.just([max(least, 1) * count for count in _LONG if count or not least]))
        for some, start in product(drawn, states):
            _check(layer, name, law, some, make, start, examples)
    if times is not None and has_gradients:
        try:
            _memory.check_memory(_conduct.copied(layer), make, times=times, least=least)
        except Exception as error:
            raise _broken(layer, "Memory", "", error) from error


def _laws_of(alone: Alone, rule: Callable[[int], int], has_gradients: bool, least: int, bits: bool) -> dict[str, _Law]:
    """Give the laws by their names, each a function of a layer, sequences and a state."""
    found: dict[str, _Law] = {
        "Alone": lambda layer, xs, state: _laws.check_alone(layer, xs, state, alone=alone),
        "Order": lambda layer, xs, state: _laws.check_order(layer, xs, [*reversed(range(len(xs)))], state),
        "Padding": lambda layer, xs, state: _padding.check_padding(layer, xs, alone=alone),
        "Lengths": lambda layer, xs, state: _laws.check_lengths(layer, xs, rule=rule),
        "Empty": lambda layer, xs, state: _laws.check_empty(layer, xs, state) if xs else None,
        "No surprise": lambda layer, xs, state: _conduct.check_called_as_itself(layer, xs, state, alone=alone),
        "Errors (nothing is modified)": _conduct.check_unmodified,
    }
    if bits:
        found["Bits"] = _bits.check_bits
    if not has_gradients:  # there is no poison that is a token id
        del found["Padding"]
    if least:
        del found["Empty"]
    return found


def _check(
    layer: nn.Module,
    name: str,
    law: _Law,
    drawn: st.SearchStrategy[list[int]],
    make: Callable[[int], Tensor],
    make_state: Callable[[int], Any] | None,
    examples: int,
) -> None:
    """Check one law on lengths drawn; Hypothesis runs the smallest case that fails last, so its error is raised."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,  # or two would come out as a group, which is no AssertionError
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.nested_given],
    )
    @given(drawn)
    def run(lengths: list[int]) -> None:
        made, state = make_all(make, lengths), None if make_state is None else make_state(len(lengths))
        try:
            law(_conduct.copied(layer), made, state)
        except Exception as error:
            start = "" if make_state is None else ", from a state"
            raise _broken(layer, name, f" on sequences of {lengths} steps{start}", error) from error

    run()


def _broken(layer: nn.Module, law: str, where: str, error: Exception) -> AssertionError:
    """Make the error that says which law is broken and where; one that no law raised is named by its type too."""
    told = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    return AssertionError(f"{describe(layer)} breaks the law {law}{where}: {told}")
