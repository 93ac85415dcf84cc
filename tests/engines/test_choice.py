"""Which engine is chosen, and that every layer that is more than its weights is called itself."""

from types import FunctionType
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.ao.nn.quantized.dynamic as quantized
from reference import run_alone
from torch import nn
from torch.nn.modules import module
from torch.nn.utils.rnn import PackedSequence

from seqbatch import RNNState, SeqbatchTypeError, _kernels, encode, encode_with_state
from seqbatch._engines import by_length, choose, native, packed, stepwise
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._torch import HOOKS

FLOAT = torch.zeros(3, 2)
RAGGED, EQUAL = Lengths((2, 1)), Lengths((1, 1, 1))


def named(value: object) -> str:
    """Name a layer, a Tensor or an engine by what is the same in every process, as tests must be."""
    return value.__module__ if isinstance(value, FunctionType) else str(value)


OURS = native.run if _kernels.IS_THERE else packed.run


@pytest.mark.parametrize("lengths", [RAGGED, EQUAL, Lengths((3,))], ids=["ragged", "equal", "one"])
@pytest.mark.parametrize(
    ("layer", "values", "engine"),
    [
        (nn.LSTM(2, 3), FLOAT, OURS),
        (nn.LSTM(2, 3, num_layers=2, bidirectional=True, bias=False), FLOAT, OURS),
        (nn.LSTM(2, 3).double(), FLOAT.double(), OURS),
        (nn.LSTM(2, 3).bfloat16(), FLOAT.bfloat16(), packed.run),
        (nn.LSTM(2, 3, proj_size=1), FLOAT, packed.run),
        (nn.GRU(2, 3), FLOAT, OURS),
        (nn.RNN(2, 3), FLOAT, OURS),
        (nn.RNN(2, 3, nonlinearity="relu").requires_grad_(False), FLOAT, OURS),
        (nn.LSTM(2, 3, device="meta"), FLOAT.to("meta"), packed.run),
    ],
    ids=named,
)
def test_by_layer_dtype_and_device(layer: nn.Module, values: torch.Tensor, engine: Any, lengths: Lengths) -> None:
    assert choose(layer, values, lengths) is engine
    with torch.no_grad():
        assert choose(layer, values, lengths) is engine


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1", "bias_hh_l1_reverse"])
@pytest.mark.parametrize("fault", ["shape", "dtype", "type"])
def test_weights_that_a_kernel_must_not_read(name: str, fault: str) -> None:
    """Kernels would read beyond the memory of a weight that is smaller than its layer declares."""
    layer = nn.LSTM(2, 3, num_layers=2, bidirectional=True)
    weight = getattr(layer, name)
    others = {
        "shape": torch.zeros(weight.shape[0] - 1, *weight.shape[1:]),
        "dtype": weight.detach().double(),
        "type": weight.detach().as_subclass(type("Special", (torch.Tensor,), {})),
    }
    setattr(layer, name, nn.Parameter(others[fault]))
    assert choose(layer, FLOAT, RAGGED) is packed.run


def test_a_weight_that_is_no_parameter() -> None:
    layer, xs = nn.LSTM(2, 3), [FLOAT, FLOAT[:1]]
    wanted, weight = encode(layer, xs), layer.get_parameter("weight_ih_l0")
    del layer.weight_ih_l0
    vars(layer)["weight_ih_l0"] = weight.detach()
    torch.testing.assert_close(encode(layer, xs), wanted)


def test_values_that_a_kernel_must_not_read() -> None:
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(FLOAT)
    assert choose(nn.LSTM(2, 3), fake, RAGGED) is stepwise.run


def test_without_kernels() -> None:
    layer, xs = nn.LSTM(2, 3), [FLOAT, FLOAT[:1]]
    wanted = encode(layer, xs)
    with patch.object(_kernels, "IS_THERE", False):
        assert choose(layer, FLOAT, RAGGED) is packed.run
        torch.testing.assert_close(encode(layer, xs), wanted)


def test_autocast_casts_what_a_layer_is_called_with() -> None:
    with torch.autocast("cpu"):
        assert choose(nn.LSTM(2, 3), FLOAT, RAGGED) is packed.run


class Own(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input, hx)


class Called(nn.LSTM):
    def __call__(self, *arguments: Any) -> Any:
        return super().__call__(*arguments)


def changed(how: str) -> nn.Module:
    """Make a layer that must be called itself."""
    layer = nn.LSTM(2, 3)
    if how == "own forward":
        return Own(2, 3)
    if how == "forward set on the layer":
        layer.forward = layer.forward  # type: ignore[method-assign]  # as libraries that wrap a layer do
    if how == "own call":
        return Called(2, 3)
    if how == "weight norm":
        nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    if how == "hook":
        layer.register_forward_hook(lambda *arguments: None)
    if how == "pre-hook":
        layer.register_forward_pre_hook(lambda *arguments: None)
    if how == "backward hook":
        layer.register_full_backward_hook(lambda *arguments: None)
    if how == "backward pre-hook":
        layer.register_full_backward_pre_hook(lambda *arguments: None)
    if how == "quantized":
        return quantized.LSTM(2, 3)
    return layer


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    "how",
    [
        "forward set on the layer",
        "weight norm",
        "hook",
        "pre-hook",
        "quantized",
    ],
)
def test_a_layer_that_is_more_than_its_weights_is_called(how: str) -> None:
    assert choose(changed(how), FLOAT, RAGGED) is packed.run


@pytest.mark.parametrize("how", ["own forward", "own call"])
def test_a_layer_whose_forward_is_its_own_is_called_on_tensors(how: str) -> None:
    for lengths in (RAGGED, EQUAL):
        assert choose(changed(how), FLOAT, lengths) is by_length.run
    layer: Any = nn.LSTM(2, 3)
    layer.forward = lambda *given: nn.LSTM.forward(layer, *given)  # which may do anything
    assert choose(layer, FLOAT, RAGGED) is by_length.run
    with torch.no_grad():
        assert choose(layer, FLOAT, RAGGED) is by_length.run


def stop(module: nn.Module, given: Any, got: Any) -> Any:
    return tuple(torch.zeros_like(gradient) for gradient in given)


@pytest.mark.parametrize("how", ["backward hook", "backward pre-hook"])
def test_hooks_of_the_backward_pass(how: str) -> None:
    layer = changed(how)
    assert choose(layer, FLOAT, RAGGED) is by_length.run
    x = FLOAT.clone().requires_grad_()
    layer.register_full_backward_hook(stop)
    (found,) = torch.autograd.grad(torch.cat(encode(layer, [x, x[:1]])).sum(), x)
    assert not found.any()


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_hooks_of_the_backward_pass_cost_nothing_without_one(register: str, mode: Any, kind: Any) -> None:
    layer, xs, seen = kind(2, 3), [FLOAT, FLOAT[:1]], []
    with mode():
        wanted, ends = run_alone(layer, xs)
        getattr(layer, register)(lambda *arguments: None)
        layer.register_forward_hook(lambda module, given, output: seen.append(module))
        assert choose(layer, FLOAT, RAGGED) is packed.run
        torch.testing.assert_close(encode(layer, xs), wanted)
        outputs, state = encode_with_state(layer, xs)
    assert seen == [layer, layer]
    torch.testing.assert_close(outputs, wanted)
    torch.testing.assert_close(state.hidden, ends[0])


def test_hooks_of_the_backward_pass_through_a_state() -> None:
    layer, calls = nn.GRU(2, 3).requires_grad_(False), []
    layer.register_full_backward_hook(lambda *arguments: calls.append(arguments))
    hidden = torch.randn(1, 1, 2, 3, requires_grad=True)
    outputs, _ = encode_with_state(layer, [FLOAT, FLOAT[:1]], RNNState(hidden))
    torch.cat(outputs).sum().backward()
    assert len(calls) == 2


def test_a_layer_that_gives_no_state_is_told_of_with_such_hooks_too() -> None:
    class OutputsOnly(nn.LSTM):
        def forward(self, input: Any, hx: Any = None) -> Any:
            return super().forward(input, hx)[0]

    layer = OutputsOnly(2, 3)
    for _ in range(2):
        with pytest.raises(SeqbatchTypeError, match="`layer` must return a Tensor and a state for a Tensor, as its "):
            encode(layer, [FLOAT, FLOAT[:1]])
        layer.register_full_backward_hook(lambda *arguments: None)


@pytest.mark.parametrize(
    ("own", "why"), [(True, "its forward is its own"), (False, "hooks of the backward pass are registered")]
)
def test_a_hook_that_takes_packed_sequences_only_is_told_why_it_is_given_a_tensor(own: bool, why: str) -> None:
    def double(module: nn.Module, given: Any) -> Any:
        return (PackedSequence(2 * given[0].data, given[0].batch_sizes, *given[0][2:]),)

    layer, xs = (Own if own else nn.LSTM)(2, 3), [FLOAT, FLOAT[:1]]
    layer.register_forward_pre_hook(double)
    if not own:
        encode(layer, xs)
        layer.register_full_backward_hook(lambda *arguments: None)
    with pytest.raises(AttributeError, match="batch_sizes") as raised:
        encode(layer, xs)
    assert f"The layer was called on a Tensor, not on a PackedSequence, because {why}." in raised.value.__notes__


@pytest.mark.parametrize("number", range(len(HOOKS)))
def test_hooks_of_all_modules_run(number: int) -> None:
    calls: list[nn.Module] = []
    register: Any = [
        module.register_module_forward_pre_hook,
        module.register_module_forward_hook,
        module.register_module_full_backward_pre_hook,
        module.register_module_full_backward_hook,
    ][number]
    x = FLOAT.clone().requires_grad_()
    handle = register(lambda module, *rest: calls.append(module))
    try:
        layer = nn.LSTM(2, 3)
        torch.cat(encode(layer, [x, x[:1]])).sum().backward()
    finally:
        handle.remove()
    assert set(calls) == {layer}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("lengths", [(3, 3), (4, 1, 2)])
def test_gradients_of_functions(kind: Any, lengths: tuple[int, ...]) -> None:
    layer = kind(2, 3, num_layers=2, bidirectional=True)
    xs = [torch.randn(length, 2) for length in lengths]

    def loss(weights: Any) -> torch.Tensor:
        class Encoded(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = layer

            def forward(self) -> torch.Tensor:
                outputs, state = encode_with_state(self.layer, xs)
                total: torch.Tensor = torch.cat(outputs).square().sum() + state.last().sin().sum()
                return total

        prefixed = {f"layer.{name}": weight for name, weight in weights.items()}
        total: torch.Tensor = torch.func.functional_call(Encoded(), prefixed, ())
        return total

    found = torch.func.grad(loss)(dict(layer.named_parameters()))
    loss(dict(layer.named_parameters())).backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_gradients_of_many_outputs_at_once(kind: Any) -> None:
    layer = kind(3, 4)
    x = torch.randn(4, 3)

    def last(x: torch.Tensor) -> torch.Tensor:
        return encode(layer, [x, x[:2]])[0][-1]

    found, wanted = (torch.autograd.functional.jacobian(last, x, vectorize=at_once) for at_once in (True, False))
    torch.testing.assert_close(found, wanted)


def test_under_a_transform_each_sequence_runs_alone() -> None:
    gru, state = nn.GRU(2, 3), torch.randn(1, 2, 3)
    wanted, (end,) = packed.run(gru, FLOAT, RAGGED, (state,))

    def assert_choice(x: torch.Tensor) -> torch.Tensor:
        assert choose(gru, x, RAGGED) is stepwise.run
        assert choose(gru, x, EQUAL) is stepwise.run
        outputs, (final,) = stepwise.run(gru, x, RAGGED, (state,))
        assert (outputs - wanted).abs().max() < 1e-6
        assert (final - end).abs().max() < 1e-6
        return outputs.sum()

    torch.func.grad(assert_choice)(FLOAT)
