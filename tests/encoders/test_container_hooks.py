"""Hooks of nn.Sequential: they run once, on flat values, and are given the very layer."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import SeqbatchValueError, SequenceBatch, encode
from seqbatch.layers import DotProductAttention


def test_hooks_see_flat_values() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 4))
    seen: list[tuple[int, ...]] = []

    def before(module: nn.Module, args: Any) -> Any:
        seen.append(tuple(args[0].shape))
        return (2 * args[0],)

    def after(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(output.shape))
        return -output

    xs = [torch.randn(n, 2) for n in (3, 0, 2)]
    plain = encode(model, [2 * x for x in xs])
    model.register_forward_pre_hook(before)
    model.register_forward_hook(after)
    assert_close(encode(model, xs), [-output for output in plain])
    assert seen == [(5, 2), (5, 4)]


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.GRU(3, 4))


def batch() -> SequenceBatch:
    values = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    return SequenceBatch(values.requires_grad_(), [3, 0, 2])


def register(model: nn.Module, kind: str, hook: Callable[..., Any]) -> None:
    """Register a hook of one kind, which gets the module and the other arguments of its kind."""
    ways: dict[str, Callable[[], Any]] = {
        "pre": lambda: model.register_forward_pre_hook(hook),
        "pre, with kwargs": lambda: model.register_forward_pre_hook(hook, with_kwargs=True),
        "pre, prepended": lambda: model.register_forward_pre_hook(hook, prepend=True),
        "forward": lambda: model.register_forward_hook(hook),
        "forward, with kwargs": lambda: model.register_forward_hook(hook, with_kwargs=True),
        "forward, always": lambda: model.register_forward_hook(hook, always_call=True),
        "full backward": lambda: model.register_full_backward_hook(hook),
        "full backward pre": lambda: model.register_full_backward_pre_hook(hook),
        "backward": lambda: model.register_backward_hook(hook),
    }
    ways[kind]()


ARGUMENTS = {
    "pre": 1,
    "pre, with kwargs": 2,
    "pre, prepended": 1,
    "forward": 2,
    "forward, with kwargs": 3,
    "forward, always": 2,
    "full backward": 2,
    "full backward pre": 1,
    "backward": 2,
}


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook:FutureWarning")
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_every_hook_is_given_the_layer_itself_once(kind: str) -> None:
    model = small_model()
    plain = encode(model, batch())
    seen: list[nn.Module] = []

    def hook(module: nn.Module, *rest: Any) -> None:
        assert len(rest) == ARGUMENTS[kind]
        seen.append(module)

    register(model, kind, hook)
    outputs = encode(model, batch())
    gc.collect()  # what the backward pass needs is held by the graph
    outputs.values.sum().backward()
    assert len(seen) == 1
    assert seen[0] is model
    assert_close(outputs.values, plain.values)
    gradients = [weight.grad for weight in model.parameters()]
    model.zero_grad()
    plain.values.sum().backward()
    assert_close(gradients, [weight.grad for weight in model.parameters()])


def test_what_a_hook_sets_stays_on_the_layer() -> None:
    model: Any = small_model()
    model.calls = 0

    def count(module: Any, *rest: Any) -> None:
        module.calls += 1
        module.shape = rest[-1].shape

    model.register_forward_hook(count)
    handles: list[Any] = []
    handles.append(model.register_forward_pre_hook(lambda module, args: handles.pop().remove()))
    encode(model, batch())
    encode(model, batch())
    assert (model.calls, model.shape) == (2, (5, 4))
    assert not model._forward_pre_hooks


def test_what_a_hook_with_kwargs_returns_counts() -> None:
    model = small_model()
    wanted = -2 * encode(model, batch().map(torch.neg)).values

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        assert kwargs == {}
        return (-args[0],), kwargs

    def behind(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        assert (args[0].shape, kwargs, output.shape) == ((5, 2), {}, (5, 4))
        return -2 * output

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(behind, with_kwargs=True)
    assert_close(encode(model, batch()).values, wanted)


def test_what_a_full_backward_hook_returns_counts() -> None:
    gradients = []
    for times in (1, 3):
        model, given = small_model(), batch()

        def scale(module: nn.Module, grads_in: Any, grads_out: Any, times: int = times) -> Any:
            return (times * grads_in[0],)

        model.register_full_backward_hook(scale)
        encode(model, given).values.sum().backward()
        gradients.append(given.values.grad)
    assert gradients[0] is not None
    assert gradients[0].any()
    assert_close(gradients[1], 3 * gradients[0])


def test_a_hook_that_always_runs_does_so_after_an_error() -> None:
    model = small_model()
    seen: list[nn.Module] = []
    model.register_forward_hook(lambda module, args, output: seen.append(module), always_call=True)
    with pytest.raises(SeqbatchValueError, match=r"must have features that end with \(2,\)"):
        encode(model, [torch.zeros(3, 5)])
    assert len(seen) == 1
    assert seen[0] is model


def test_hooks_of_a_sequential_inside_another_are_given_that_one() -> None:
    inner = small_model()
    model = nn.Sequential(inner, nn.ReLU())
    seen: list[nn.Module] = []
    inner.register_forward_hook(lambda module, args, output: seen.append(module))
    encode(model, batch())
    assert len(seen) == 1
    assert seen[0] is inner


def test_the_result_of_a_layer_with_hooks_is_freed_without_the_garbage_collector() -> None:
    model = small_model()
    model.register_forward_hook(lambda module, args, output: None)
    gc.disable()
    try:
        outputs = encode(model, batch())
        values = weakref.ref(outputs.values)
        del outputs
        assert values() is None
    finally:
        gc.enable()


def test_a_call_of_its_own_runs() -> None:
    class Counted(DotProductAttention):
        calls = 0

        def __call__(self, *args: Any) -> Any:
            Counted.calls += 1
            return super().__call__(*args)

    xs = [torch.randn(3, 4), torch.randn(2, 4)]
    encode(Counted(4, 4), xs, xs)
    assert Counted.calls == 1
