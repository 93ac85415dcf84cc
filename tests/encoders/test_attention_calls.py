"""Layers of attention that are called themselves, once for each length: those that are more than their class says."""

from collections.abc import Callable
from functools import partial
from typing import Any

import laws
import pytest
import torch
import torch.ao.nn.quantized.dynamic as quantized
from attentions import SIZE, Gate, OwnAttention, Scaled, Tagged, TensorOnly, spread
from strategies import sequences
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

from seqbatch import encode
from seqbatch._encoders._stock_layers import is_stock_attention
from seqbatch.layers import Causal

LENGTHS = [3, 0, 1, 5, 3, 1]


def block(**options: Any) -> Any:
    return spread(nn.TransformerEncoderLayer(SIZE, 2, 4, dropout=0.0, **options))


def xs() -> list[Tensor]:
    return sequences(LENGTHS, (SIZE,))


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_hook_runs_once_for_each_length_and_sees_no_padding(batch_first: bool) -> None:
    layer = block(batch_first=batch_first)
    plain = encode(layer, xs())
    seen: list[Any] = []

    def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append((module, tuple(args[0].shape)))
        return 2 * output

    layer.register_forward_hook(double)
    assert_close(encode(layer, xs()), [2 * output for output in plain])
    assert all(module is layer for module, _ in seen)
    shapes = [(1, 5, SIZE), (2, 3, SIZE), (2, 1, SIZE)]
    assert [shape for _, shape in seen] == shapes if batch_first else [(s, n, SIZE) for n, s, _ in shapes]


def test_a_hook_of_an_attention_is_given_the_weights() -> None:
    layer = spread(nn.MultiheadAttention(SIZE, 2, batch_first=True))
    weights: list[Tensor] = []
    layer.register_forward_hook(lambda module, args, output: weights.append(output[1]))
    laws.check_alone(layer, xs())
    assert [tuple(one.shape) for one in weights[:3]] == [(1, 5, 5), (2, 3, 3), (2, 1, 1)]


INSIDE: dict[str, Callable[[Any, Any], Any]] = {
    "pre": lambda module, hook: module.register_forward_pre_hook(lambda module, args: hook(module)),
    "forward": lambda module, hook: module.register_forward_hook(lambda module, args, output: hook(module)),
    "backward": lambda module, hook: module.register_full_backward_hook(lambda module, *rest: hook(module)),
    "backward pre": lambda module, hook: module.register_full_backward_pre_hook(lambda module, *rest: hook(module)),
}


@pytest.mark.parametrize("kind", INSIDE)
@pytest.mark.parametrize("name", ["self_attn", "linear1", "linear2", "norm1", "norm2", "dropout", "dropout2"])
@pytest.mark.parametrize("causal", [False, True])
def test_hooks_of_layers_inside_run(kind: str, name: str, causal: bool) -> None:
    layer = block()
    seen: list[nn.Module] = []
    INSIDE[kind](getattr(layer, name), seen.append)
    outputs = encode(Causal(layer) if causal else layer, xs())
    torch.cat(outputs).sum().backward()
    assert len(seen) == 3
    assert all(module is getattr(layer, name) for module in seen)
    laws.check_alone(Causal(layer) if causal else layer, xs())


def test_hooks_of_every_module_run() -> None:
    layer = block()
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
    try:
        encode(layer, xs())
    finally:
        handle.remove()
    assert all(seen.count(module) == 3 for module in (layer, layer.self_attn, layer.linear1, layer.norm2))


class OwnForward(nn.TransformerEncoderLayer):
    """Adds the place of each step, and mixes steps."""

    def forward(self, src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        places = torch.arange(src.shape[-2], dtype=src.dtype)[:, None]
        return super().forward(src + places, *args, **kwargs).cumsum(-2)


class OwnBlock(nn.TransformerEncoderLayer):
    """Feeds back to front."""

    def _ff_block(self, x: Tensor) -> Tensor:
        return super()._ff_block(x).flip(-1)


def parametrized(name: str, weight: str) -> Any:
    layer = block()
    parametrize.register_parametrization(layer.get_submodule(name), weight, Scaled())
    return layer


def with_inside(name: str, module: nn.Module) -> Any:
    layer = block()
    setattr(layer, name, spread(module))
    return layer


def with_own_forward() -> Any:
    layer = block()
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: -forward(*args, **kwargs)
    return layer


def with_own_forward_inside() -> Any:
    layer = block()
    forward = layer.linear1.forward
    layer.linear1.forward = lambda values: forward(values).flip(-1)
    return layer


def pruned() -> Any:
    layer = block()
    prune.l1_unstructured(layer.linear1, "weight", 0.5)
    return layer


def tagged() -> Any:
    layer = block()
    layer.linear1.weight = Tagged(layer.linear1.weight.detach())
    return layer


def encoder(layer: Any, norm: nn.Module | None = None) -> nn.Module:
    return nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)


CALLED: dict[str, Callable[[], nn.Module]] = {
    "own forward": lambda: spread(OwnForward(SIZE, 2, 4, 0.0, batch_first=True)),
    "own block": lambda: spread(OwnBlock(SIZE, 2, 4, 0.0)),
    "own block inside": lambda: encoder(spread(OwnBlock(SIZE, 2, 4, 0.0))),
    "own attention": lambda: spread(OwnAttention(SIZE, 2)),
    "own attention inside": lambda: with_inside("self_attn", OwnAttention(SIZE, 2)),
    "own linear": lambda: with_inside("linear1", Gate(SIZE, 4)),
    "forward that is set": with_own_forward,
    "forward that is set inside": with_own_forward_inside,
    "parametrized": lambda: parametrized("self_attn", "in_proj_weight"),
    "parametrized inside": lambda: parametrized("self_attn.out_proj", "weight"),
    "parametrized linear": lambda: parametrized("linear2", "weight"),
    "weight norm": lambda: with_inside("linear1", parametrizations.weight_norm(nn.Linear(SIZE, 4))),
    "pruned": pruned,
    "weight of a library": tagged,
    "norm of steps and features": lambda: encoder(block(), nn.Softmax(-1)),
    "other layers in a stack": lambda: encoder(OwnStack(SIZE).double()),
}


class OwnStack(nn.Module):
    """A layer that PyTorch's stack takes for its own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(size, 1, batch_first=True)

    def forward(self, src: Tensor, **kwargs: Any) -> Tensor:
        output: Tensor = self.self_attn(src, src, src)[0]
        return output


@pytest.mark.parametrize("name", CALLED)
def test_layers_that_are_called_themselves(name: str) -> None:
    layer = CALLED[name]()
    assert not is_stock_attention(layer)
    laws.check_alone(layer, xs())
    laws.check_order(layer, xs(), [4, 2, 0, 1, 5, 3])
    if name != "pruned":  # of which PyTorch sets the weight anew at each call
        laws.check_unmodified(layer, xs())
    with torch.no_grad():
        laws.check_alone(layer.eval(), [x.detach() for x in xs()])


def test_an_attention_that_gives_no_weights() -> None:
    layer = spread(TensorOnly(SIZE, 2, batch_first=True))
    assert_close(encode(layer, xs()), [layer(x, x, x) for x in xs()])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("training", [False, True])
def test_quantized_layers_inside(training: bool) -> None:
    layer: Any = spread(nn.TransformerEncoderLayer(SIZE, 2, 4, 0.0)).float().train(training)
    layer.linear1 = quantized.Linear(SIZE, 4)
    assert not is_stock_attention(layer)
    with torch.no_grad():  # of which PyTorch knows none there
        given = [scale * x.float() for scale, x in zip((1, 50, 1), (xs()[0], xs()[0], xs()[1]), strict=True)]
        assert_close(encode(layer, given), [layer(x) for x in given])


def keep_output(outputs: list[Tensor], module: nn.Module, args: Any, output: Tensor) -> None:
    outputs.append(output)


class Negated(Causal):
    """A causal layer with a forward of its own."""

    def forward(self, sequence: Tensor, memory: Tensor | None = None) -> Tensor:
        return -super().forward(sequence, memory)


@pytest.mark.parametrize("batch_first", [False, True])
def test_causal_layers_that_are_called_themselves(batch_first: bool) -> None:
    for inner in (block(batch_first=batch_first), spread(nn.MultiheadAttention(SIZE, 2, batch_first=batch_first))):
        hooked = Causal(inner)
        outputs: list[Tensor] = []
        hooked.register_forward_hook(partial(keep_output, outputs))
        laws.check_alone(hooked, xs())
        assert tuple(outputs[1].shape) == ((2, 3, SIZE) if batch_first else (3, 2, SIZE))
        laws.check_alone(Negated(inner), xs())


def test_subclasses_that_change_nothing_need_not_be() -> None:
    class Block(nn.TransformerEncoderLayer):
        pass

    layer = spread(Block(SIZE, 2, 4, 0.0))
    assert is_stock_attention(layer)
    laws.check_alone(layer, xs())


@pytest.mark.parametrize("causal", [False, True])
def test_a_transformer_of_no_layers_gives_its_input_or_what_its_norm_makes_of_it(causal: bool) -> None:
    layer, norm = nn.TransformerEncoderLayer(SIZE, 2), nn.LayerNorm(SIZE)
    given = [x.detach().float() for x in sequences([3, 0, 2], (SIZE,))]
    for encoder, wanted in (
        (nn.TransformerEncoder(layer, 0, enable_nested_tensor=False), given),
        (nn.TransformerEncoder(layer, 0, norm, enable_nested_tensor=False), [norm(x) for x in given]),
    ):
        assert_close(encode(Causal(encoder) if causal else encoder, given), wanted)
