"""Which engine is chosen in which situation, and that every layer that is more than its weights is called itself."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.ao.nn.quantized.dynamic as quantized
from reference import run_alone
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.modules import module
from torch.nn.utils.rnn import PackedSequence

from seqbatch import RNNState, SeqbatchTypeError, _kernels, encode, encode_with_state
from seqbatch._encoders._layer_checks import rounds_by_range
from seqbatch._engines import Engine, by_length, describe_call, native, one_by_one, packed, stepwise
from seqbatch._engines import choose as choose_by_call
from seqbatch._engines._choice import ENGINES
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._torch import HOOKS

FLOAT = torch.zeros(3, 2)
RAGGED = Lengths((2, 1))


def choose(layer: nn.Module, values: Tensor) -> Engine:
    return choose_by_call(describe_call(layer, values, rounds_by_range(layer)))


class Own(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input, hx)


class Called(nn.LSTM):
    def __call__(self, *arguments: Any) -> Any:
        return super().__call__(*arguments)


def own_forward_of_the_instance() -> Any:
    layer: Any = nn.LSTM(2, 3)
    layer.forward = lambda *given: nn.LSTM.forward(layer, *given)  # which may do anything
    return layer


def wrapped_by_accelerate() -> Any:
    layer: Any = own_forward_of_the_instance()
    layer._old_forward = nn.LSTM.forward.__get__(layer)
    return layer


def stock_forward_set_again() -> nn.Module:
    layer = nn.LSTM(2, 3)
    layer.forward = layer.forward  # type: ignore[method-assign]  # as libraries that wrap a layer do
    return layer


def weight_norm() -> nn.Module:
    layer = nn.LSTM(2, 3)
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    return layer


def hooked(register: str, layer_type: type[nn.LSTM] = nn.LSTM) -> nn.Module:
    layer = layer_type(2, 3)
    getattr(layer, register)(lambda *arguments: None)
    return layer


def hook_of_all_modules() -> AbstractContextManager[object]:
    return module.register_module_forward_hook(lambda *arguments: None)


def no_kernels() -> AbstractContextManager[object]:
    return patch.object(_kernels, "IS_THERE", False)


def replaced(name: str, replacement: Callable[[Tensor], Tensor], projection: int = 0) -> nn.Module:
    layer = nn.LSTM(2, 3, num_layers=2, bidirectional=True, proj_size=projection)
    setattr(layer, name, nn.Parameter(replacement(layer.get_parameter(name).detach()), requires_grad=False))
    return layer


def lstm() -> nn.Module:
    return nn.LSTM(2, 3)


FORWARD_HOOKS, BACKWARD_HOOKS = (
    ("register_forward_pre_hook", "register_forward_hook"),
    ("register_full_backward_pre_hook", "register_full_backward_hook"),
)
FAKE = FakeTensorMode(allow_non_fake_inputs=True).from_tensor(FLOAT)
SPECIAL: Tensor = FLOAT.as_subclass(type("Special", (Tensor,), {}))
OURS: Any = native if _kernels.IS_THERE else packed
Context = Callable[[], AbstractContextManager[object]]
# The layer, its input, what is active around the call, and the engine that runs it.
SITUATIONS: dict[str, tuple[Callable[[], nn.Module], Tensor, Context, Any]] = {
    "LSTM": (lstm, FLOAT, nullcontext, OURS),
    "LSTM of many layers": (
        lambda: nn.LSTM(2, 3, num_layers=2, bidirectional=True, bias=False),
        FLOAT,
        nullcontext,
        OURS,
    ),
    "GRU": (lambda: nn.GRU(2, 3), FLOAT, nullcontext, OURS),
    "RNN": (lambda: nn.RNN(2, 3), FLOAT, nullcontext, OURS),
    "frozen RNN": (lambda: nn.RNN(2, 3, nonlinearity="relu").requires_grad_(False), FLOAT, nullcontext, OURS),
    "double": (lambda: nn.LSTM(2, 3).double(), FLOAT.double(), nullcontext, OURS),
    "no gradients": (lstm, FLOAT, torch.no_grad, OURS),
    "inference mode": (lstm, FLOAT, torch.inference_mode, OURS),
    "input that is a parameter": (lstm, nn.Parameter(FLOAT), nullcontext, OURS),
    "projection": (lambda: nn.LSTM(2, 3, num_layers=2, bidirectional=True, proj_size=2), FLOAT, nullcontext, OURS),
    "bfloat16": (lambda: nn.LSTM(2, 3).bfloat16(), FLOAT.bfloat16(), nullcontext, packed),
    "other device": (lambda: nn.LSTM(2, 3, device="meta"), FLOAT.to("meta"), nullcontext, packed),
    "input with the bit of negation": (lstm, torch.complex(FLOAT, FLOAT).conj().imag, nullcontext, packed),
    "no kernels": (lstm, FLOAT, no_kernels, packed),
    "autocast": (lstm, FLOAT, lambda: torch.autocast("cpu"), packed),
    # Kernels would read beyond the memory of a weight that is smaller than its layer declares.
    "weight of another shape": (
        lambda: replaced("weight_hh_l1", lambda weight: weight[1:]),
        FLOAT,
        nullcontext,
        packed,
    ),
    "weight of another dtype": (lambda: replaced("weight_ih_l0", Tensor.double), FLOAT, nullcontext, packed),
    "weight of a subclass": (
        lambda: replaced("bias_hh_l1_reverse", lambda weight: weight.as_subclass(type(SPECIAL))),
        FLOAT,
        nullcontext,
        packed,
    ),
    **{
        f"{name} of another shape": (partial(replaced, name, lambda weight: weight[1:], 2), FLOAT, nullcontext, packed)
        for name in ("weight_hr_l0", "weight_hr_l1_reverse", "weight_hh_l0")
    },
    "weight norm": (weight_norm, FLOAT, nullcontext, packed),
    "forward that is set again": (stock_forward_set_again, FLOAT, nullcontext, packed),
    "forward wrapped by accelerate": (wrapped_by_accelerate, FLOAT, nullcontext, packed),
    "hook of all modules": (lstm, FLOAT, hook_of_all_modules, packed),
    **{name: (partial(hooked, name), FLOAT, nullcontext, packed) for name in FORWARD_HOOKS},
    "forward mode": (lstm, FLOAT, forward_ad.dual_level, stepwise),
    "dispatch mode": (lstm, FLOAT, lambda: FakeTensorMode(allow_non_fake_inputs=True), stepwise),
    "fake input": (lstm, FAKE, nullcontext, stepwise),
    "input of a subclass": (lstm, SPECIAL, nullcontext, stepwise),
    "weight norm in forward mode": (weight_norm, FLOAT, forward_ad.dual_level, stepwise),
    "hook in forward mode": (lambda: hooked("register_forward_hook"), FLOAT, forward_ad.dual_level, packed),
    "own forward": (lambda: Own(2, 3), FLOAT, nullcontext, by_length),
    "own forward, no gradients": (lambda: Own(2, 3), FLOAT, torch.no_grad, by_length),
    "own forward in forward mode": (lambda: Own(2, 3), FLOAT, forward_ad.dual_level, by_length),
    "own forward of the instance": (own_forward_of_the_instance, FLOAT, nullcontext, by_length),
    "own call": (lambda: Called(2, 3), FLOAT, nullcontext, by_length),
    **{name: (partial(hooked, name), FLOAT, nullcontext, by_length) for name in BACKWARD_HOOKS},
    **{f"{name}, no gradients": (partial(hooked, name), FLOAT, torch.no_grad, packed) for name in BACKWARD_HOOKS},
    "quantized": (lambda: quantized.LSTM(2, 3), FLOAT, nullcontext, one_by_one),
    "quantized GRU": (lambda: quantized.GRU(2, 3), FLOAT, nullcontext, one_by_one),
    "quantized in forward mode": (lambda: quantized.LSTM(2, 3), FLOAT, forward_ad.dual_level, one_by_one),
    "quantized to float16": (lambda: quantized.LSTM(2, 3, dtype=torch.float16), FLOAT, nullcontext, packed),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_engine_for_each_situation(situation: str) -> None:
    make, values, context, engine = SITUATIONS[situation]
    layer = make()
    with context():
        assert choose(layer, values) is engine


def test_every_engine_runs_in_some_situation() -> None:
    reached = {engine.__name__ for _, _, _, engine in SITUATIONS.values()}
    missing = set() if _kernels.IS_THERE else {native.__name__}
    assert reached == {vars(engine)["__name__"] for engine in ENGINES} - missing


def test_a_weight_that_is_not_a_parameter() -> None:
    layer, xs = nn.LSTM(2, 3), [FLOAT, FLOAT[:1]]
    wanted, weight = encode(layer, xs), layer.get_parameter("weight_ih_l0")
    del layer.weight_ih_l0
    vars(layer)["weight_ih_l0"] = weight.detach()
    torch.testing.assert_close(encode(layer, xs), wanted)


def test_results_without_kernels() -> None:
    layer, xs = nn.LSTM(2, 3), [FLOAT, FLOAT[:1]]
    wanted = encode(layer, xs)
    with patch.object(_kernels, "IS_THERE", False):
        torch.testing.assert_close(encode(layer, xs), wanted)


def stop(module: nn.Module, given: Any, got: Any) -> Any:
    return tuple(torch.zeros_like(gradient) for gradient in given)


@pytest.mark.parametrize("register", BACKWARD_HOOKS)
def test_hooks_of_the_backward_pass(register: str) -> None:
    layer = hooked(register)
    x = FLOAT.clone().requires_grad_()
    layer.register_full_backward_hook(stop)
    (found,) = torch.autograd.grad(torch.cat(encode(layer, [x, x[:1]])).sum(), x)
    assert not found.any()


@pytest.mark.parametrize("register", BACKWARD_HOOKS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_hooks_of_the_backward_pass_change_nothing_without_gradients(register: str, mode: Any, kind: Any) -> None:
    layer, xs, seen = kind(2, 3), [FLOAT, FLOAT[:1]], []
    with mode():
        wanted, ends = run_alone(layer, xs)
        getattr(layer, register)(lambda *arguments: None)
        layer.register_forward_hook(lambda module, given, output: seen.append(module))
        assert choose(layer, FLOAT) is packed
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


def test_a_layer_that_returns_outputs_only_is_refused_with_such_hooks_too() -> None:
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
def test_the_error_of_a_hook_for_packed_sequences_says_why_it_got_a_tensor(own: bool, why: str) -> None:
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


def test_a_transform_runs_step_by_step() -> None:
    gru, state = nn.GRU(2, 3), torch.randn(1, 2, 3)
    wanted, (end,) = packed.run(gru, FLOAT, RAGGED, (state,))

    def assert_choice(x: torch.Tensor) -> torch.Tensor:
        assert choose(gru, x) is stepwise
        outputs, (final,) = stepwise.run(gru, x, RAGGED, (state,))
        assert (outputs - wanted).abs().max() < 1e-6
        assert (final - end).abs().max() < 1e-6
        return outputs.sum()

    torch.func.grad(assert_choice)(FLOAT)
