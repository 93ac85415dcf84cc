"""The laws themselves: each passes a right encoder, and catches encoders that are wrong in the ways it is there for."""

from collections.abc import Callable
from typing import Any

import attrs
import laws
import pytest
import wrong_encoders as wrong
from law_calls import LAWS, xs
from torch import Tensor, nn

from seqbatch import SequenceBatch, register_encoder, register_recurrent
from seqbatch._encode import registry


@pytest.fixture(autouse=True)
def _registry_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the registry after each test."""
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("law", LAWS)
def test_a_right_encoder_passes(law: str, stepwise: bool) -> None:
    register_encoder(wrong.Scaled, stepwise=stepwise)(wrong.right)
    LAWS[law](wrong.Scaled())
    register_encoder(wrong.Outer)(wrong.right)
    LAWS[law](wrong.Outer())
    LAWS[law](wrong.my_gru())


def test_an_encoder_that_calls_the_layer_for_each_sequence_runs_its_hooks() -> None:
    register_encoder(wrong.Scaled)(wrong.calls_sequence_by_sequence)
    LAWS["called as itself"](wrong.Scaled())


FAULTS: dict[str, list[Callable[[Any, SequenceBatch], SequenceBatch]]] = {
    "alone": [
        wrong.mixes_neighbours,
        wrong.reads_the_step_before_across_sequences,
        wrong.detaches_the_input,
        wrong.detaches_the_weights,
        wrong.gives_the_gradient_to_a_neighbour_of_equal_length,
    ],
    "order": [wrong.counts_the_sequences, wrong.reads_the_step_before_across_sequences],
    "padding": [
        wrong.averages_over_padding,
        wrong.detaches_the_weights,
        wrong.multiplies_neighbours_by_zero,
        wrong.multiplies_neighbours_by_zero_going_back,
        wrong.multiplies_infinite_neighbours_by_zero,
    ],
    "lengths": [wrong.drops_the_last_step, wrong.pads_empty_sequences],
    "empty": [
        wrong.pads_empty_sequences,
        wrong.looks_up_empty_sequences,
        wrong.forgets_the_features_of_empty_sequences,
        wrong.forgets_the_dtype_of_empty_sequences,
        wrong.forgets_the_features_of_no_sequences,
        wrong.gives_a_step_if_all_are_empty,
    ],
    "memory": [wrong.pads],
    "memory, by the values": [wrong.pads],
    "called as itself": [
        wrong.skips_hooks,
        wrong.skips_hooks_before,
        wrong.skips_hooks_after,
        wrong.skips_hooks_of_the_backward_pass,
        wrong.counts_what_hooks_of_the_backward_pass_return_for_one_sequence,
        wrong.ignores_what_hooks_return,
        wrong.counts_what_hooks_return_for_one_sequence,
        wrong.calls_a_copy,
        wrong.skips_hooks_inside,
    ],
    "unmodified": [
        wrong.writes_to_the_input,
        wrong.writes_to_the_input_unseen,
        wrong.leaves_an_attribute,
        wrong.leaves_eval_mode,
        wrong.leaves_eval_mode_inside,
        wrong.writes_to_a_buffer,
        wrong.writes_to_a_buffer_unseen,
        wrong.leaves_a_hook_inside,
        wrong.leaves_frozen_weights,
    ],
    "refused": [
        wrong.refuses_nothing,
        wrong.leaves_it_to_torch,
        wrong.refuses_after_the_layer_ran,
        wrong.refuses_after_writing,
        wrong.refuses_with_another_message,
    ],
}


@pytest.mark.parametrize(("law", "fault"), [(law, fault) for law, faults in FAULTS.items() for fault in faults])
def test_a_wrong_encoder_is_caught(law: str, fault: Callable[[Any, SequenceBatch], SequenceBatch]) -> None:
    layer = wrong.Outer() if "inside" in fault.__name__ else wrong.Scaled()
    register_encoder(type(layer))(fault)
    kind = IndexError if fault is wrong.looks_up_empty_sequences else AssertionError
    with pytest.raises(kind):
        LAWS[law](layer)


def test_a_wrong_claim_of_treating_every_step_by_itself_is_caught() -> None:
    register_encoder(wrong.Scaled)(wrong.doubles_the_first_step)
    LAWS["stepwise"](wrong.Scaled())
    register_encoder(wrong.Scaled, stepwise=True)(wrong.doubles_the_first_step)
    with pytest.raises(
        AssertionError, match="it is registered as stepwise, but a step by itself gets another output: "
    ):
        LAWS["stepwise"](wrong.Scaled())
    register_encoder(wrong.Scaled, stepwise=True)(lambda layer, batch: batch[:, ::2].map(layer))
    with pytest.raises(AssertionError, match="registered as stepwise, but changes the number of steps"):
        LAWS["stepwise"](wrong.Scaled())


@pytest.mark.parametrize(
    ("law", "fault"),
    [
        ("alone", wrong.rolls_the_state),
        ("alone", wrong.detaches_the_state),
        ("alone, from a state", wrong.ignores_the_state),
        ("order", wrong.leaves_the_state_sorted),
        ("padding", wrong.leaves_the_state_sorted),
        ("padding", wrong.adds_zero_times_other_states),
        ("empty", wrong.moves_the_state_of_empty_sequences),
        ("empty", wrong.moves_the_state_of_the_last_if_empty),
        ("empty", wrong.forgets_the_size_of_the_state_of_nothing),
        ("empty, from a state", wrong.forgets_the_size_of_the_state_of_nothing),
        ("empty", wrong.forgets_the_dtype_of_the_state_of_no_sequences),
        ("empty, from a state", wrong.resets_the_state_of_empty_sequences),
        ("unmodified", wrong.writes_to_the_state),
    ],
)
def test_a_wrong_recurrent_encoder_is_caught(
    law: str, fault: Callable[[Any, SequenceBatch, Any], wrong.Outcome]
) -> None:
    register_recurrent(wrong.MyGRU)(fault)
    with pytest.raises(AssertionError):
        LAWS[law](wrong.my_gru())


@pytest.mark.parametrize(
    ("law", "run", "outputs"),
    [
        ("called as itself", wrong.skips_hooks_for_the_state, wrong.right_outputs),
        ("called as itself", wrong.run, wrong.skips_hooks_for_the_outputs),
        ("called as itself, from a state", wrong.skips_hooks_from_a_state, wrong.right_outputs),
        ("memory", wrong.pads_for_the_state, wrong.right_outputs),
        ("memory", wrong.run, wrong.pads_for_the_outputs),
        ("lengths", wrong.drops_the_last_step_for_the_state, wrong.right_outputs),
        ("order, from no state", wrong.run, wrong.counts_the_sequences_for_the_outputs),
        ("padding", wrong.run, wrong.multiplies_neighbours_by_zero_for_the_outputs),
        ("empty", wrong.run, wrong.forgets_the_features_of_empty_sequences_for_the_outputs),
    ],
)
def test_an_encoder_that_is_wrong_in_one_of_two_ways_is_caught(
    law: str, run: Callable[[Any, SequenceBatch, Any], wrong.Outcome], outputs: Callable[..., SequenceBatch]
) -> None:
    register_recurrent(wrong.MyGRU, outputs=wrong.right_outputs)(wrong.run)
    LAWS[law](wrong.my_gru())
    register_recurrent(wrong.MyGRU, outputs=outputs)(run)
    way = "encode" if run is wrong.run else "encode_with_state"
    with pytest.raises(AssertionError, match=f"^by {way}: "):
        LAWS[law](wrong.my_gru())


def test_outputs_that_refuse_nothing_are_caught() -> None:
    register_recurrent(wrong.MyGRU, outputs=wrong.refuses_nothing)(wrong.run)
    with pytest.raises(AssertionError, match="None is not a SeqbatchValueError"):
        LAWS["refused, from no state"](wrong.my_gru())


@pytest.mark.parametrize(
    "change",
    [lambda given: given.pop(), lambda given: given.append(given[0]), lambda given: given.reverse()],
    ids=["pop", "append", "reverse"],
)
def test_a_change_of_the_callers_list_is_caught(change: Callable[[list[Tensor]], Any]) -> None:
    given = xs()

    @register_encoder(wrong.Scaled)
    def _(layer: wrong.Scaled, batch: SequenceBatch) -> SequenceBatch:
        change(given)
        return batch.map(layer)

    with pytest.raises(AssertionError, match="the list, or the state, holds other tensors"):
        laws.check_unmodified(wrong.Scaled(), given)


@attrs.define
class Loose:
    """A state that can be changed."""

    hidden: Tensor


def test_a_change_of_what_the_state_holds_is_caught() -> None:
    @register_recurrent(wrong.MyGRU)
    def _(layer: wrong.MyGRU, batch: SequenceBatch, state: Loose | None) -> tuple[SequenceBatch, Any]:
        if state is not None:
            state.hidden = state.hidden.clone()
        return wrong.run(layer, batch, None)

    with pytest.raises(AssertionError, match="the list, or the state, holds other tensors"):
        laws.check_unmodified(wrong.my_gru(), xs(), Loose(xs()[0]))


def test_what_of_a_neighbour_is_caught_is_said() -> None:
    register_encoder(wrong.Scaled)(wrong.multiplies_neighbours_by_zero)
    with pytest.raises(AssertionError, match=r"nan in sequence 0 reaches outputs of others: .* not close"):
        laws.check_padding(wrong.Scaled(), xs(), 1e9, "right", False)
    register_encoder(wrong.Scaled)(wrong.multiplies_neighbours_by_zero_going_back)
    with pytest.raises(AssertionError, match=r"nan in sequence 0 reaches gradients of others: .* not close"):
        laws.check_padding(wrong.Scaled(), xs(), 1e9, "right", False)
    register_encoder(wrong.Scaled)(wrong.multiplies_infinite_neighbours_by_zero)
    with pytest.raises(AssertionError, match=r"inf in sequence 0 reaches outputs of others: .* not close"):
        laws.check_padding(wrong.Scaled(), xs(), 1e9, "right", False)


def test_padding_that_is_read_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    read = SequenceBatch.from_padded
    with monkeypatch.context() as patch:
        patch.setattr(SequenceBatch, "from_padded", lambda *args, padding_side, **options: read(*args, **options))
        with pytest.raises(AssertionError, match="Tensor-likes are not close"):
            laws.check_padding(nn.Tanh(), xs(), float("nan"), "left", True)

    def leaking(padded: Tensor, lengths: Any, **options: Any) -> SequenceBatch:
        batch = read(padded, lengths, **options)
        padding = padded[~batch.mask(total_length=padded.shape[1], **options)].sum()
        return batch.map(lambda values: values + (padding - padding.detach()))

    monkeypatch.setattr(SequenceBatch, "from_padded", leaking)
    with pytest.raises(AssertionError, match="a gradient reaches padding"):
        laws.check_padding(nn.Tanh(), xs(), 1e9, "left", True)


@pytest.mark.parametrize(
    ("conversion", "fault", "message"),
    [
        ("to_sequences", lambda right: lambda batch: right(batch.reverse()), "other values"),
        ("to_padded", lambda right: lambda batch, **o: right(batch, **{**o, "padding_side": "left"}), "other values"),
        ("mask", lambda right: lambda batch, **o: right(batch, **{**o, "padding_side": "left"}), "other values"),
        ("to_packed", lambda right: lambda batch: right(batch.detach()), "no gradient by way of .*packed"),
        ("from_packed", lambda right: lambda packed: right(packed)[::-1], "other lengths by way of packed"),
        ("to_nested", lambda right: lambda batch: right(batch.map(lambda x: 2 * x - x.detach())), "another gradient"),
        ("from_nested", lambda right: lambda nested: right(nested).map(lambda x: x * (1 + 1e-15)), "other values"),
        (
            "from_offsets",
            lambda right: lambda values, starts: right(values, starts[[0, -1]]),
            "other lengths by way of",
        ),
    ],
)
def test_a_wrong_conversion_is_caught(
    monkeypatch: pytest.MonkeyPatch, conversion: str, fault: Callable[[Any], Any], message: str
) -> None:
    batch = SequenceBatch.from_sequences(xs())
    laws.check_round_trip(batch)
    monkeypatch.setattr(SequenceBatch, conversion, fault(getattr(SequenceBatch, conversion)))
    with pytest.raises(AssertionError, match=message):
        laws.check_round_trip(batch)
