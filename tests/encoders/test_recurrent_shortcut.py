"""The shortcut of recurrent layers: the same bits as by their encoder, and left to it whenever anything is unusual."""

import gc
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import pytest
import torch
from reference import run_alone
from strategies import sequences
from torch import Tensor, func, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
)
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from seqbatch import (
    LSTMState,
    RNNState,
    SeqbatchTypeError,
    SeqbatchValueError,
    SequenceBatch,
    _kernels,
    encode,
    encode_with_state,
    register_recurrent,
)
from seqbatch._encode import registry
from seqbatch._encode.registry import find_encoder, register_encoder
from seqbatch._encoders.recurrent_shortcut import register_shortcuts

pytestmark = pytest.mark.skipif(not _kernels.IS_THERE, reason="only the kernels have it")

SIZES = (5, 7)
LAYERS: dict[str, Callable[..., Any]] = {
    "LSTM": lambda **options: nn.LSTM(*SIZES, **options),
    "GRU": lambda **options: nn.GRU(*SIZES, **options),
    "RNN": lambda **options: nn.RNN(*SIZES, **options),
    "relu": lambda **options: nn.RNN(*SIZES, nonlinearity="relu", **options),
    "projected": lambda **options: nn.LSTM(*SIZES, proj_size=3, **options),
    "bidirectional": lambda **options: nn.LSTM(*SIZES, bidirectional=True, **options),
    "of both": lambda **options: nn.LSTM(*SIZES, bidirectional=True, proj_size=3, **options),
    "two directions": lambda **options: nn.GRU(*SIZES, bidirectional=True, **options),
    "without biases": lambda **options: nn.GRU(*SIZES, bias=False, **options),
    "LSTMCell": lambda **options: nn.LSTMCell(*SIZES, **options),
    "GRUCell": lambda **options: nn.GRUCell(*SIZES, **options),
    "RNNCell": lambda **options: nn.RNNCell(*SIZES, **options),
    "relu cell": lambda **options: nn.RNNCell(*SIZES, nonlinearity="relu", **options),
    "cell without biases": lambda **options: nn.LSTMCell(*SIZES, bias=False, **options),
}
DEEP: dict[str, Callable[..., Any]] = {
    "three layers": lambda **options: nn.LSTM(*SIZES, num_layers=3, **options),
    "deep, both": lambda **options: nn.LSTM(*SIZES, num_layers=2, bidirectional=True, proj_size=3, **options),
    "deep GRU": lambda **options: nn.GRU(*SIZES, num_layers=8, bidirectional=True, **options),
    "dropout in evaluation": lambda **options: nn.RNN(*SIZES, num_layers=2, dropout=0.5, **options).eval(),
    "no dropout in training": lambda **options: nn.RNN(*SIZES, num_layers=2, **options),
}
LENGTHS = {"one step": [1], "one step each": [1] * 5, "unsorted": [3, 9, 1, 4], "alike": [4, 4], "one": [6]}
by_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
by_lengths = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())


def batch_of(lengths: list[int], dtype: torch.dtype = torch.float64) -> SequenceBatch:
    return SequenceBatch.from_sequences([x.detach().to(dtype) for x in sequences(lengths, SIZES[:1])])


def run_shortcut(layer: nn.Module, batch: SequenceBatch, state: Any) -> tuple[SequenceBatch, Any] | None:
    """Run a layer by the shortcut of its encoder alone; None if it leaves the call to the encoder."""
    shortcut = find_encoder(layer).shortcut
    return None if shortcut is None else shortcut(layer, batch, state)


def by_encoder(layer: nn.Module, batch: SequenceBatch, state: Any) -> tuple[SequenceBatch, Any]:
    """Run a layer by its encoder, which the shortcut must equal."""
    outputs, end = find_encoder(layer).run(layer, batch, state)
    return outputs, end


def parts_of(state: Any) -> list[Tensor]:
    return [getattr(state, name) for name in ("hidden", "cell") if hasattr(state, name)]


def state_for(layer: nn.Module, batch: SequenceBatch) -> Any:
    """Make a state of random numbers."""
    end = by_encoder(layer, batch, None)[1]
    return type(end)(*(torch.randn_like(part).detach() for part in parts_of(end)))


def require_shortcut(layer: nn.Module, batch: SequenceBatch, state: Any) -> tuple[SequenceBatch, Any]:
    done = run_shortcut(layer, batch, state)
    assert done is not None
    return done


@by_dtype
@by_lengths
@pytest.mark.parametrize("name", [*LAYERS, *DEEP])
def test_the_same_bits_as_by_the_encoder(name: str, lengths: list[int], dtype: torch.dtype) -> None:
    layer, batch = {**LAYERS, **DEEP}[name](dtype=dtype), batch_of(lengths, dtype)
    with torch.no_grad():
        for state in (None, state_for(layer, batch)):
            found, end = require_shortcut(layer, batch, state)
            wanted, wanted_end = by_encoder(layer, batch, state)
            assert type(end) is type(wanted_end)
            assert found.structure is batch.structure
            pairs = zip([found.values, *parts_of(end)], [wanted.values, *parts_of(wanted_end)], strict=True)
            for part, wanted_part in pairs:
                assert_close(part, wanted_part, rtol=0, atol=0)


@by_lengths
@pytest.mark.parametrize("name", LAYERS)
def test_the_same_gradients_as_by_the_encoder(name: str, lengths: list[int]) -> None:
    layer = LAYERS[name](dtype=torch.float64)
    batch = batch_of(lengths)
    batch = batch.with_values(batch.values.requires_grad_())
    start = state_for(layer, batch)
    for part in parts_of(start):
        part.requires_grad_()
    for state in (None, start):
        sources = [batch.values, *layer.parameters(), *([] if state is None else parts_of(state))]
        grads = []
        for run in (require_shortcut, by_encoder):
            outputs, end = run(layer, batch, state)
            outputs.values.mul_(2)  # callers may modify outputs in place
            loss = outputs.values.square().sum() + sum(part.sin().sum() for part in parts_of(end))
            grads.append(torch.autograd.grad(loss, sources))
        for found, wanted in zip(*grads, strict=True):
            assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("of", ["values", "hidden", "cell", "bias_hh_l0", "weight_hr_l0"])
def test_gradients_of_one_tensor_alone(of: str) -> None:
    lstm, batch = nn.LSTM(*SIZES, proj_size=3, dtype=torch.float64).requires_grad_(False), batch_of([3, 1])
    state = state_for(lstm, batch)
    sources = {"values": batch.values, "hidden": state.hidden, "cell": state.cell, **dict(lstm.named_parameters())}
    source = sources[of].requires_grad_()
    grads = []
    for run in (require_shortcut, by_encoder):
        outputs, end = run(lstm, batch, state)
        assert outputs.values.requires_grad
        (grad,) = torch.autograd.grad(outputs.values.square().sum() + end.cell.sum(), source)
        grads.append(grad)
    assert_close(grads[0], grads[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_strides_are_those_of_new_tensors(name: str) -> None:
    layer, batch = LAYERS[name](dtype=torch.float64), batch_of([1])
    state = state_for(layer, batch)
    odd = [part.as_strided(part.shape, (0, *part.stride()[1:])) for part in parts_of(state)]
    values = batch.values.as_strided(batch.values.shape, (0, 1))
    with torch.no_grad():
        outputs, end = require_shortcut(layer, batch.with_values(values), type(state)(*odd))
    for part in (outputs.values, *parts_of(end)):
        assert part.stride() == torch.empty(part.shape).stride()


@pytest.mark.parametrize("name", LAYERS)
def test_each_sequence_gets_what_it_gets_alone(name: str) -> None:
    layer, batch = LAYERS[name](dtype=torch.float64), batch_of([3, 1, 4])
    state = state_for(layer, batch)
    outputs, end = require_shortcut(layer, batch, state)
    wanted, ends = run_alone(layer, [*batch], parts_of(state))
    for found, one in zip(outputs, wanted, strict=True):
        assert_close(found, one)
    for part, one in zip(parts_of(end), ends, strict=True):
        assert_close(part, one)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_gradients(name: str) -> None:
    layer, batch = LAYERS[name](dtype=torch.float64), batch_of([2, 1])

    def outputs(values: Tensor) -> Tensor:
        return require_shortcut(layer, batch.with_values(values), None)[0].values

    values = batch.values.requires_grad_()
    if "relu" not in name:
        assert torch.autograd.gradgradcheck(outputs, [values])
    assert torch.autograd.gradcheck(outputs, [values])


def test_what_encode_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm, batch, calls = nn.LSTM(*SIZES, dtype=torch.float64), batch_of([3, 2]), 0
    encoder = find_encoder(lstm)

    def count(*given: Any) -> Any:
        nonlocal calls
        assert encoder.shortcut is not None
        done = encoder.shortcut(*given)
        calls += done is not None
        return done

    monkeypatch.setitem(registry._entries, nn.LSTM, attrs.evolve(encoder, shortcut=count))
    for sequences_given in (batch, [*batch], batch.to_packed(), batch[0]):
        encode(lstm, sequences_given)
        encode_with_state(lstm, sequences_given)
    assert calls == 8


# ----------------------------------------------------------------------------------------------- what is left to Python


def stock() -> tuple[Any, SequenceBatch, Any]:
    gru = nn.GRU(*SIZES, dtype=torch.float64)
    batch = batch_of([3, 1, 2])
    return gru, batch, RNNState(torch.randn(1, 1, 3, SIZES[1], dtype=torch.float64))


def changed(change: Callable[[Any], object]) -> tuple[Any, SequenceBatch, Any]:
    layer, batch, state = stock()
    change(layer)
    return layer, batch, state


class OwnForward(nn.GRU):
    def forward(self, input: Any, hx: Any = None) -> Any:
        outputs, end = super().forward(input, hx)
        return 2 * outputs, end


class Marked(Tensor):
    """A subclass that sees each operation."""


UNUSUAL_LAYERS: dict[str, Callable[[Any], object]] = {
    "hook before": lambda gru: gru.register_forward_pre_hook(lambda *given: None),
    "hook": lambda gru: gru.register_forward_hook(lambda *given: None),
    "backward hook": lambda gru: gru.register_full_backward_hook(lambda *given: None),
    "backward hook before": lambda gru: gru.register_full_backward_pre_hook(lambda *given: None),
    "forward of its own": lambda gru: setattr(gru, "forward", gru.forward),
    "parametrized": lambda gru: parametrizations.weight_norm(gru, "weight_hh_l0"),
    "weight of another shape": lambda gru: setattr(gru, "weight_hh_l0", nn.Parameter(torch.ones(3, 7).double())),
    "bias of another shape": lambda gru: setattr(gru, "bias_hh_l0", nn.Parameter(torch.ones(7).double())),
    "weight of another dtype": lambda gru: setattr(gru, "weight_hh_l0", nn.Parameter(torch.ones(21, 7))),
    "weight that is not contiguous": lambda gru: setattr(
        gru, "weight_hh_l0", nn.Parameter(torch.ones(7, 21).double().T)
    ),
    "weight of a subclass": lambda gru: gru._parameters.update(
        weight_hh_l0=torch.ones(21, 7).double().as_subclass(Marked)
    ),
    "no weight": lambda gru: gru._parameters.pop("weight_hh_l0"),
    "size that is not a number": lambda gru: setattr(gru, "hidden_size", "7"),
    "first weight of another shape": lambda gru: setattr(gru, "weight_ih_l0", nn.Parameter(torch.ones(3, 5).double())),
    "weight without memory": lambda gru: gru.weight_ih_l0.untyped_storage().resize_(0),
    "bias without memory": lambda gru: gru.bias_ih_l0.untyped_storage().resize_(0),
    "parameters of another type": lambda gru: setattr(gru, "_parameters", OrderedDict(gru._parameters)),
    "bias that is a parameter": lambda gru: setattr(gru, "bias", nn.Parameter(torch.ones(1))),
    "bias that is an array": lambda gru: setattr(gru, "bias", torch.ones(3)),
    "no option of biases": lambda gru: delattr(gru, "bias"),
    "no option of directions": lambda gru: delattr(gru, "bidirectional"),
    "another mode": lambda gru: setattr(gru, "mode", "LSTM"),
    "negative projection": lambda gru: setattr(gru, "proj_size", -3),
    "size of 0": lambda gru: setattr(gru, "input_size", 0),
    "no layer": lambda gru: setattr(gru, "num_layers", 0),
    "projection": lambda gru: setattr(gru, "proj_size", 3),
}


@pytest.mark.parametrize("name", UNUSUAL_LAYERS)
def test_an_unusual_layer_is_left_to_its_encoder(name: str) -> None:
    assert run_shortcut(*changed(UNUSUAL_LAYERS[name])) is None


OTHER_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "a subclass": lambda: type("Sub", (nn.GRU,), {})(*SIZES, dtype=torch.float64),
    "own forward": lambda: OwnForward(*SIZES, dtype=torch.float64),
    "half precision": lambda: nn.GRU(*SIZES, dtype=torch.bfloat16),
    "dropout": lambda: nn.GRU(*SIZES, num_layers=2, dropout=0.5, dtype=torch.float64).requires_grad_(False),
    "a cell with a projection": lambda: with_projection(nn.LSTMCell(*SIZES, dtype=torch.float64)),
    "nine layers": lambda: nn.GRU(*SIZES, num_layers=9, dtype=torch.float64).requires_grad_(False),
    "two layers, with gradients": lambda: nn.GRU(*SIZES, num_layers=2, dtype=torch.float64),
    "unknown nonlinearity": lambda: unknown_nonlinearity(nn.RNNCell(*SIZES, dtype=torch.float64)),
    "another type": lambda: nn.Linear(*SIZES, dtype=torch.float64),
}


def with_projection(cell: Any) -> nn.Module:
    cell.proj_size = 3
    found: nn.Module = cell
    return found


def unknown_nonlinearity(cell: Any) -> nn.Module:
    cell.nonlinearity = "sigmoid"
    found: nn.Module = cell
    return found


@pytest.mark.parametrize("name", OTHER_LAYERS)
def test_another_layer_is_left_to_its_encoder(name: str) -> None:
    layer, batch = OTHER_LAYERS[name](), batch_of([3, 1])
    dtype = next(layer.parameters()).dtype
    assert run_shortcut(layer, batch.with_values(batch.values.to(dtype)), None) is None


def negative(tensor: Tensor) -> Tensor:
    """Return a tensor of the same numbers whose memory holds them with the other sign."""
    view = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert view.is_neg()
    return view


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "other features": lambda values: values[:, :3].contiguous(),
    "more axes": lambda values: values[..., None],
    "not contiguous": lambda values: values.T.contiguous().T,
    "of another dtype": lambda values: values.float(),
    "ints": lambda values: values.long(),
    "negative": negative,
    "a subclass": lambda values: values.as_subclass(Marked),
    "meta": lambda values: values.to("meta"),
    "sparse": lambda values: values.to_sparse(),
    "zeros without memory": lambda values: torch.ops.aten._efficientzerotensor(values.shape, dtype=values.dtype),
}


@pytest.mark.parametrize("name", VALUES)
def test_unusual_values_are_left_to_the_encoder(name: str) -> None:
    gru, batch, state = stock()
    assert run_shortcut(gru, batch, state) is not None
    assert run_shortcut(gru, SequenceBatch._of(VALUES[name](batch.values), batch.structure), state) is None


def test_a_projection_of_another_shape_is_left_to_the_encoder() -> None:
    lstm, batch = nn.LSTM(*SIZES, proj_size=3, dtype=torch.float64), batch_of([3, 1])
    assert run_shortcut(lstm, batch, None) is not None
    lstm.weight_hr_l0 = nn.Parameter(torch.ones(2, 7).double())
    assert run_shortcut(lstm, batch, None) is None


LENGTHS_THAT_DO_NOT_FIT = {
    "too large": torch.tensor([2**62, 2**62, 2**62, 2**62 + 6]),  # the sum is 6 in 64 bits
    "negative": torch.tensor([7, -1]),
    "floats": torch.tensor([3.0, 1.0, 2.0]),
    "other steps": torch.tensor([3, 1]),
}


@pytest.mark.parametrize("name", LENGTHS_THAT_DO_NOT_FIT)
def test_lengths_that_do_not_fit_reach_no_kernel(name: str) -> None:
    gru, batch, _ = stock()
    structure = SequenceBatch(batch.values, [3, 1, 2]).structure
    structure.tensor = LENGTHS_THAT_DO_NOT_FIT[name]
    assert run_shortcut(gru, SequenceBatch._of(batch.values, structure), None) is None
    with pytest.raises(TypeError, match=r"^forward: the arguments are not those of a layer$"):
        by_encoder(gru, SequenceBatch._of(batch.values, structure), None)


def test_a_batch_whose_tensors_a_function_replaced() -> None:
    def replaced(tensor: Tensor) -> Tensor:
        return nn.Parameter(tensor) if tensor.dim() == 2 else tensor.float()

    with pytest.raises(SeqbatchTypeError, match="`lengths` must"):
        tree_map(replaced, batch_of([3, 1]))


def test_values_that_lost_steps_are_left_to_the_encoder() -> None:
    gru, batch, state = stock()
    batch.values.resize_(2, SIZES[0])
    assert run_shortcut(gru, batch, state) is None


@pytest.mark.parametrize("lengths", [[], [0], [0, 0], [3, 0, 1]], ids=str)
def test_empty_sequences_are_left_to_the_encoder(lengths: list[int]) -> None:
    batch = SequenceBatch(torch.randn(sum(lengths), SIZES[0]), lengths)
    assert run_shortcut(nn.GRU(*SIZES), batch, None) is None


STATES: dict[str, Callable[[Tensor], Any]] = {
    "of another type of layer": lambda hidden: LSTMState(hidden, hidden),
    "a Tensor": lambda hidden: hidden,
    "other batch size": lambda hidden: RNNState(hidden[:, :, :2].contiguous()),
    "other size": lambda hidden: RNNState(hidden[..., :2].contiguous()),
    "more layers": lambda hidden: RNNState(hidden.expand(2, 1, 3, SIZES[1]).contiguous()),
    "of another dtype": lambda hidden: RNNState(hidden.float()),
    "not contiguous": lambda hidden: RNNState(hidden.mT.contiguous().mT),
    "negative": lambda hidden: RNNState(negative(hidden)),
}


@pytest.mark.parametrize("name", STATES)
def test_unusual_states_are_left_to_the_encoder(name: str) -> None:
    gru, batch, state = stock()
    assert run_shortcut(gru, batch, STATES[name](state.hidden)) is None


def test_a_cell_state_of_another_size_is_left_to_the_encoder() -> None:
    lstm, batch = nn.LSTM(*SIZES, dtype=torch.float64), batch_of([1])
    hidden = torch.zeros(1, 1, 1, SIZES[1], dtype=torch.float64)
    for cell in (hidden[..., :2].contiguous(), negative(hidden)):
        assert run_shortcut(lstm, batch, LSTMState(hidden, cell)) is None


class Seen(TorchFunctionMode):
    """Runs a function before each one of PyTorch."""

    def __init__(self, run: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.run = run

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.run()
        return function(*args, **(kwargs or {}))


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "fake tensors": lambda: FakeTensorMode(allow_non_fake_inputs=True),
    "forward mode": forward_ad.dual_level,
    "functions": Seen,
}


@pytest.mark.parametrize("name", MODES)
def test_a_mode_sees_the_call(name: str) -> None:
    gru, batch, state = stock()
    gru.requires_grad_(False)
    with MODES[name]():
        assert run_shortcut(gru, batch, state) is None


def test_lengths_that_are_fake_are_left_to_the_encoder() -> None:
    gru, batch, state = stock()
    with FakeTensorMode():
        structure = SequenceBatch(torch.zeros(6, SIZES[0]), [3, 1, 2]).structure
    structure.tensor = FakeTensorMode().from_tensor(batch.structure.tensor)
    assert run_shortcut(gru, SequenceBatch._of(batch.values, structure), state) is None


def test_a_mode_may_change_the_layer_meanwhile() -> None:
    gru, batch, state = stock()
    with Seen(gru._parameters.clear), pytest.raises(AttributeError):
        encode_with_state(gru, batch, state)


def test_transforms_see_the_call() -> None:
    gru, batch, _ = stock()
    found: list[object] = []

    def run(values: Tensor) -> Tensor:
        found.append(run_shortcut(gru, batch, None))
        return values.sum()

    func.grad(run)(batch.values)
    func.vmap(run)(batch.values)
    func.jvp(run, (batch.values,), (batch.values,))
    assert found == [None] * 3
    assert run_shortcut(gru, batch, None) is not None


@pytest.fixture(
    params=[register_module_forward_pre_hook, register_module_forward_hook, register_module_full_backward_hook]
)
def hook_of_all(request: pytest.FixtureRequest) -> Iterator[None]:
    handle = request.param(lambda *given: None)
    yield
    handle.remove()


@pytest.mark.usefixtures("hook_of_all")
def test_a_hook_of_every_layer_sees_the_call() -> None:
    assert run_shortcut(*stock()) is None


@pytest.mark.parametrize("name", ["forward", "__call__"])
def test_a_class_that_was_changed_is_left_to_its_encoder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.GRU, name, lambda *given: None)
    assert run_shortcut(*stock()) is None


def test_a_trace_is_left_to_the_encoder() -> None:
    found: list[object] = []
    given = stock()

    def run(x: Tensor) -> Tensor:
        found.append(run_shortcut(*given))
        return x

    torch.jit.trace(run, torch.zeros(1), check_trace=False)  # which would call it again outside
    assert set(found) == {None}


def test_without_kernels_the_encoder_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, "IS_THERE", False)
    assert run_shortcut(*stock()) is None
    before = find_encoder(nn.GRU(*SIZES))
    register_shortcuts()
    assert find_encoder(nn.GRU(*SIZES)) is before


def test_errors_are_those_of_the_encoder() -> None:
    gru, batch, _ = stock()
    message = r"^`sequences` must have features \(5,\), for GRU\(5, 7\); got \(3,\)\."
    with pytest.raises(SeqbatchValueError, match=message) as caught:
        encode(gru, batch.map(lambda values: values[:, :3]))
    assert caught.value.__notes__ == [
        "while GRU(5, 7) ran on SequenceBatch(3 sequences of 1 to 3 steps, features (3,), torch.float64, cpu)"
    ]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_of_a_hook_of_autograd_reaches_the_caller(error: type[BaseException]) -> None:
    """Checkpoints stop running the layer again by such an error, so it must not run a third time."""
    gru, batch, state = stock()
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        raise error("packed")

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        pytest.raises(error, match="packed"),
    ):
        encode_with_state(gru, batch, state)
    assert len(packed) == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant: bool) -> None:
    gru, batch, _ = stock()
    values = batch.values.requires_grad_()

    def run(values: Tensor) -> Tensor:
        return encode(gru, batch.with_values(values)).values

    grads = []
    for call in (run, lambda values: checkpoint(run, values, use_reentrant=reentrant)):
        gru.zero_grad()
        values.grad = None
        call(values).square().sum().backward()
        grads.append([values.grad, *(weight.grad for weight in gru.parameters())])
    for found, wanted in zip(*grads, strict=True):
        assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("register", [register_encoder, register_recurrent])
def test_another_encoder_takes_the_place_of_the_shortcut(register: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._entries, nn.GRU, registry._entries[nn.GRU])  # to restore it
    gru, batch, _ = stock()

    def zeros(layer: nn.GRU, batch: SequenceBatch, *state: Any) -> Any:
        outputs = batch.map(torch.zeros_like)
        return (outputs, state[0]) if state else outputs

    register(nn.GRU)(zeros)
    assert run_shortcut(gru, batch, None) is None
    assert_close(encode(gru, batch).values, torch.zeros_like(batch.values))


@pytest.mark.parametrize("with_gradients", [False, True])
def test_no_reference_is_kept(with_gradients: bool) -> None:
    gru, batch, state = stock()
    shared = [
        gru,
        batch,
        state,
        batch.values,
        batch.structure,
        state.hidden,
        *gru.parameters(),
        SequenceBatch,
        RNNState,
    ]
    context = nullcontext() if with_gradients else torch.no_grad()
    with context:
        require_shortcut(gru, batch, state)
        gc.collect()
        before = [sys.getrefcount(one) for one in shared]
        for _ in range(100):
            require_shortcut(gru, batch, state)
            run_shortcut(gru, batch, 3)  # which is left to the encoder
        gc.collect()
    assert [sys.getrefcount(one) for one in shared] == before


def test_inference_mode() -> None:
    gru, batch, state = stock()
    with torch.inference_mode():
        outputs, end = require_shortcut(gru, batch, state)
        again, _ = require_shortcut(gru, batch.with_values(batch.values * 1), end)
    assert outputs.values.is_inference()
    assert again.values.is_inference()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (1, [], True, False, 1, 0),
        (("GRU", None, 1, 4), [], True, False, 1, 0),
        (("LSTM?", None, 1, 4), [], True, False, 1, 0),
    ],
    ids=["none", "no form", "no lengths", "no mode"],
)
def test_the_kernels_refuse_what_is_not_a_layer(arguments: tuple[Any, ...]) -> None:
    module = _kernels._kernels.module
    with pytest.raises((TypeError, AttributeError)):
        module.forward(*arguments)
    with pytest.raises((TypeError, AttributeError)):
        module.backward(*arguments, *arguments[:3])
