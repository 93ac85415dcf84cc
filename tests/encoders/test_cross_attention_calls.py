"""Layers that attend to another batch and are called as themselves: those that are more than their class says."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.ao.nn.quantized.dynamic as quantized
from attentions import SIZE, Gate, OwnAttention, Scaled, Tagged, TensorOnly, spread
from reference import run_alone_with_memory
from strategies import sequences
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

from seqbatch import encode
from seqbatch._encoders._stock_layers import is_stock_attention
from seqbatch.layers import Causal
from seqbatch.testing import _check_cross_attention as laws

LENGTHS, OF_MEMORY = [3, 0, 1, 5, 3, 1, 3], [2, 4, 0, 1, 2, 6, 4]


def block(**options: Any) -> Any:
    return spread(nn.TransformerDecoderLayer(SIZE, 2, 4, dropout=0.0, **options))


def xs() -> list[Tensor]:
    return sequences(LENGTHS, (SIZE,))


def ms() -> list[Tensor]:
    return sequences(OF_MEMORY, (SIZE,), seed=50)


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_hook_runs_once_for_each_pair_of_lengths_and_sees_no_padding(batch_first: bool) -> None:
    layer = block(batch_first=batch_first)
    plain = encode(layer, xs(), ms())
    seen: list[Any] = []

    def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append((module, *(tuple(one.shape if batch_first else one.transpose(0, 1).shape) for one in args)))
        return 2 * output

    layer.register_forward_hook(double)
    assert_close(encode(layer, xs(), ms()), [2 * output for output in plain])
    assert all(module is layer for module, *_ in seen)
    pairs = {(shape[:2], of_memory[:2]) for _, shape, of_memory in seen}
    assert pairs == {((2, 3), (2, 2)), ((1, 3), (1, 4)), ((1, 1), (1, 0)), ((1, 5), (1, 1)), ((1, 1), (1, 6))}
    assert len(seen) == 5


def test_a_hook_of_an_attention_is_given_the_weights() -> None:
    layer = spread(nn.MultiheadAttention(SIZE, 2, batch_first=True))
    weights: list[Tensor] = []
    layer.register_forward_hook(lambda module, args, output: weights.append(output[1]))
    encode(layer, xs(), ms())
    assert {tuple(one.shape) for one in weights} == {(2, 3, 2), (1, 3, 4), (1, 1, 0), (1, 5, 1), (1, 1, 6)}


@pytest.mark.parametrize("name", ["self_attn", "multihead_attn", "linear1", "norm3", "dropout3"])
@pytest.mark.parametrize("causal", [False, True])
def test_hooks_of_layers_inside_run(name: str, causal: bool) -> None:
    inner = block()
    seen: list[nn.Module] = []
    getattr(inner, name).register_forward_hook(lambda module, args, output: seen.append(module))
    layer = Causal(inner) if causal else inner
    encode(layer, xs(), ms())
    assert seen == [getattr(inner, name)] * 5
    laws.check_alone_with_memory(layer, xs(), ms(), alone=run_alone_with_memory, with_empty_memory=True)


def test_hooks_of_every_module_run() -> None:
    layer = block()
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
    try:
        encode(layer, xs(), ms())
    finally:
        handle.remove()
    assert all(seen.count(module) == 5 for module in (layer, layer.multihead_attn, layer.linear1, layer.norm2))


class OwnForward(nn.TransformerDecoderLayer):
    """Mixes steps of both sequences."""

    def forward(self, tgt: Tensor, memory: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(tgt.cumsum(-2), memory.cumsum(-2), *args, **kwargs)


class OwnBlock(nn.TransformerDecoderLayer):
    """Attends to memory and subtracts."""

    def _mha_block(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return -super()._mha_block(x, *args, **kwargs)


class OwnStack(nn.Module):
    """A layer that PyTorch's stack takes for its own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(size, 1, batch_first=True)

    def forward(self, tgt: Tensor, memory: Tensor, **kwargs: Any) -> Tensor:
        output: Tensor = self.self_attn(tgt, memory, memory)[0]
        return output


def with_inside(name: str, module: nn.Module) -> Any:
    layer = block()
    setattr(layer, name, spread(module))
    return layer


def parametrized(name: str, weight: str) -> Any:
    layer = block()
    parametrize.register_parametrization(layer.get_submodule(name), weight, Scaled())
    return layer


def with_own_forward() -> Any:
    layer = block()
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: -forward(*args, **kwargs)
    return layer


def pruned() -> Any:
    layer = block()
    prune.l1_unstructured(layer.linear1, "weight", 0.5)
    return layer


def tagged() -> Any:
    layer = block()
    layer.multihead_attn.in_proj_weight = Tagged(layer.multihead_attn.in_proj_weight.detach())
    return layer


def decoder(layer: Any) -> nn.Module:
    return nn.TransformerDecoder(layer, 2)


CALLED: dict[str, Callable[[], nn.Module]] = {
    "own forward": lambda: spread(OwnForward(SIZE, 2, 4, 0.0, batch_first=True)),
    "own block": lambda: spread(OwnBlock(SIZE, 2, 4, 0.0)),
    "own block inside": lambda: nn.TransformerDecoder(spread(OwnBlock(SIZE, 2, 4, 0.0)), 2),
    "own attention": lambda: spread(OwnAttention(SIZE, 2)),
    "own attention inside": lambda: with_inside("multihead_attn", OwnAttention(SIZE, 2)),
    "own linear": lambda: with_inside("linear1", Gate(SIZE, 4)),
    "forward that is set": with_own_forward,
    "parametrized": lambda: parametrized("multihead_attn", "in_proj_weight"),
    "weight norm": lambda: with_inside("linear1", parametrizations.weight_norm(nn.Linear(SIZE, 4))),
    "pruned": pruned,
    "weight of a library": tagged,
    "norm of steps and features": lambda: nn.TransformerDecoder(block(), 2, nn.Softmax(-1)),
    "other layers in a stack": lambda: decoder(OwnStack(SIZE).double()),
}


@pytest.mark.parametrize("name", CALLED)
def test_layers_that_are_called_as_themselves(name: str) -> None:
    layer = CALLED[name]()
    assert not is_stock_attention(layer)
    laws.check_alone_with_memory(layer, xs(), ms(), alone=run_alone_with_memory, with_empty_memory=True)
    laws.check_order_with_memory(layer, xs(), ms(), [4, 2, 0, 6, 1, 5, 3])
    if name != "pruned":  # because PyTorch sets its weight at each call
        laws.check_unmodified_with_memory(layer, xs(), ms())
    with torch.no_grad():
        given = [x.detach() for x in xs()], [m.detach() for m in ms()]
        laws.check_alone_with_memory(layer.eval(), *given, alone=run_alone_with_memory, with_empty_memory=True)


def test_layers_that_are_called_as_themselves_on_nothing() -> None:
    layer = spread(OwnForward(SIZE, 2, 4, 0.0, batch_first=True))
    outputs = encode(layer, [x[:0] for x in xs()], ms())
    assert [output.shape for output in outputs] == [(0, SIZE)] * 7
    torch.cat(outputs).sum().backward()
    assert all(weight.grad is not None for weight in layer.parameters())


def test_an_attention_that_returns_no_weights() -> None:
    layer = spread(TensorOnly(SIZE, 2, batch_first=True))
    assert_close(encode(layer, xs(), ms()), [layer(x, m, m) for x, m in zip(xs(), ms(), strict=True)])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_layers_inside() -> None:
    layer: Any = spread(nn.TransformerDecoderLayer(SIZE, 2, 4, 0.0)).float()
    layer.linear1 = quantized.Linear(SIZE, 4)
    assert not is_stock_attention(layer)
    with torch.no_grad():  # because quantized layers have no gradients
        given = [scale * x.float() for scale, x in zip((1, 50, 1), (xs()[0], xs()[0], xs()[1]), strict=True)]
        memory = [m.float() for m in ms()[:3]]
        wanted = [layer(x, m) for x, m in zip(given[:2], memory, strict=False)]
        assert_close(encode(layer, given, memory), [*wanted, given[2]])


def keep_arguments(calls: list[Any], module: nn.Module, args: Any, output: Tensor) -> None:
    calls.append(args)


class Negated(Causal):
    """A causal layer with a forward of its own."""

    def forward(self, sequence: Tensor, memory: Tensor | None = None) -> Tensor:
        return -super().forward(sequence, memory)


@pytest.mark.parametrize("batch_first", [False, True])
def test_causal_layers_that_are_called_as_themselves(batch_first: bool) -> None:
    for inner in (block(batch_first=batch_first), nn.TransformerDecoder(block(batch_first=batch_first), 2)):
        hooked = Causal(inner)
        calls: list[Any] = []
        hooked.register_forward_hook(partial(keep_arguments, calls))
        laws.check_alone_with_memory(hooked, xs(), ms(), alone=run_alone_with_memory, with_empty_memory=True)
        assert len(calls) == 5
        plain = encode(Causal(inner), xs(), ms())
        assert_close(encode(Negated(inner), xs(), ms()), [-output for output in plain])


def test_subclasses_that_change_nothing_need_not_be() -> None:
    class Block(nn.TransformerDecoderLayer):
        pass

    layer = spread(Block(SIZE, 2, 4, 0.0))
    assert is_stock_attention(layer)
    laws.check_alone_with_memory(layer, xs(), ms(), alone=run_alone_with_memory, with_empty_memory=True)


def test_a_decoder_without_layers_returns_its_input_or_what_its_norm_makes_of_it() -> None:
    layer, norm = nn.TransformerDecoderLayer(SIZE, 2), nn.LayerNorm(SIZE)
    given, memory = [x.detach().float() for x in xs()], [m.detach().float() for m in ms()]
    assert_close(encode(nn.TransformerDecoder(layer, 0), given, memory), given)
    assert_close(encode(nn.TransformerDecoder(layer, 0, norm), given, memory), [norm(x) for x in given])
