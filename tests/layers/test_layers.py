"""What all layers of seqbatch have in common: no `forward` of their own, hooks, repr, and what is asked of options."""

import re
from collections.abc import Callable
from typing import Any

import laws
import pytest
import torch
from strategies import sequences
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import (
    SeqbatchTypeError,
    SeqbatchValueError,
    SequenceBatch,
    UnsupportedLayerError,
    encode,
    encode_with_state,
    is_recurrent,
    layers,
)

# The arguments of the layers that take some.
ARGUMENTS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "AttentionPool": lambda: (3,),
    "Causal": lambda: (nn.TransformerEncoderLayer(3, 1, 4, dropout=0.0),),
    "LayerNormLSTM": lambda: (3, 2),
    "LayerNormLSTMCell": lambda: (3, 2),
    "LockedDropout": lambda: (0.5,),
    "Residual": lambda: (nn.GRU(3, 3),),
    "TwoWay": lambda: (nn.Linear(3, 2), nn.GRU(3, 2)),
    "WordDropout": lambda: (0.5,),
}
RECURRENT = {"LayerNormLSTM", "LayerNormLSTMCell", "Residual", "TwoWay"}
# A cell takes one step of several sequences, and not one sequence.
CELLS = {"LayerNormLSTMCell"}
# These are called as layers of PyTorch of their kind are: a cell at each step, attention once for each length.
CALLED_OFTEN = {"Causal", *CELLS}
# These take a memory too, and have tests of their own in `test_attention_to_memory`.
OVER_MEMORY = {"AdditiveAttention", "DotProductAttention"}
NAMES = sorted({*layers.__all__} - OVER_MEMORY)
every_layer = pytest.mark.parametrize("name", NAMES)
every_layer_called_once = pytest.mark.parametrize("name", [one for one in NAMES if one not in CALLED_OFTEN])
every_layer_of_a_sequence = pytest.mark.parametrize("name", [one for one in NAMES if one not in CELLS])


def make_layer(name: str, **changed: Any) -> nn.Module:
    """Make a layer, or one of a subclass that changes some attributes."""
    kind: Any = getattr(layers, name)
    layer: nn.Module = (type("Mine", (kind,), changed) if changed else kind)(*ARGUMENTS.get(name, tuple)())
    return layer


def raise_interrupt(self: Any, *inputs: Any) -> Tensor:
    raise InterruptedError


@every_layer_called_once
def test_a_subclass_with_its_own_forward_is_refused(name: str) -> None:
    layer = make_layer(name, forward=raise_interrupt)
    with pytest.raises(UnsupportedLayerError, match=r"`layer` must have an encoder; got .*Mine: it has a forward of"):
        encode(layer, [torch.zeros(2, 3)])


@pytest.mark.parametrize("name", sorted(CALLED_OFTEN))
def test_a_subclass_with_its_own_forward_is_called(name: str) -> None:
    with pytest.raises(InterruptedError):
        encode(make_layer(name, forward=raise_interrupt), [torch.zeros(2, 3)])


@every_layer
def test_a_subclass_without_one_runs_as_its_base(name: str) -> None:
    layer = make_layer(name, other=1)
    assert [len(output) for output in encode(layer.eval(), [torch.zeros(1, 3), torch.zeros(0, 3)])] == [1, 0]


@every_layer
def test_it_keeps_a_state_or_not(name: str) -> None:
    assert is_recurrent(make_layer(name)) == (name in RECURRENT)


@every_layer_called_once
def test_hooks_run_once_with_flat_values(name: str) -> None:
    layer = make_layer(name).eval()
    xs = sequences([3, 0, 2], (3,), torch.float32)
    plain = encode(layer, xs)
    seen: list[Any] = []

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        seen.append((module, args[0].shape))
        return (2 * output[0], output[1]) if isinstance(output, tuple) else 2 * output

    layer.register_forward_pre_hook(lambda module, args: seen.append((module, args[0].shape)))
    layer.register_forward_hook(after)
    assert_close(encode(layer, xs), [2 * output for output in plain])
    assert seen == [(layer, (5, 3))] * 2


@every_layer_of_a_sequence
def test_one_tensor_by_itself_gives_what_encode_gives(name: str) -> None:
    layer = make_layer(name).eval()
    for x in sequences([4, 1, 0], (3,), torch.float32):
        found = layer(x)
        assert_close(found[0] if isinstance(found, tuple) else found, encode(layer, x))


@every_layer
def test_an_empty_list_gives_an_empty_list(name: str) -> None:
    layer = make_layer(name)
    assert encode(layer, []) == []
    assert encode(nn.Sequential(layer, nn.ReLU()), []) == []
    if name in RECURRENT:
        outputs, state = encode_with_state(layer, [])
        assert (outputs, state.batch_size) == ([], 0)
        assert encode_with_state(layer, [], state)[0] == []


@every_layer
def test_a_batch_of_none_that_fits_passes(name: str) -> None:
    outputs = encode(make_layer(name), SequenceBatch(torch.zeros(0, 3), []))
    assert outputs.lengths == ()


@every_layer_of_a_sequence
def test_what_has_no_steps_is_refused(name: str) -> None:
    layer = make_layer(name)
    with pytest.raises(
        SeqbatchValueError, match=r"`sequence` must have shape \(steps, \*features\); got a Tensor of no"
    ):
        layer(torch.zeros(()))
    with pytest.raises(SeqbatchTypeError, match=r"`sequence` must be a Tensor; got a list\."):
        layer([torch.zeros(2, 3)])


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (layers.LockedDropout(0.25), "LockedDropout(p=0.25)"),
        (layers.WordDropout(0.25), "WordDropout(p=0.25)"),
        (layers.WordDropout(0.25, token=3), "WordDropout(p=0.25, token=3)"),
        (layers.AttentionPool(5), "AttentionPool(5)"),
        (layers.MeanPool(), "MeanPool()"),
        (layers.LayerNormLSTM(5, 3), "LayerNormLSTM(\n  5, 3\n  (cell): LayerNormLSTMCell(\n    5, 3, bias=False\n"),
    ],
)
def test_repr(layer: nn.Module, text: str) -> None:
    assert repr(layer).startswith(text)


@pytest.mark.parametrize("kind", [layers.LockedDropout, layers.WordDropout])
@pytest.mark.parametrize(
    ("p", "error", "found"),
    [
        (1.5, SeqbatchValueError, "be from 0 to 1; got 1.5."),
        (-0.1, SeqbatchValueError, "be from 0 to 1; got -0.1."),
        (float("nan"), SeqbatchValueError, "be from 0 to 1; got nan."),
        ("0.5", SeqbatchTypeError, "be a number; got '0.5'."),
        (None, SeqbatchTypeError, "be a number; got None."),
        (True, SeqbatchTypeError, "be a number; got True."),
    ],
)
def test_probabilities(kind: Any, p: Any, error: Any, found: str) -> None:
    with pytest.raises(error, match=re.escape(f"`p` must {found}")):
        kind(p)
    assert kind(1).p == 1


def test_other_options() -> None:
    with pytest.raises(SeqbatchTypeError, match=r"`token` must be an integer; got 1\.5\."):
        layers.WordDropout(0.5, token=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(SeqbatchTypeError, match=r"`features` must be an integer; got 'all'\."):
        layers.AttentionPool("all")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.AttentionPool(-1), "`features` must be at least 0; got -1."),
        (lambda: layers.LayerNormLSTM(-2, 3), "`input_size` must be at least 0; got -2."),
        (lambda: layers.LayerNormLSTM(2, -3), "`hidden_size` must be at least 0; got -3."),
        (lambda: layers.LayerNormLSTMCell(-2, 3), "`input_size` must be at least 0; got -2."),
        (lambda: layers.LayerNormLSTMCell(2, -3), "`hidden_size` must be at least 0; got -3."),
    ],
)
def test_sizes_that_there_are_none_of(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(SeqbatchValueError, match=re.escape(message)):
        make()


def test_sizes_that_are_not_integers() -> None:
    makers: list[Any] = [layers.LayerNormLSTM, layers.LayerNormLSTMCell]
    for maker in makers:
        with pytest.raises(SeqbatchTypeError, match=r"`input_size` must be an integer; got 'a'\."):
            maker("a", 2)
        with pytest.raises(SeqbatchTypeError, match=r"`hidden_size` must be an integer; got 1\.5\."):
            maker(2, 1.5)


@pytest.mark.parametrize(
    ("make", "subject"),
    [
        (layers.Residual, "layer"),
        (lambda value: layers.TwoWay(value, nn.Tanh()), "forward_layer"),
        (lambda value: layers.TwoWay(nn.Tanh(), value), "backward_layer"),
    ],
)
def test_what_is_not_a_layer(make: Any, subject: str) -> None:
    with pytest.raises(SeqbatchTypeError, match=rf"`{subject}` must be an nn\.Module; got None\.$"):
        make(None)
    message = rf"`{subject}` must be an nn\.Module; got a type\. Pass a layer, not its class\."
    with pytest.raises(SeqbatchTypeError, match=message):
        make(nn.GRU)


@every_layer
def test_nothing_is_modified(name: str) -> None:
    laws.check_unmodified(make_layer(name), sequences([3, 0, 2], (3,), torch.float32))
