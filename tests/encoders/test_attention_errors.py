"""What layers of attention refuse."""

from typing import Any

import laws
import pytest
import torch
from torch import nn

from seqbatch import SeqbatchTypeError, SeqbatchValueError, UnsupportedLayerError, encode
from seqbatch.layers import Causal

LAYERS = [
    nn.MultiheadAttention(4, 2),
    nn.TransformerEncoderLayer(4, 2, 8),
    nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 1, enable_nested_tensor=False),
]
each = pytest.mark.parametrize("layer", [*LAYERS, *map(Causal, LAYERS)], ids=lambda layer: type(layer).__name__)


def with_hook(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, args, output: None)
    return layer


@each
@pytest.mark.parametrize("lengths", [[2, 2], [3, 0, 1]], ids=["equal", "ragged"])
def test_wrong_features_dtype_and_device(layer: nn.Module, lengths: list[int]) -> None:
    name = type(layer.layer if isinstance(layer, Causal) else layer).__name__
    for options, must in (
        ({"size": (5,)}, rf"have features \(4,\), for {name}\(\.\.\.\); got \(5,\)\."),
        ({"size": ()}, rf"have features \(4,\), for {name}\(\.\.\.\); got \(\)\."),
        (
            {"dtype": torch.float64},
            rf"have dtype torch.float32, as the weights of {name}\(\.\.\.\); got torch.float64\.",
        ),
        ({"device": "meta"}, rf"be on cpu, as the weights of {name}\(\.\.\.\); got meta\."),
    ):
        given: Any = {"size": (4,), **options}
        size = given.pop("size")
        laws.check_refused(
            layer, [torch.zeros(n, *size, **given) for n in lengths], SeqbatchValueError, f"`sequences` must {must}"
        )


@each
def test_a_padded_tensor(layer: nn.Module) -> None:
    message = r"`sequences` must have features \(4,\), .*; got \(3, 4\)\. For a padded Tensor call Sequence"
    laws.check_refused(layer, [torch.zeros(2, 3, 4)], SeqbatchValueError, message)


@pytest.mark.parametrize("sizes", [{"kdim": 3}, {"vdim": 5}, {"kdim": 3, "vdim": 5}], ids=str)
def test_keys_and_values_of_other_sizes(sizes: dict[str, Any]) -> None:
    found = {"kdim": 4, "vdim": 4, **sizes}
    message = (
        r"`layer` must have kdim and vdim 4, as its embed_dim, because each sequence attends to itself; "
        rf"got kdim {found['kdim']} and vdim {found['vdim']}\."
    )
    attention = nn.MultiheadAttention(4, 2, **sizes)
    block = nn.TransformerEncoderLayer(4, 2, 8)
    block.self_attn = nn.MultiheadAttention(4, 2, **sizes)
    for layer in (attention, Causal(attention), block):
        laws.check_refused(layer, [torch.zeros(2, 4)], SeqbatchValueError, message)


def test_a_hook_before_may_change_dtype_and_device() -> None:
    x = torch.randn(3, 4)
    for name in ("", "norm1"):
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, norm_first=True)
        layer.get_submodule(name).register_forward_pre_hook(lambda module, args: (args[0].float(),))
        layer.register_forward_hook(lambda module, args, output: output.float())
        if not name:
            torch.testing.assert_close(encode(layer, x.double()), layer(x))
        with pytest.raises(SeqbatchValueError, match=r"`sequences` must have features \(4,\)"):
            encode(layer, x[:, :3])


def test_a_hook_does_not_keep_the_checks_away() -> None:
    for layer in (with_hook(nn.MultiheadAttention(4, 2)), with_hook(Causal(nn.MultiheadAttention(4, 2)))):
        with pytest.raises(SeqbatchValueError, match=r"`sequences` must have dtype torch.float32, as the weights of"):
            encode(layer, [torch.zeros(3, 4, dtype=torch.float64)])


class Own(nn.TransformerEncoderLayer):
    """Takes what its base does not."""

    def forward(self, src: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().forward(src[..., :4], *args, **kwargs)


def test_a_forward_of_its_own_takes_what_it_takes() -> None:
    layer = Own(4, 2, 8, dropout=0.0)
    x = torch.randn(3, 6)
    torch.testing.assert_close(encode(layer, x), layer(x))


def test_inputs_whose_axes_are_unknown() -> None:
    layer: Any = Own(4, 2, 8)
    layer.self_attn = nn.Identity()
    message = r"got .*Own: Identity\(\) in it does not say whether it is batch_first\. If it is made of layers"
    with pytest.raises(UnsupportedLayerError, match=message):
        encode(layer, torch.zeros(3, 4))


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.LSTM(4, 4), 3, None, nn.MultiheadAttention])
def test_causal_of_something_else(layer: Any) -> None:
    message = (
        r"`layer` must be an nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder, "
        r"nn.TransformerDecoderLayer or nn.TransformerDecoder; got (a|None)"
    )
    with pytest.raises(SeqbatchTypeError, match=message):
        Causal(layer)


def test_causal_is_called_with_something_else() -> None:
    layer = Causal(nn.MultiheadAttention(4, 2))
    with pytest.raises(SeqbatchTypeError, match=r"`sequence` must be a Tensor; got a list"):
        layer([torch.zeros(3, 4)])
    with pytest.raises(SeqbatchValueError, match=r"`sequence` must have shape \(steps, \*features\); got"):
        layer(torch.zeros(()))


def test_a_whole_transformer_has_no_encoder() -> None:
    layer = nn.Transformer(4, 2, 1, 1, 8, batch_first=True)
    found = r"got a torch.nn.modules.transformer.Transformer: none is registered for it or its bases\. If it is made of"
    with pytest.raises(UnsupportedLayerError, match=rf"`layer` must have an encoder; {found}"):
        encode(layer, torch.zeros(3, 4))
    with pytest.raises(UnsupportedLayerError, match=rf"`layer` must have an encoder that takes memory; {found}"):
        encode(layer, torch.zeros(3, 4), torch.zeros(2, 4))
