"""What layers that treat every step by itself refuse, and what of PyTorch's own refusals is passed on."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from seqbatch import SeqbatchError, SeqbatchTypeError, SeqbatchValueError, SequenceBatch, encode


@pytest.mark.parametrize("dim", [0, -3, None])
@pytest.mark.parametrize("kind", [nn.Softmax, nn.Softmin, nn.LogSoftmax])
def test_softmax_along_the_steps_is_refused(kind: Any, dim: int | None) -> None:
    message = (
        r"`layer` must work along a feature, not along the steps of a sequence of 3 dimensions; got \w+\(dim=.*\). "
        r"Pass dim=-1 for the last feature; over the steps call "
    )
    with pytest.raises(SeqbatchValueError, match=message):
        encode(kind(dim), [torch.zeros(3, 2, 4)])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Linear(5, 2), r"`sequences` must have features that end with \(5,\), for Linear\(in_features=5, .*\); got"),
        (nn.LayerNorm([3, 4]), r"`sequences` must have features that end with \(3, 4\), for LayerNorm\(\(3, 4\), .*"),
        (nn.RMSNorm(2), r"`sequences` must have features that end with \(2,\), for RMSNorm\(\(2,\), .*"),
        (nn.LayerNorm([1, 2, 4]), r"`sequences` must have features that end with \(1, 2, 4\), .* got \(2, 4\)."),
    ],
)
def test_wrong_features(layer: nn.Module, message: str) -> None:
    # LayerNorm over (1, 2, 4) would normalize a sequence of one step alone, and steps of others together.
    with pytest.raises(SeqbatchValueError, match=message):
        encode(layer, [torch.zeros(1, 2, 4)])


@pytest.mark.parametrize("layer", [nn.Linear(4, 2), nn.LayerNorm(4), nn.RMSNorm(4)])
def test_wrong_dtype(layer: nn.Module) -> None:
    with pytest.raises(SeqbatchValueError, match=r"must have dtype torch.float32, as the weights of .*; got torch.flo"):
        encode(layer, [torch.zeros(3, 4, dtype=torch.float64)])


def test_wrong_device() -> None:
    message = r"`sequences` must be on meta, as the weights of Linear\(in_features=4, .*\); got cpu."
    with pytest.raises(SeqbatchValueError, match=message):
        encode(nn.Linear(4, 2, device="meta"), [torch.zeros(3, 4)])


def test_embedding_of_values_that_are_not_tokens() -> None:
    message = r"`sequences` must have dtype torch.int32 or torch.int64, for Embedding\(9, 4\); got torch.float32."
    with pytest.raises(SeqbatchTypeError, match=message):
        encode(nn.Embedding(9, 4), [torch.zeros(3)])


def test_a_layer_that_mixes_steps_is_found_out_when_it_changes_their_number() -> None:
    class Odd(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input[1:]

    message = r"`function\(values\)` must have the 3 steps of this batch; got 2."
    with pytest.raises(SeqbatchValueError, match=message):
        encode(Odd(4, 4), [torch.zeros(3, 4)])


def test_glu_along_the_steps_is_refused() -> None:
    message = (
        r"`layer` must work along a feature, not along the steps of a sequence of 2 dimensions; got GLU\(dim=0\)\. "
        r"Pass dim=-1 for the last feature\.\n"
    )
    with pytest.raises(SeqbatchValueError, match=message):
        encode(nn.GLU(0), [torch.zeros(4, 2)])


@pytest.mark.parametrize(("layer", "rest"), [(nn.GLU(), r"\.\n"), (nn.Softmax(-1), r"; over the steps call ")])
def test_sequences_without_features(layer: nn.Module, rest: str) -> None:
    message = r"of a sequence of 1 dimension; got \w+\(dim=-1\)\. Such a sequence has no features" + rest
    with pytest.raises(SeqbatchValueError, match=message):
        encode(layer, [torch.zeros(4)])


# What an activation cannot take, and what PyTorch says of it.
REFUSED_BY_TORCH: list[tuple[nn.Module, torch.Tensor, str]] = [
    (nn.PReLU(3), torch.zeros(2, 4), r"Mismatch of parameter numbers and input channel size\."),
    (nn.PReLU(), torch.zeros(2, 4, dtype=torch.float64), r"prelu: Type promoting not supported\."),
    (nn.GLU(), torch.zeros(2, 3), r"Halving dimension must be even, but dimension 1 is size 3"),
    (nn.Softmax(5), torch.zeros(2, 4), r"Dimension out of range \(expected to be in range of \[-2, 1\], but got 5\)"),
    (nn.LogSoftmax(-3), torch.zeros(2, 4), r"Dimension out of range"),
    (nn.GELU(), torch.zeros(2, 4, dtype=torch.int64), r'"GeluKernelImpl" not implemented for \'Long\''),
    (nn.ReLU(), torch.zeros(2, 4, dtype=torch.bool), r"Boolean inputs not supported for relu"),
    (nn.FeatureAlphaDropout(), torch.zeros(2), r"Feature dropout requires at least 2 dimensions in the input"),
    (nn.LayerNorm(4, elementwise_affine=False), torch.zeros(2, 4, dtype=torch.int64), r'"LayerNormKernelImpl" not imp'),
]


@pytest.mark.parametrize(("layer", "x", "words"), REFUSED_BY_TORCH)
def test_what_an_activation_refuses_quotes_pytorch(layer: nn.Module, x: torch.Tensor, words: str) -> None:
    name = type(layer).__name__
    found = rf"features \({', '.join(map(str, x.shape[1:]))},?\) and {x.dtype}"
    message = rf"`layer` must take {found}; got {name}\(.*\)\. PyTorch says: {words}"
    with pytest.raises(SeqbatchValueError, match=message) as caught:
        encode(layer, [x, x[:1]])
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, (IndexError, NotImplementedError, RuntimeError))


def test_a_lack_of_memory_is_not_blamed_on_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(layer: nn.Module, input: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(nn.Tanh, "forward", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        encode(nn.Tanh(), [torch.zeros(2, 3)])


def test_nor_is_a_lack_of_memory_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # More bytes than there are addresses.
    monkeypatch.setattr(nn.Tanh, "forward", lambda layer, steps: torch.empty(2**46))
    with pytest.raises(RuntimeError, match=r"DefaultCPUAllocator: (can't allocate|not enough) memory"):
        encode(nn.Tanh(), [torch.zeros(2, 3)])


@pytest.mark.parametrize("way", ["forward hook", "forward pre-hook", "subclass"])
@pytest.mark.parametrize(("layer", "x", "words"), REFUSED_BY_TORCH)
def test_errors_of_layers_with_hooks_or_a_forward_of_their_own_stay_as_they_are(
    layer: nn.Module, x: torch.Tensor, words: str, way: str
) -> None:
    changed = copy.deepcopy(layer)
    if way == "forward hook":
        changed.register_forward_hook(lambda module, args, output: None)
    elif way == "forward pre-hook":
        changed.register_forward_pre_hook(lambda module, args: None)
    else:
        changed.forward = layer.forward
    with pytest.raises((IndexError, NotImplementedError, RuntimeError), match=words) as caught:
        encode(changed, [x, x[:1]])
    assert not isinstance(caught.value, SeqbatchError)


def ids(*numbers: Any) -> torch.Tensor:
    return torch.tensor(numbers)


@pytest.mark.parametrize(
    ("given", "where", "found"),
    [
        ([ids(1, 2), ids()[:0].long(), ids(0, 3, 9)], r"sequences\[2\]", "9 at step 2"),
        ([ids(1, 8), ids(-1, 9)], r"sequences\[1\]", "-1 at step 0"),
        ([ids([0, 1], [3, 10])], r"sequences\[0\]", r"\[3, 10\] at step 1"),
        (ids(0, 9), r"sequences\[0\]", "9 at step 1"),
        (pack_sequence([ids(1), ids(2, 11)], enforce_sorted=False), r"sequences\[1\]", "11 at step 1"),
        (SequenceBatch(ids(9, 9, 0), [0, 2, 0, 1]), r"sequences\[1\]", "9 at step 0"),
    ],
)
def test_ids_out_of_range_are_named_by_sequence_and_step(given: Any, where: str, found: str) -> None:
    message = rf"`{where}` must hold ids from 0 to 8, for Embedding\(9, 4\); got {found}\."
    with pytest.raises(SeqbatchValueError, match=message):
        encode(nn.Embedding(9, 4), given)


def test_ids_are_those_that_a_hook_makes() -> None:
    layer = nn.Embedding(9, 4)
    layer.register_forward_pre_hook(lambda module, args: (args[0].long() % 9,))
    wanted = layer.weight[[1, 2]]
    torch.testing.assert_close(encode(layer, torch.tensor([1.0, 11.0])), wanted)
    torch.testing.assert_close(encode(layer, ids(10, 11)), wanted)


def test_embedding_on_another_device() -> None:
    message = r"`sequences` must be on {}, as the weights of Embedding\(9, 4\); got {}\."
    with pytest.raises(SeqbatchValueError, match=message.format("meta", "cpu")):
        encode(nn.Embedding(9, 4, device="meta"), [ids(1)])
    with pytest.raises(SeqbatchValueError, match=message.format("cpu", "meta")):
        encode(nn.Embedding(9, 4), [ids(1).to("meta")])
    # Its ids are not read there, because that would synchronize with the device.
    assert encode(nn.Embedding(9, 4, device="meta"), [ids(99).to("meta")])[0].shape == (1, 4)
