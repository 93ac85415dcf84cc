"""What layers over steps refuse, before any of them runs, and what of PyTorch's own refusals is passed on."""

from collections.abc import Callable
from typing import Any

import laws
import pytest
import torch
from torch import Tensor, nn

from seqbatch import SeqbatchError, SeqbatchTypeError, SeqbatchValueError, SequenceBatch, encode


def zeros(lengths: list[int], *features: int, **options: Any) -> list[Tensor]:
    return [torch.zeros(length, *features, **options) for length in lengths]


@pytest.mark.parametrize(
    ("layer", "lengths", "where", "least", "what"),
    [
        (nn.Conv1d(2, 3, 3), [3, 0, 2, 1], 2, "3 steps", "fill a window"),
        (nn.Conv1d(2, 3, 3), [2, 2], 0, "3 steps", "fill a window"),
        (nn.Conv1d(2, 3, 3, padding="valid"), [2], 0, "3 steps", "fill a window"),
        (nn.Conv1d(2, 3, 3, stride=4, padding=1, dilation=2), [5, 2], 1, "3 steps", "fill a window"),
        (nn.Conv1d(2, 3, 9, padding=1, padding_mode="circular"), [7, 6], 1, "7 steps", "fill a window"),
        (nn.Conv1d(2, 3, 3, padding=2, padding_mode="reflect"), [3, 5, 2], 2, "3 steps", "be padded"),
        (nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), [2, 0, 1, 5], 2, "2 steps", "be padded"),
        (nn.Conv1d(2, 3, 4, padding="same", padding_mode="reflect"), [2, 3], 0, "3 steps", "be padded"),
        (nn.MaxPool1d(3), [3, 4, 2], 2, "3 steps", "fill a window"),
        (nn.MaxPool1d(2, padding=1, dilation=4), [3, 2], 1, "3 steps", "fill a window"),
        (nn.MaxPool1d(4, 2, ceil_mode=True), [3, 2], 1, "3 steps", "fill a window"),
        (nn.AvgPool1d(4, padding=1), [3, 2, 1], 2, "2 steps", "fill a window"),
        (nn.LPPool1d(2.0, 3, 2), [5, 2, 3], 1, "3 steps", "fill a window"),
        (nn.ConstantPad1d((-2, -1), 0.0), [3, 2, 4], 1, "3 steps", "be padded"),
        (nn.ReflectionPad1d((0, 3)), [4, 3], 1, "4 steps", "be padded"),
        (nn.ReflectionPad1d(-1), [4, 2], 1, "3 steps", "be padded"),
        (nn.ReplicationPad1d((-3, 1)), [4, 2], 1, "3 steps", "be padded"),
        (nn.CircularPad1d((2, 0)), [2, 1], 1, "2 steps", "be padded"),
    ],
    ids=str,
)
@pytest.mark.parametrize("as_kind", [list, SequenceBatch.from_sequences])
def test_sequences_that_are_too_short(
    layer: nn.Module, lengths: list[int], where: int, least: str, what: str, as_kind: Callable[..., Any]
) -> None:
    must = rf"`sequences\[{where}\]` must have {least} at least to {what}, for {type(layer).__name__}\(.*\)"
    remedy = "Pad it or leave it out" if what == "fill a window" else "Leave it out"
    message = rf"{must}; got {lengths[where]}\. {remedy}, by batch\[indices\]\."
    laws.check_refused(layer, as_kind(zeros(lengths, 2)), SeqbatchValueError, message)
    with pytest.raises((RuntimeError, AssertionError)):  # so does PyTorch
        layer(torch.zeros(1, 2, lengths[where]))
    number = int(least.split()[0])
    assert len(encode(layer, zeros([number, 0, number], 2))) == 3


def test_a_sequence_that_pytorch_pads_with_what_stands_in_memory() -> None:
    message = r"`sequences\[1\]` must have 3 steps at least to be padded, for CircularPad1d\(\(2, -1\)\); got 2\. Leave"
    laws.check_refused(nn.CircularPad1d((2, -1)), zeros([3, 2], 2), SeqbatchValueError, message)


LAYERS: list[nn.Module] = [nn.Conv1d(2, 3, 3), nn.MaxPool1d(3), nn.AvgPool1d(3), nn.LPPool1d(2.0, 3), nn.ZeroPad1d(1)]
both_lengths = pytest.mark.parametrize("lengths", [[3, 3], [3, 0, 5]], ids=["equal", "ragged"])


@both_lengths
@pytest.mark.parametrize("layer", LAYERS[1:], ids=str)
def test_steps_that_are_not_channels(layer: nn.Module, lengths: list[int]) -> None:
    must = r"`sequences` must have features \(channels,\), for \w+\(.*\); got "
    message = must + r"\(\)\. Pass x\.unsqueeze\(-1\) for one channel\."
    laws.check_refused(layer, zeros(lengths), SeqbatchValueError, message)
    message = must + r"\(2, 4\)\. For a padded Tensor call SequenceBatch\.from_padded\."
    laws.check_refused(layer, zeros(lengths, 2, 4), SeqbatchValueError, message)


@both_lengths
@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ((4,), {}, r"have features \(2,\), for Conv1d\(2, 3, .*\); got \(4,\)\."),
        ((), {}, r"have features \(2,\), for Conv1d\(2, 3, .*\); got \(\)\."),
        (
            (5, 2),
            {},
            r"have features \(2,\), for .*; got \(5, 2\)\. For a padded Tensor call SequenceBatch\.from_padded\.",
        ),
        (
            (2,),
            {"dtype": torch.float64},
            r"have dtype torch\.float32, as the weights of Conv1d\(.*\); got torch\.float64",
        ),
        ((2,), {"device": "meta"}, r"be on cpu, as the weights of Conv1d\(.*\); got meta\."),
    ],
)
def test_what_a_convolution_does_not_take(
    lengths: list[int], features: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    given = zeros(lengths, *features, **options)
    laws.check_refused(LAYERS[0], given, SeqbatchValueError, f"`sequences` must {message}")


@both_lengths
@pytest.mark.parametrize("layer", LAYERS[1:4], ids=str)
def test_pools_take_floating_numbers(layer: nn.Module, lengths: list[int]) -> None:
    for dtype in (torch.int64, torch.bool, torch.complex64):
        message = rf"`sequences` must be floating, for \w+Pool1d\(.*\); got {dtype}\."
        laws.check_refused(layer, zeros(lengths, 2, dtype=dtype), SeqbatchValueError, message)


@both_lengths
def test_indices_of_maxima(lengths: list[int]) -> None:
    class Own(nn.MaxPool1d):
        def forward(self, input: Tensor) -> Any:
            return super().forward(input)

    for kind in (nn.MaxPool1d, Own):
        message = (
            r"`layer` must not return indices, because they would count the steps of the whole batch; "
            rf"got {kind.__name__}\(\.\.\., return_indices=True\)\."
        )
        laws.check_refused(kind(2, return_indices=True), zeros(lengths, 2), SeqbatchValueError, message)


@both_lengths
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(2, 3, 3, stride=0),
        nn.Conv1d(2, 3, 3, dilation=0),
        nn.Conv1d(2, 3, 3, padding=-1),
        nn.Conv1d(2, 3, 3, padding=-1, padding_mode="circular"),
        nn.MaxPool1d(0),
        nn.MaxPool1d(2, -1),
        nn.AvgPool1d(2, padding=-1),
        nn.LPPool1d(2.0, 2, 0),
    ],
    ids=str,
)
def test_windows_that_there_are_none_of(layer: nn.Module, lengths: list[int]) -> None:
    must = "have a kernel, a stride and a dilation of 1 at least, and padding of 0 at least"
    message = rf"`layer` must {must}; got {type(layer).__name__}\(.*\)\."
    laws.check_refused(layer, zeros(lengths, 2), SeqbatchValueError, message)


@both_lengths
@pytest.mark.parametrize("layer", [nn.MaxPool1d(2, padding=2), nn.MaxPool1d(3, padding=2, dilation=4)], ids=str)
def test_padding_of_more_than_half_the_kernel(layer: nn.Module, lengths: list[int]) -> None:
    message = r"`layer` must have padding of half its kernel at most; got MaxPool1d\(kernel_size=\d, .*\)\."
    laws.check_refused(layer, zeros(lengths, 2), SeqbatchValueError, message)
    with pytest.raises(RuntimeError, match="should be at most half of"):  # so does PyTorch
        layer(torch.zeros(1, 2, 5))


@both_lengths
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(2, 3, 3, padding=(1.5,)),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        nn.MaxPool1d(1.5),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        nn.AvgPool1d(2, "1"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        nn.ConstantPad1d(1.5, 0.0),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ],
    ids=str,
)
def test_sizes_that_are_not_integers(layer: nn.Module, lengths: list[int]) -> None:
    message = rf"`layer` must have sizes and padding that are integers; got {type(layer).__name__}\(.*\)\."
    laws.check_refused(layer, zeros(lengths, 2), SeqbatchTypeError, message)


def test_sizes_in_a_list() -> None:
    layer = nn.MaxPool1d([2])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    laws.check_alone(layer, [torch.randn(5, 2), torch.randn(4, 2)])


def changed(layer: nn.Module, **options: Any) -> nn.Module:
    vars(layer).update(options)
    return layer


@both_lengths
@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (changed(nn.Conv1d(2, 2, 3, padding=1), padding_mode="none"), "Unrecognised padding mode none"),
        (changed(nn.Conv1d(2, 2, 3), groups=3), "Given groups=3, expected weight to be at least 3"),
        (changed(nn.Conv1d(2, 2, 3), groups=2), "Given groups=2, weight of size .*, expected input"),
        # As PyTorch says before 2.14, and since.
        (changed(nn.LPPool1d(2, 2), norm_type=0), "((float )?division by zero|norm_type must be a non-zero value)"),
    ],
    ids=str,
)
def test_other_refusals_quote_pytorch(layer: nn.Module, words: str, lengths: list[int]) -> None:
    name = type(layer).__name__
    message = rf"`layer` must take features \(2,\) and torch\.float32; got {name}\(.*\)\. PyTorch says: {words}"
    with pytest.raises(SeqbatchValueError, match=message) as caught:
        encode(layer, zeros(lengths, 2))
    assert isinstance(caught.value.__cause__, (RuntimeError, ValueError, ZeroDivisionError))
    hook = layer.register_forward_hook(lambda module, args, output: None)
    with pytest.raises((RuntimeError, ValueError, ZeroDivisionError), match=words) as passed_on:
        encode(layer, zeros(lengths, 2))
    assert not isinstance(passed_on.value, SeqbatchError)
    hook.remove()


@both_lengths
@pytest.mark.parametrize("own", [False, True], ids=["plain", "own forward"])
def test_hooks_must_not_change_the_steps(lengths: list[int], own: bool) -> None:
    layer = nn.AvgPool1d(2)
    if own:
        layer.forward = layer.forward  # type: ignore[method-assign]  # which makes it one of its own
    before = layer.register_forward_pre_hook(lambda module, args: (args[0][..., 1:],))
    total = sum(lengths)
    message = rf"`layer` must get all {total} steps from the hooks before it; got {total - 1}\."
    with pytest.raises(SeqbatchValueError, match=message):
        encode(layer, zeros(lengths, 2))
    before.remove()
    layer.register_forward_hook(lambda module, args, output: output[..., 1:])
    with pytest.raises(SeqbatchValueError, match=r"`lengths` must add up to \d, the steps of `values`; got \d\."):
        encode(layer, zeros(lengths, 2))


@both_lengths
def test_a_forward_of_its_own_must_give_a_tensor(lengths: list[int]) -> None:
    class Pair(nn.ZeroPad1d):
        def forward(self, input: Tensor) -> Any:
            return super().forward(input), None

    with pytest.raises(SeqbatchTypeError, match=r"`layer\(sequence\)` must be a Tensor; got a tuple\."):
        encode(Pair(1), zeros(lengths, 2))
