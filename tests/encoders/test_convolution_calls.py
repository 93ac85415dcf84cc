"""How layers over steps are called: hooks, other weights, a forward of their own, modes, devices, kinds."""

import copy
from typing import Any
from unittest.mock import patch

import laws
import pytest
import torch
import torch.ao.nn.quantized.dynamic as quantized
from reference import run_alone
from strategies import sequences
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence
from torch.testing import assert_close

from seqbatch import SequenceBatch, encode
from seqbatch._encoders import convolution

LENGTHS: list[list[int]] = [[4, 4, 4], [5, 3, 0, 7], [6], [0, 0], [3, 0, 3]]
every_lengths = pytest.mark.parametrize("lengths", LENGTHS, ids=str)


class Causal(nn.Conv1d):
    """A convolution that looks back only, as many people write it: its lengths are not those of its base."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(functional.pad(input, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))


class Writing(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.detach().add_(1))


class Centred(nn.AvgPool1d):
    """A layer that mixes all steps of a sequence."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input - input.mean(-1, keepdim=True))


@every_lengths
def test_a_forward_of_its_own_may_do_anything_with_the_steps_of_a_sequence(lengths: list[int]) -> None:
    torch.manual_seed(0)
    for layer in (Causal(2, 3, 3, dilation=2), Centred(2), Centred(2, ceil_mode=True)):
        xs = sequences(lengths, (2,))
        laws.check_alone(layer.double(), xs)
        laws.check_empty(layer, xs)
        laws.check_called_as_itself(layer, xs)
        laws.check_unmodified(layer, xs)
    laws.check_lengths(Causal(2, 3, 3).double(), sequences(lengths, (2,)))


@every_lengths
def test_a_forward_of_its_own_may_write_to_its_input(lengths: list[int]) -> None:
    laws.check_unmodified(Writing(2, 3, 1, dtype=torch.float64), sequences(lengths, (2,)))


@every_lengths
@pytest.mark.parametrize("layer", [nn.Conv1d(2, 3, 3), Causal(2, 3, 3)], ids=["plain", "own forward"])
def test_hooks_see_all_steps_end_to_end(lengths: list[int], layer: nn.Conv1d) -> None:
    seen: list[Any] = []

    def backward(module: nn.Module, given: Any, received: Any) -> None:
        seen.append(received[0].shape)

    hooks = [
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape)),
        layer.register_forward_hook(lambda module, args, output: seen.append(output.shape)),
        layer.register_full_backward_hook(backward),
    ]
    xs = sequences(lengths, (2,), torch.float32)
    outputs = encode(layer, xs)
    torch.cat(outputs).sum().backward()
    of_outputs = (1, 3, sum(map(len, outputs)))
    assert seen == [(1, 2, sum(lengths)), of_outputs, of_outputs]
    for hook in hooks:
        hook.remove()


def test_a_hook_may_change_what_the_layer_is_given() -> None:
    layer = nn.Conv1d(2, 3, 3, padding=1, dtype=torch.float64)
    layer.register_forward_pre_hook(lambda module, args: (args[0].double() * 2,))
    xs = sequences([4, 2, 5], (2,))
    laws.check_alone(layer, xs)
    assert_close(encode(layer, [x.detach().int().float() for x in xs]), encode(layer, [x.int().double() for x in xs]))
    pool = nn.MaxPool1d(2)
    pool.register_forward_pre_hook(lambda module, args: (args[0].double(),))
    assert_close(encode(pool, [torch.tensor([[1], [2]])])[0], torch.tensor([[2.0]], dtype=torch.float64))


@every_lengths
def test_other_weights(lengths: list[int]) -> None:
    torch.manual_seed(0)
    xs = sequences(lengths, (2,), torch.float32)
    normalized = parametrizations.weight_norm(nn.Conv1d(2, 3, 3, padding=1))
    laws.check_alone(normalized, xs)
    laws.check_called_as_itself(normalized, xs)
    pruned = prune.l1_unstructured(nn.Conv1d(2, 3, 3, padding=1, padding_mode="replicate"), "weight", 0.5)
    laws.check_alone(pruned, xs)


def test_spectral_norm_takes_one_step_of_its_iteration_a_call() -> None:
    for layer, steps in ((nn.Conv1d(2, 3, 3, padding=1), 5), (nn.Conv2d(2, 3, 3, padding=1), 7)):
        torch.manual_seed(0)
        normed, alone = (parametrizations.spectral_norm(copy.deepcopy(layer)) for _ in range(2))
        alone.load_state_dict(normed.state_dict())
        xs = sequences([steps, steps - 2], (2,) if isinstance(layer, nn.Conv1d) else (2, 20), torch.float32)
        with patch.object(convolution, "_LARGE", 0):
            outputs = encode(normed, xs)
        assert_close(outputs[0], run_alone(alone, xs[:1])[0][0])
        assert_close(normed.state_dict(), alone.state_dict())


@pytest.mark.parametrize(("channels", "calls"), [(128, 3), (8, 1)], ids=["large", "small"])
def test_large_sequences_are_run_one_by_one(channels: int, calls: int) -> None:
    layer = nn.MaxPool1d(3)
    xs = [torch.randn(steps, channels) for steps in (130, 0, 128, 140)]
    wanted = run_alone(layer, xs)[0]
    with patch.object(functional, "max_pool1d", wraps=functional.max_pool1d) as max_pool1d:
        assert_close(encode(layer, xs), wanted)
    assert max_pool1d.call_count == calls


@every_lengths
def test_a_compiled_layer(lengths: list[int]) -> None:
    layer, plain = (nn.Conv1d(2, 3, 3, 2, dtype=torch.float64) for _ in range(2))
    plain.load_state_dict(layer.state_dict())
    layer.compile(backend="eager")
    xs = sequences(lengths, (2,))
    assert_close(encode(layer, xs), run_alone(plain, xs)[0])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:The current implementation of the .* module")
def test_a_quantized_convolution_scales_each_sequence_by_itself() -> None:
    layer: nn.Module = quantized.Conv1d(2, 3, 3, padding=1)
    xs = [torch.randn(4, 2), 100 * torch.randn(4, 2), torch.randn(0, 2), torch.randn(7, 2)]
    wanted = [layer(x.T[None])[0].T if len(x) else torch.zeros(0, 3) for x in xs]
    assert_close(encode(layer, xs), wanted, rtol=0, atol=0)
    entered: list[nn.Module] = []
    layer.register_forward_pre_hook(lambda module, args: entered.append(module))
    assert_close(encode(layer, xs), wanted, rtol=0, atol=0)
    assert len(entered) == 1
    assert entered[0] is layer


def test_a_model_of_many_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConstantPad1d((2, 0), 0.0),
        nn.Conv1d(2, 4, 3),
        nn.ReLU(),
        nn.MaxPool1d(2, ceil_mode=True),
        nn.Conv1d(4, 3, 3, padding="same"),
        nn.GRU(3, 2),
        nn.AvgPool1d(2, 1),
    ).double()
    for lengths in ([9, 3, 6, 12], [8, 8]):
        laws.check_alone(model, sequences(lengths, (2,)))


def test_batches_of_one_structure_share_it() -> None:
    batch = SequenceBatch(torch.randn(12, 2), [5, 0, 7])
    assert encode(nn.Conv1d(2, 3, 3, padding=1), batch).structure is batch.structure
    assert encode(Causal(2, 3, 3), batch).structure is batch.structure
    once, again = (encode(nn.Conv1d(2, 3, 2), batch).structure for _ in range(2))
    assert once is again
    assert once.counts == (4, 0, 6)
    padded = [encode(nn.ZeroPad1d(sides), batch).structure for sides in (0, (1, -1), 1, 1)]
    assert padded[0] is padded[1] is batch.structure
    assert padded[2] is padded[3]


@pytest.mark.parametrize("counts", [[], [0, 0]], ids=["no sequence", "no steps"])
@pytest.mark.parametrize(
    ("layer", "channels"),
    [(nn.Conv1d(2, 3, 3), 3), (Causal(2, 3, 3), 3), (nn.MaxPool1d(2), 2), (Centred(2), 2), (nn.ZeroPad1d(1), 2)],
    ids=str,
)
def test_of_no_steps_there_are_outputs_that_gradients_flow_through(
    layer: nn.Module, channels: int, counts: list[int]
) -> None:
    batch = SequenceBatch(torch.zeros(0, 2, requires_grad=True), counts)
    result = encode(layer, batch)
    assert result.lengths == tuple(counts)
    assert result.feature_shape == (channels,)
    sources = [batch.values, *layer.parameters()]
    for gradient in torch.autograd.grad(result.values.sum(), sources):
        assert not gradient.any()
    assert encode(layer, []) == []


@every_lengths
def test_plans_made_in_inference_mode_are_of_use_in_training(lengths: list[int]) -> None:
    for layer in (nn.Conv1d(2, 3, 2, 2, 1), nn.AvgPool1d(3, 2, 1, count_include_pad=False), nn.ReflectionPad1d(1)):
        batch = SequenceBatch.from_sequences([x.detach() for x in sequences(lengths, (2,), torch.float32)])
        with torch.inference_mode():
            first = encode(layer, batch)
        with torch.no_grad():
            second = encode(layer, batch)
        assert not second.values.requires_grad
        values = batch.values.clone().requires_grad_()
        trained = encode(layer, batch.with_values(values))
        trained.values.sum().backward()
        assert_close([first.values.clone(), second.values], [trained.values] * 2)


@every_lengths
def test_the_default_device_does_not_matter(lengths: list[int]) -> None:
    xs = sequences(lengths, (2,))
    for layer in (
        nn.Conv1d(2, 3, 2, 3, 1, dtype=torch.float64),
        nn.Conv1d(2, 3, 2, dilation=3, padding=2, padding_mode="circular", dtype=torch.float64),
        nn.MaxPool1d(2, 1, 1),
        nn.AvgPool1d(3, 2, 1, count_include_pad=False),
        nn.ReplicationPad1d(2),
    ):
        wanted, _ = run_alone(layer, xs)
        with torch.device("meta"):
            found = encode(layer, xs)
        assert_close(found, wanted)


def test_nothing_is_computed_of_what_is_on_no_device() -> None:
    batch = SequenceBatch(torch.zeros(12, 2, device="meta"), [5, 0, 7])
    for layer in (nn.Conv1d(2, 3, 2, 2, device="meta"), nn.AvgPool1d(2, ceil_mode=True), nn.CircularPad1d(1)):
        assert encode(layer, batch).device.type == "meta"


def test_every_kind_gives_its_own_kind() -> None:
    layer = nn.Conv1d(2, 3, 2, 2, dtype=torch.float64)
    xs = sequences([5, 2, 7], (2,))
    batch = SequenceBatch.from_sequences(xs)
    outputs = encode(layer, xs)
    packed = encode(layer, batch.to_packed())
    assert isinstance(packed, PackedSequence)
    assert_close(SequenceBatch.from_packed(packed).to_sequences(), outputs)
    assert_close(list(encode(layer, batch.to_nested()).unbind()), outputs)
    assert_close(encode(layer, xs[0]), outputs[0])


def test_autocast_makes_up_for_the_dtype() -> None:
    with torch.autocast("cpu"):
        for lengths in ([3, 3], [4, 2]):
            xs = [torch.zeros(length, 2, dtype=torch.bfloat16) for length in lengths]
            assert encode(nn.Conv1d(2, 3, 2), xs)[0].dtype is torch.bfloat16


@pytest.mark.parametrize("lengths", [[4, 4], [5, 2]], ids=str)
def test_complex_values(lengths: list[int]) -> None:
    layer = nn.Conv1d(2, 3, 2, padding=1, dtype=torch.complex128)
    xs = sequences(lengths, (2,), torch.complex128)
    assert_close(encode(layer, xs), run_alone(layer, xs)[0])


@pytest.mark.parametrize("large", [0, 2**30])
@pytest.mark.parametrize("lengths", [[1, 1, 1], [1, 3, 0, 1]], ids=str)
def test_a_maximum_over_nothing_but_padding_has_no_gradient(
    lengths: list[int], large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch, which gives the same, writes the gradient of such a window to where it does not belong."""
    layer = nn.MaxPool1d(2, 1, 1, dilation=2)
    xs = sequences(lengths, (2,))
    outputs = encode(layer, xs)
    assert_close(outputs, run_alone(layer, [x.detach() for x in xs])[0])
    assert torch.equal(outputs[0], torch.full((1, 2), -float("inf"), dtype=torch.float64))
    gradients = torch.autograd.grad(torch.cat(outputs).sum(), xs, materialize_grads=True)
    assert [bool(gradient.any()) for gradient in gradients] == [length == 3 for length in lengths]


def test_a_step_that_no_window_reads_reaches_no_gradient() -> None:
    for stride, dilation, steps, unread in ((3, 1, 6, [2, 5]), (3, 2, 6, [1, 4]), (1, 3, 4, [1, 2]), (2, 1, 5, [4])):
        layer = nn.Conv1d(2, 3, 2, stride, dilation=dilation, dtype=torch.float64)
        xs = sequences([steps, 9, 4, steps], (2,))
        clean = torch.autograd.grad(torch.cat(encode(layer, xs)).sum(), [*layer.parameters()])
        with torch.no_grad():
            for x in (xs[0], xs[3]):
                x[unread] = float("nan")
        poisoned = torch.autograd.grad(torch.cat(encode(layer, xs)).sum(), [*layer.parameters()])
        assert_close(poisoned, clean)
