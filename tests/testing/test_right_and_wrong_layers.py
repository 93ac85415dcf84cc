"""check_encoder on encoders that are wrong once, or far into a sequence, and on right layers that are easily blamed."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import wrong_encoders as wrong
from torch import Tensor, nn

from seqbatch import SeqbatchTypeError, SequenceBatch, encode_with_state, register_encoder, register_recurrent
from seqbatch._encode import registry
from seqbatch._torch import is_lazy
from seqbatch.testing import check_alone, check_called_as_itself, check_encoder, check_memory, maker


@pytest.fixture(autouse=True)
def _registry_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the registry after each test."""
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (wrong.leaves_eval_mode, r"the layer has changed: \[\('', 'training', ''\)\]"),
        (wrong.replaces_the_weights_unseen, "Tensor-likes are not equal"),
        (wrong.leaves_one_hook, "the layer has changed: .*_forward_hooks"),
    ],
)
def test_a_layer_that_is_changed_once_is_caught(fault: Callable[..., Any], told: str) -> None:
    register_encoder(wrong.Scaled)(fault)
    message = rf"breaks the law Errors \(nothing is modified\) on sequences of \[1\] steps: {told}"
    with pytest.raises(AssertionError, match=message):
        check_encoder(wrong.Scaled(), (2,), examples=3)


def test_the_callers_layer_stays_as_it_is() -> None:
    register_encoder(wrong.Scaled)(wrong.leaves_eval_mode)
    layer = wrong.Scaled()
    with pytest.raises(AssertionError):
        check_encoder(layer, (2,), examples=3)
    assert layer.training


def test_a_layer_that_cannot_be_copied_is_refused() -> None:
    layer = nn.Linear(2, 3)
    layer.__dict__["lock"] = threading.Lock()
    message = r"`layer` must be one that copy\.deepcopy can copy, .*; got Linear\(.*\)\. Copying says: TypeError: "
    with pytest.raises(SeqbatchTypeError, match=message):
        check_encoder(layer, (2,))
    with pytest.raises(SeqbatchTypeError, match=message):
        check_called_as_itself(layer, [torch.randn(3, 2)])


def test_a_lazy_layer_passes_and_stays_lazy() -> None:
    layer = nn.LazyLinear(3, dtype=torch.float64)
    check_encoder(layer, (2,), examples=2)
    assert is_lazy(layer)


@pytest.mark.parametrize(("least", "lengths"), [(0, r"\[70, 0, 33, 1\]"), (2, r"\[140, 66, 2\]")])
def test_a_fault_far_into_a_sequence_is_caught(least: int, lengths: str) -> None:
    register_encoder(wrong.Scaled)(wrong.forgets_steps_from_the_ninth)
    with pytest.raises(AssertionError, match=rf"breaks the law Alone on sequences of {lengths} steps: "):
        check_encoder(wrong.Scaled(), (2,), least=least)


class Log(nn.Module):
    """Gives NaN for what is below zero, alone too."""

    def forward(self, steps: Tensor) -> Tensor:
        return steps.log()


@pytest.mark.parametrize("layer", [Log(), nn.ReLU(inplace=True)], ids=["NaN", "in place"])
def test_layers_that_are_odd_alone_too_pass(layer: nn.Module) -> None:
    register_encoder(Log)(lambda layer, batch: batch.map(layer))
    check_encoder(layer, (2,), examples=3)


def test_nan_of_the_encoder_alone_is_caught() -> None:
    @register_encoder(nn.Tanh)
    def _(layer: nn.Tanh, batch: SequenceBatch) -> SequenceBatch:
        return batch.map(lambda steps: layer(steps).where(steps > 0, torch.nan))

    with pytest.raises(AssertionError, match="breaks the law Alone"):
        check_encoder(nn.Tanh(), (2,), examples=3)


@pytest.mark.parametrize(
    ("layer", "features"),
    [
        (nn.Linear(1, 256), 1),
        (nn.LSTM(1, 64), 1),
        (nn.GRU(4, 64), 4),
        (nn.GRU(2, 32, 2, bidirectional=True), 2),
        (nn.Conv1d(1, 64, 9, padding=4), 1),
    ],
    ids=str,
)
def test_how_wide_a_layer_is_does_not_count_for_memory(layer: nn.Module, features: int) -> None:
    check_memory(layer, maker((features,), torch.float32))


@pytest.mark.parametrize(("given", "out"), [(1, 16), (2, 3), (16, 1)])
def test_an_encoder_that_pads_is_caught_by_its_memory_however_wide(given: int, out: int) -> None:
    register_encoder(nn.Linear)(wrong.pads)
    with pytest.raises(AssertionError, match=r"a peak of [12]\d\d\.\d times what the longest sequence takes by itself"):
        check_memory(nn.Linear(given, out), maker((given,), torch.float32))


class Stuck(torch.autograd.Function):
    """Gives what it is given, and has no way back."""

    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        return given.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError("no way back")


class OneWay(nn.Module):
    """A layer whose backward pass fails, alone too."""

    def forward(self, steps: Tensor) -> Tensor:
        apply: Any = Stuck.apply
        result: Tensor = apply(steps)
        return result


def test_what_the_layer_itself_raises_going_back_is_not_hidden() -> None:
    register_encoder(OneWay)(lambda layer, batch: batch.map(layer))
    with pytest.raises(RuntimeError, match="no way back"):
        check_called_as_itself(OneWay(), [torch.randn(3, 2), torch.randn(1, 2)])


@pytest.mark.parametrize(("fault", "place"), [(wrong.skips_hooks_before, "before"), (wrong.skips_hooks_after, "after")])
def test_hooks_that_are_lost_are_reported(fault: Callable[..., Any], place: str) -> None:
    register_encoder(wrong.Scaled)(fault)
    remedy = "call the layer itself, and not a function of its weights"
    with pytest.raises(AssertionError, match=f"^a hook {place} the layer must run at least once; {remedy}$"):
        check_called_as_itself(wrong.Scaled(), [torch.randn(3, 2), torch.randn(1, 2)])


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (wrong.skips_hooks_of_the_backward_pass, "a hook of the backward pass must run at least once; PyTorch regis"),
        (
            wrong.counts_what_hooks_of_the_backward_pass_return_for_one_sequence,
            "what a hook of the backward pass returns must count for every sequence; PyTorch registers such hooks on t",
        ),
    ],
)
def test_hooks_of_the_backward_pass_that_are_lost_are_reported(fault: Callable[..., Any], told: str) -> None:
    register_encoder(wrong.Scaled)(fault)
    with pytest.raises(AssertionError, match=told):
        check_called_as_itself(wrong.Scaled(), [torch.randn(3, 2), torch.randn(1, 2)])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda values: values + 1e-3, "encode returns other outputs than encode_with_state: Tensor-likes are not cl"),
        (
            lambda values: values.detach() + 0 * values,
            "encode returns other outputs than encode_with_state, of gradients",
        ),
    ],
)
def test_outputs_without_a_state_that_differ_are_caught(change: Callable[[Tensor], Tensor], told: str) -> None:
    class Mine(nn.GRU):
        """A layer with an encoder of its own."""

    def run(layer: Mine, batch: SequenceBatch, state: Any) -> Any:
        return encode_with_state(gru, batch, state)

    gru = nn.GRU(2, 3, dtype=torch.float64)
    mine = Mine(2, 3, dtype=torch.float64)
    mine.load_state_dict(gru.state_dict())
    gru._parameters = mine._parameters
    register_recurrent(Mine, outputs=lambda layer, batch: run(layer, batch, None)[0].map(change))(run)
    xs = [torch.randn(steps, 2, dtype=torch.float64, requires_grad=True) for steps in (3, 0, 2)]
    with pytest.raises(AssertionError, match=told):
        check_alone(mine, xs)
    register_recurrent(Mine)(run)
    check_alone(mine, xs)
