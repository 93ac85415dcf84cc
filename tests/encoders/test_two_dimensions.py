"""Layers over steps and features, nn.Conv2d, its pools and nn.BatchNorm2d: how they are called, what they refuse."""

import copy
from typing import Any

import laws
import pytest
import torch
import torch.ao.nn.quantized.dynamic as quantized
from reference import run_alone
from strategies import sequences
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence
from torch.testing import assert_close

from seqbatch import SeqbatchTypeError, SeqbatchValueError, SequenceBatch, encode

CHANNELS, FEATURES = 2, 7
LENGTHS: list[list[int]] = [[4, 4, 4], [5, 3, 0, 7], [6], [0, 0], [3, 0, 3]]
every_lengths = pytest.mark.parametrize("lengths", LENGTHS, ids=str)
both_lengths = pytest.mark.parametrize("lengths", [[3, 3], [3, 0, 5]], ids=["equal", "ragged"])


class Causal(nn.Conv2d):
    """A convolution that looks back only, as many people write it: its lengths are not those of its base."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(functional.pad(input, (0, 0, self.kernel_size[0] - 1, 0)))


class Centred(nn.AvgPool2d):
    """A layer that mixes all steps of a sequence."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input - input.mean((2, 3), keepdim=True))


class Negated(nn.ZeroPad2d):
    def forward(self, input: Tensor) -> Tensor:
        return -super().forward(input)


class Doubled(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        assert input.dim() == 4
        return super().forward(input.mul_(2))


def images(lengths: list[int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return sequences(lengths, (CHANNELS, FEATURES), dtype)


def speech_model() -> nn.Sequential:
    """Make the layers of DeepSpeech 2 (Amodei et al., 2016), small."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, (5, 7), stride=(2, 2), padding=(2, 3)),
        nn.BatchNorm2d(3),
        nn.Hardtanh(0, 20),
        nn.Conv2d(3, 3, (5, 3), stride=(1, 2), padding=(2, 1)),
        nn.BatchNorm2d(3),
        nn.Hardtanh(0, 20),
        nn.Flatten(),
        nn.LSTM(3 * 4, 5, bidirectional=True),
        nn.Linear(10, 4),
    ).double()


@every_lengths
def test_a_model_of_speech(lengths: list[int]) -> None:
    model = speech_model().eval()
    xs = sequences([3 * length for length in lengths], (16,))
    laws.check_alone(model, xs)
    laws.check_order(model, xs, [*range(len(xs))][::-1])
    laws.check_padding(model, xs, float("nan"), "right", batch_first=True)
    assert [len(output) for output in encode(model, xs)] == [-(-len(x) // 2) for x in xs]


def test_such_a_model_in_training_counts_each_step_once() -> None:
    model = speech_model()
    xs = sequences([9, 4, 6], (16,))
    by_hand = copy.deepcopy(model)
    convolved = [run_alone(by_hand[0], [x])[0][0] for x in xs]
    wanted = by_hand[1](torch.cat(convolved).transpose(0, 1)[None])[0].transpose(0, 1)
    assert_close(torch.cat(encode(model[:2], xs)), wanted)
    assert_close(model[1].state_dict(), by_hand[1].state_dict())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 3, 3, padding=1),
        nn.MaxPool2d((3, 2)),
        nn.AvgPool2d((1, 3)),
        nn.LPPool2d(2.0, (2, 1)),
        nn.ZeroPad2d((1, 0, 2, 0)),
    ],
    ids=str,
)
@both_lengths
def test_features_without_channels_are_of_one(layer: nn.Module, lengths: list[int]) -> None:
    xs = sequences(lengths, (FEATURES,))
    laws.check_alone(layer.double(), xs)
    assert_close(encode(layer, xs), encode(layer, [x.unsqueeze(1) for x in xs]))
    assert {output.dim() for output in encode(layer, xs)} == {3}


@every_lengths
def test_a_forward_of_its_own_may_do_anything_with_the_steps_of_a_sequence(lengths: list[int]) -> None:
    torch.manual_seed(0)
    for layer in (Causal(CHANNELS, 3, (3, 2)), Centred((2, 3)), Centred((2, 3), ceil_mode=True), Negated(1)):
        xs = images(lengths)
        laws.check_alone(layer.double(), xs)
        laws.check_empty(layer, xs)
        laws.check_called_as_itself(layer, xs)
        laws.check_unmodified(layer, xs)


@every_lengths
@pytest.mark.parametrize("layer", [nn.Conv2d(CHANNELS, 3, 3), Causal(CHANNELS, 3, 3)], ids=["plain", "own forward"])
def test_hooks_see_all_steps_end_to_end(lengths: list[int], layer: nn.Conv2d) -> None:
    seen: list[Any] = []
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape)),
        layer.register_forward_hook(lambda module, args, output: seen.append(output.shape)),
    ]
    outputs = encode(layer, images(lengths, torch.float32))
    steps = sum(map(len, outputs))
    assert seen == [(1, CHANNELS, sum(lengths), FEATURES), (1, 3, steps, FEATURES - 2)]
    for hook in hooks:
        hook.remove()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:The current implementation of the .* module")
def test_a_quantized_convolution_scales_each_sequence_by_itself() -> None:
    layer: nn.Module = quantized.Conv2d(CHANNELS, 3, 3, padding=1)
    xs = [scale * torch.randn(length, CHANNELS, FEATURES) for scale, length in ((1, 4), (100, 4), (1, 0), (1, 7))]
    wanted = [layer(x.transpose(0, 1)[None])[0].transpose(0, 1) if len(x) else torch.zeros(0, 3, FEATURES) for x in xs]
    assert_close(encode(layer, xs), wanted, rtol=0, atol=0)
    assert encode(layer, xs[2:3])[0].shape == (0, 3, FEATURES)


@pytest.mark.parametrize("counts", [[], [0, 0]], ids=["no sequence", "no steps"])
@pytest.mark.parametrize(
    ("layer", "features"),
    [
        (nn.Conv2d(CHANNELS, 3, (3, 2)), (3, FEATURES - 1)),
        (Causal(CHANNELS, 3, (3, 2)), (3, FEATURES - 1)),
        (nn.MaxPool2d(2), (CHANNELS, FEATURES // 2)),
        (nn.LPPool2d(2.0, 2), (CHANNELS, FEATURES // 2)),
        (Centred(2), (CHANNELS, FEATURES // 2)),
        (nn.ReflectionPad2d((1, 2, 3, 3)), (CHANNELS, FEATURES + 3)),
        (nn.CircularPad2d((1, -2, 3, 3)), (CHANNELS, FEATURES - 1)),
        (Negated((1, -2, 3, 3)), (CHANNELS, FEATURES - 1)),
        (nn.BatchNorm2d(CHANNELS), (CHANNELS, FEATURES)),
    ],
    ids=str,
)
def test_without_steps_there_are_outputs_that_gradients_flow_through(
    layer: nn.Module, features: tuple[int, ...], counts: list[int]
) -> None:
    batch = SequenceBatch(torch.zeros(0, CHANNELS, FEATURES, requires_grad=True), counts)
    result = encode(layer, batch)
    assert result.lengths == tuple(counts)
    assert result.feature_shape == features
    for gradient in torch.autograd.grad(result.values.sum(), [batch.values, *layer.parameters()]):
        assert not gradient.any()
    assert encode(layer, []) == []


def test_every_layout_returns_its_own() -> None:
    layer = nn.Conv2d(CHANNELS, 3, 2, 2, dtype=torch.float64)
    xs = images([5, 2, 7])
    batch, outputs = SequenceBatch.from_sequences(xs), encode(layer, xs)
    packed = encode(layer, batch.to_packed())
    assert isinstance(packed, PackedSequence)
    assert_close(SequenceBatch.from_packed(packed).to_sequences(), outputs)
    assert_close(list(encode(layer, batch.to_nested()).unbind()), outputs)
    assert_close(encode(layer, xs[0]), outputs[0])


def test_autocast_and_half_precision() -> None:
    layer = nn.Conv2d(CHANNELS, 3, 3, padding=1)
    for lengths in ([3, 3], [4, 0, 2], [0]):
        xs = [x.detach() for x in images(lengths, torch.float32)]
        with torch.autocast("cpu"):
            outputs, alone = encode(layer, xs), run_alone(layer, xs)[0]
        assert {output.dtype for output in outputs} == {torch.bfloat16}
        assert_close([one for one in outputs if len(one)], [one for one in alone if len(one)])
        half = copy.deepcopy(layer).to(torch.bfloat16)
        ys = [x.to(torch.bfloat16) for x in xs]
        assert_close(encode(half, ys), run_alone(half, ys)[0])


@pytest.mark.parametrize("lengths", [[4, 4], [5, 2]], ids=str)
def test_complex_values(lengths: list[int]) -> None:
    layer = nn.Conv2d(CHANNELS, 3, 2, padding=1, dtype=torch.complex128)
    xs = images(lengths, torch.complex128)
    assert_close(encode(layer, xs), run_alone(layer, xs)[0])


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_stands_in_a_neighbour_changes_no_bit(size: int, dtype: torch.dtype) -> None:
    """A convolution by a fast transform would mix the rows of a tile, and so what is near a border."""
    for channels in (1, 16):
        layer = nn.Conv2d(channels, 32, size, padding=size // 2, dtype=dtype)
        xs = [torch.randn(length, channels, 40, dtype=dtype) for length in (9, 4, 17)]
        clean = encode(layer, xs)
        for poison in (float("nan"), float("inf"), 1e30):
            xs[1] = torch.full_like(xs[1], poison)
            found = encode(layer, xs)
            assert torch.equal(found[0], clean[0])
            assert torch.equal(found[2], clean[2])


def test_no_shape_is_computed_on_no_device() -> None:
    batch = SequenceBatch(torch.zeros(12, CHANNELS, FEATURES, device="meta"), [5, 0, 7])
    for layer in (
        nn.Conv2d(CHANNELS, 3, 2, 2, device="meta"),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.CircularPad2d(1),
        nn.BatchNorm2d(CHANNELS, device="meta").eval(),
    ):
        assert encode(layer, batch).device.type == "meta"


# --------------------------------------------------------------------------------------------------------- batch norm


@every_lengths
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_counts_all_steps_and_features(lengths: list[int], track: bool, training: bool) -> None:
    layer = nn.BatchNorm2d(CHANNELS, track_running_stats=track, dtype=torch.float64).train(training)
    plain, xs = copy.deepcopy(layer), images(lengths)
    outputs = encode(layer, xs)
    wanted = plain(torch.cat(xs).transpose(0, 1)[None])[0].transpose(0, 1) if sum(lengths) else torch.cat(xs)
    assert_close(torch.cat(outputs), wanted)
    if sum(lengths):
        assert_close(layer.state_dict(), plain.state_dict())
        weights = torch.arange(wanted.numel()).cos().view_as(wanted)
        found, expected = (
            torch.autograd.grad((weights * one).sum(), [*xs, *held.parameters()])
            for one, held in ((torch.cat(outputs), layer), (wanted, plain))
        )
        assert_close(found, expected)


def test_batch_norm_with_a_forward_of_its_own_gets_four_axes_of_a_copy() -> None:
    xs = images([3, 2])
    layer = Doubled(CHANNELS, dtype=torch.float64).eval()
    laws.check_unmodified(layer, xs)
    assert_close(encode(layer, xs), encode(nn.BatchNorm2d(CHANNELS, dtype=torch.float64).eval(), [2 * x for x in xs]))


def test_batch_norm_is_called_as_itself() -> None:
    layer, seen = nn.BatchNorm2d(CHANNELS), []
    layer.register_forward_hook(lambda module, args, output: seen.append((module, tuple(args[0].shape))))
    encode(layer, images([3, 2], torch.float32))
    assert seen == [(layer, (5, CHANNELS, FEATURES, 1))]
    laws.check_called_as_itself(nn.BatchNorm2d(CHANNELS).double().eval(), images([3, 0, 2]))


def test_batch_norm_without_sequences_is_not_counted() -> None:
    layer = nn.BatchNorm2d(CHANNELS, momentum=None)
    assert encode(layer, []) == []
    encode(layer, SequenceBatch(torch.zeros(0, CHANNELS, FEATURES), []))
    assert not layer.num_batches_tracked


# ------------------------------------------------------------------------------------------------------------- errors


def zeros(lengths: list[int], *features: int, **options: Any) -> list[Tensor]:
    return [torch.zeros(length, *features, **options) for length in lengths]


@both_lengths
@pytest.mark.parametrize(
    ("layer", "features", "message"),
    [
        (nn.Conv2d(3, 4, 2), (2, 5), r"have features \(3, features\), for Conv2d\(3, .*\); got \(2, 5\)\.$"),
        (nn.Conv2d(3, 4, 2), (5,), r"have features \(3, features\), for Conv2d\(3, .*\); got \(5,\)\.$"),
        (nn.Conv2d(1, 4, 2), (2, 5), r"have features \(1, features\) or \(features,\), for .*; got \(2, 5\)\.$"),
        (nn.Conv2d(1, 4, 2), (), r"have features \(1, features\) or \(features,\), for Conv2d.*; got \(\)\.$"),
        (
            nn.Conv2d(1, 4, 2),
            (1, 6, 5),
            r"have features .*; got \(1, 6, 5\)\. For a padded Tensor call SequenceBatch\.from_padded\.$",
        ),
        (nn.MaxPool2d(2), (), r"have features \(channels, features\) or \(features,\), for MaxPool2d.*; got \(\)\.$"),
        (nn.ZeroPad2d(2), (1, 1, 2), r"have features \(channels, features\) or \(features,\), .*; got \(1, 1, 2\)\. F"),
        (nn.BatchNorm2d(4), (4,), r"have features \(channels, features\), for BatchNorm2d.*; got \(4,\)\. Pass x\.uns"),
        (nn.BatchNorm2d(4), (4, 2, 2), r"have features \(channels, features\), for BatchNorm2d.*; got \(4, 2, 2\)\.$"),
        (nn.BatchNorm2d(4), (3, 2), r"have features that begin with \(4,\), for BatchNorm2d.*; got \(3, 2\)\.$"),
        (nn.Conv2d(1, 4, (1, 3)), (2,), r"have 3 features at least to fill a window, for Conv2d\(.*\); got 2\.$"),
        (nn.Conv2d(1, 4, (1, 3), padding=(0, 1)), (0,), r"have 1 feature at least to .*, for Conv2d\(.*\); got 0\.$"),
        (nn.MaxPool2d((1, 9), dilation=(1, 2)), (2, 16), r"have 17 features at least to fill .*\(.*\); got 16\.$"),
        (nn.AvgPool2d((1, 4), padding=(0, 1)), (2, 1), r"have 2 features at least to fill a window, .*; got 1\.$"),
        (nn.ReflectionPad2d((0, 3, 0, 0)), (2, 3), r"have 4 features at least to be padded, for .*; got 3\.$"),
        (nn.CircularPad2d((2, -1, 0, 0)), (2, 2), r"have 3 features at least to be padded, for .*; got 2\.$"),
    ],
)
def test_features_that_a_layer_does_not_take(
    lengths: list[int], layer: nn.Module, features: tuple[int, ...], message: str
) -> None:
    laws.check_refused(layer, zeros(lengths, *features), SeqbatchValueError, f"`sequences` must {message}")


@both_lengths
def test_features_that_pytorch_would_read_out_of_bounds(lengths: list[int]) -> None:
    layer = nn.MaxPool2d((1, 2), padding=(0, 1), dilation=(1, 4))
    message = r"`sequences` must have 4 features at least to fill a window, for MaxPool2d\(.*\); got 3\.$"
    laws.check_refused(layer, zeros(lengths, 1, 3), SeqbatchValueError, message)
    laws.check_alone(layer, sequences(lengths, (1, 4)))


@pytest.mark.parametrize(
    ("layer", "lengths", "where", "least", "what"),
    [
        (nn.Conv2d(2, 3, (3, 1)), [3, 0, 2, 1], 2, "3 steps", "fill a window"),
        (nn.Conv2d(2, 3, (3, 1), padding="valid"), [2], 0, "3 steps", "fill a window"),
        (nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect"), [3, 5, 2], 2, "3 steps", "be padded"),
        (nn.MaxPool2d((4, 1), 2, ceil_mode=True), [3, 2], 1, "3 steps", "fill a window"),
        (nn.AvgPool2d((4, 2), padding=1), [3, 2, 1], 2, "2 steps", "fill a window"),
        (nn.ReflectionPad2d((0, 0, 3, 0)), [4, 3], 1, "4 steps", "be padded"),
    ],
    ids=str,
)
def test_sequences_that_are_too_short(layer: nn.Module, lengths: list[int], where: int, least: str, what: str) -> None:
    message = rf"`sequences\[{where}\]` must have {least} at least to {what}, for .*; got {lengths[where]}\. "
    laws.check_refused(layer, zeros(lengths, 2, 9), SeqbatchValueError, message)
    with pytest.raises(RuntimeError):  # as PyTorch does
        layer(torch.zeros(1, 2, lengths[where], 9))


@both_lengths
@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (
            nn.Conv2d(2, 3, 3, stride=(1, 0)),
            SeqbatchValueError,
            r"have a kernel, a stride and a dilation of 1 at least",
        ),
        (
            nn.Conv2d(2, 3, 3, padding=(1, -1)),
            SeqbatchValueError,
            r"have a kernel, .* and padding of 0 at least; got C",
        ),
        (
            nn.MaxPool2d((4, 2), padding=(2, 2)),
            SeqbatchValueError,
            r"have padding of half its kernel at most; got MaxP",
        ),
        (
            nn.AvgPool2d((2, 4), padding=(2, 2)),
            SeqbatchValueError,
            r"have padding of half its kernel at most; got AvgP",
        ),
        (nn.MaxPool2d(2, return_indices=True), SeqbatchValueError, r"not return indices, because .*; got MaxPool2d\("),
        (
            nn.ConstantPad2d((1, 1.5, 1, 1), 0.0),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            SeqbatchTypeError,
            r"have sizes and padding that are integers; got ConstantPad2d\(",
        ),
    ],
)
def test_options_that_a_layer_cannot_have(lengths: list[int], layer: nn.Module, error: Any, message: str) -> None:
    laws.check_refused(layer, zeros(lengths, 2, 9), error, f"`layer` must {message}")


@both_lengths
def test_other_refusals_quote_pytorch(lengths: list[int]) -> None:
    message = (
        r"`layer` must take features \(2, 9\) and torch\.float32; got AvgPool2d\(.*\)\. PyTorch says: divisor must be"
    )
    with pytest.raises(SeqbatchValueError, match=message):
        encode(nn.AvgPool2d(2, divisor_override=0), zeros(lengths, 2, 9))


@both_lengths
def test_other_dtypes_and_devices(lengths: list[int]) -> None:
    convolution = nn.Conv2d(2, 3, 3, padding=1)
    for options, message in (
        ({"dtype": torch.float64}, r"have dtype torch\.float32, as the weights of Conv2d\(.*\); got torch\.float64"),
        ({"device": "meta"}, r"be on cpu, as the weights of Conv2d\(.*\); got meta\."),
    ):
        laws.check_refused(
            convolution, zeros(lengths, 2, 9, **options), SeqbatchValueError, f"`sequences` must {message}"
        )
    for layer in (nn.MaxPool2d(2), nn.AvgPool2d(2), nn.LPPool2d(2.0, 2)):
        for dtype in (torch.int64, torch.bool, torch.complex64):
            message = rf"`sequences` must be floating, for \w+Pool2d\(.*\); got {dtype}\."
            laws.check_refused(layer, zeros(lengths, 2, 9, dtype=dtype), SeqbatchValueError, message)


@both_lengths
def test_hooks_must_not_change_the_steps(lengths: list[int]) -> None:
    layer = nn.AvgPool2d(2)
    layer.register_forward_pre_hook(lambda module, args: (args[0][:, :, 1:],))
    total = sum(lengths)
    message = rf"`layer` must get all {total} steps from the hooks before it; got {total - 1}\."
    with pytest.raises(SeqbatchValueError, match=message):
        encode(layer, zeros(lengths, 2, 9))
