"""check_bits: it passes layers that obey the law Bits, and says how an encoder was run that breaks it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import wrong_encoders as wrong
from law_calls import LAWS
from strategies import sequences, state_for
from torch import Tensor, nn

from seqbatch import SequenceBatch, _kernels, register_encoder, register_recurrent
from seqbatch._encode import registry
from seqbatch.layers import TwoWay
from seqbatch.testing import _bits_law, check_bits, check_encoder

LENGTHS = [3, 0, 3, 1, 4]


@pytest.fixture(autouse=True)
def _registry_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the registry after each test."""
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def xs() -> list[Tensor]:
    return sequences(LENGTHS, (2,))


def forward_gru() -> wrong.MyGRU:
    """A layer that can run in chunks."""
    torch.manual_seed(0)
    return wrong.MyGRU(2, 2, num_layers=2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("layer", "make"),
    [
        (wrong.Scaled(), lambda steps: torch.randn(steps, 2, dtype=torch.float64)),
        (wrong.Scaled(), lambda steps: torch.randn(steps, 2, dtype=torch.complex128)),
        (wrong.Scaled(), lambda steps: torch.full((steps, 2), torch.nan, dtype=torch.float64)),
        (nn.Embedding(5, 2), lambda steps: torch.randint(5, (steps,))),
        (nn.Flatten(), lambda steps: torch.randn(steps, 2) > 0),
    ],
    ids=["real", "complex", "NaN", "ids", "bool"],
)
@pytest.mark.parametrize("lengths", [LENGTHS, [0, 0], [2], []], ids=str)
def test_right_encoders_pass(layer: nn.Module, make: Callable[[int], Tensor], lengths: list[int]) -> None:
    register_encoder(wrong.Scaled)(wrong.right)
    check_bits(layer, [make(steps) for steps in lengths])


# How an encoder runs when its wrong results are seen, and what of a sequence is wrong.
FAULTS: dict[Callable[..., Any], str] = {
    wrong.divides_by_the_longest: "all together, the output of sequence 2",
    wrong.rounds_if_the_first_of_several_is_longest: "in reverse order, the output of sequence 4",
    wrong.rounds_three_sequences: "every second one, the output of sequence 0",
    wrong.rounds_from_eight_sequences: "each twice, the output of sequence 0",
    wrong.rounds_by_the_number_of_threads: "with 3 threads, the output of sequence 0",
    wrong.rounds_one_sequence_by_the_number_of_threads: "alone with 3 threads, the output of sequence 0",
    wrong.rounds_under_no_grad: "under torch.no_grad, the output of sequence 0",
    wrong.rounds_in_inference_mode: "under torch.inference_mode, the output of sequence 0",
    wrong.rounds_inputs_without_gradients: "without gradients of the sequences, the output of sequence 0",
    wrong.rounds_the_gradients_of_several: "all together, the gradient of sequence 0",
}
# The same for layers that keep a state: how they start, and the two functions that run them.
RECURRENT_FAULTS: dict[tuple[str, Callable[..., Any], Callable[..., Any]], str] = {
    (
        "from no state",
        wrong.rounds_from_a_state,
        wrong.right_outputs,
    ): "by encode_with_state: in chunks, the output of sequence 0",
    (
        "from no state",
        wrong.rounds_the_states_of_several,
        wrong.right_outputs,
    ): "by encode_with_state: all together, the final state (tensor 0) of sequence 0",
    (
        "from a state",
        wrong.rounds_the_gradient_of_the_state_of_several,
        wrong.right_outputs,
    ): "by encode_with_state: all together, the gradient of the initial state",
    (
        "from no state",
        wrong.run,
        wrong.rounds_for_the_outputs,
    ): "by encode: by encode_with_state, the output of sequence 0",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_encoder_that_breaks_the_law_is_caught(fault: Callable[..., Any]) -> None:
    before = torch.get_num_threads()
    register_encoder(wrong.Scaled)(fault)
    message = f"^{re.escape(FAULTS[fault])} must have the bits that it has alone; [1-9]"
    with pytest.raises(AssertionError, match=message):
        check_bits(wrong.Scaled(), xs())
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not _kernels.IS_THERE, reason="only the kernels promise that nothing else differs")
@pytest.mark.parametrize("case", RECURRENT_FAULTS)
def test_a_recurrent_encoder_that_breaks_the_law_is_caught(case: Any) -> None:
    start, run, outputs = case
    layer = forward_gru()
    state = state_for(layer, len(LENGTHS)) if start == "from a state" else None
    register_recurrent(wrong.MyGRU, outputs=wrong.right_outputs)(wrong.run)
    check_bits(layer, xs(), state)
    register_recurrent(wrong.MyGRU, outputs=outputs)(run)
    message = f"^{re.escape(RECURRENT_FAULTS[case])} must have the bits that it has alone; [1-9]"
    with pytest.raises(AssertionError, match=message):
        check_bits(layer, xs(), state)


@pytest.mark.parametrize("law", LAWS)
def test_the_other_laws_do_not_see_it(law: str) -> None:
    for fault in FAULTS:
        register_encoder(wrong.Scaled)(fault)
        LAWS[law](wrong.Scaled())
    for _, run, outputs in RECURRENT_FAULTS:
        register_recurrent(wrong.MyGRU, outputs=outputs)(run)
        LAWS[law](forward_gru())


def test_a_batch_that_differs_from_a_list_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rounded:
        @staticmethod
        def from_sequences(sequences: list[Tensor]) -> SequenceBatch:
            return SequenceBatch.from_sequences([sequence * (1 + 2**-50) for sequence in sequences])

    monkeypatch.setattr(_bits_law, "SequenceBatch", Rounded)
    with pytest.raises(AssertionError, match=r"^from a SequenceBatch, the output of sequence 0 must"):
        check_bits(nn.Identity(), xs())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda values: values.float(), r"and so its shape and dtype, \(\(3, 2\), torch.float64\); got \(.*float32\)"),
        (lambda values: values[:, :1], r"and so its shape and dtype, \(\(3, 2\), .*\); got \(\(3, 1\), "),
        (lambda values: -values, "6 of 6 numbers differ, the first is -0.0 and not 0.0"),
        (lambda values: values + 2**-1074, "6 of 6 numbers differ, the first is 5e-324 and not 0.0"),
        (lambda values: values * torch.nan, "6 of 6 numbers differ, the first is nan and not 0.0"),
    ],
)
def test_it_says_what_differs(change: Callable[[Tensor], Tensor], told: str) -> None:
    def encoder(layer: nn.Tanh, batch: SequenceBatch) -> SequenceBatch:
        return batch.map(change) if len(batch) > 1 else batch

    register_encoder(nn.Tanh)(encoder)
    zeros = [torch.zeros(steps, 2, dtype=torch.float64) for steps in (3, 1)]
    message = rf"^all together, the output of sequence 0 must have the bits that it has alone.* {told}"
    with pytest.raises(AssertionError, match=message):
        check_bits(nn.Tanh(), zeros)


@pytest.mark.skipif(not _kernels.IS_THERE, reason="only the kernels promise that nothing else differs")
def test_chunks_are_for_layers_that_carry_a_state_forward() -> None:
    register_recurrent(wrong.MyGRU, outputs=wrong.right_outputs)(wrong.rounds_from_a_state)
    with pytest.raises(AssertionError, match=r"^by encode_with_state: in chunks, the output of sequence 0"):
        check_bits(nn.Sequential(forward_gru()), xs())
    check_bits(wrong.my_gru(), xs())
    check_bits(nn.Sequential(wrong.my_gru()), xs())
    with pytest.raises(AssertionError, match=r"^by encode_with_state: in chunks, the output of sequence 0"):
        check_bits(wrong.my_gru(), xs(), in_chunks=True)
    looks_ahead = TwoWay(nn.GRUCell(2, 3), nn.GRUCell(2, 3)).double()
    check_bits(looks_ahead, xs(), in_chunks=False)
    with pytest.raises(AssertionError, match=r"^by encode_with_state: in chunks, the output of sequence 0"):
        check_bits(looks_ahead, xs())


def test_check_encoder_checks_it_where_asked() -> None:
    register_encoder(wrong.Scaled)(wrong.rounds_three_sequences)
    check_encoder(wrong.Scaled(), (2,), examples=3)
    with pytest.raises(AssertionError, match=r"Scaled\(.*\) breaks the law Bits on sequences of \[1, .*\] steps: "):
        check_encoder(wrong.Scaled(), (2,), bits=True)
