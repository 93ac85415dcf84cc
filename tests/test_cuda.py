"""The laws on a GPU, and that no call waits for it; they are skipped where there is none."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import laws
import pytest
import torch
import torch._dynamo
from hypothesis import strategies as st
from reference import REDUCTIONS
from strategies import for_all_lengths, make, recurrent_layers, sequences, state_for
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import SequenceBatch, encode, encode_with_state
from seqbatch.data import mean_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(scope="module", autouse=True)
def single_precision_as_it_is() -> Iterator[None]:
    """Keep the GPU from rounding products to fewer digits, which the oracle's shorter runs would do otherwise."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def on_gpu(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().cuda().requires_grad_(tensor.requires_grad) for tensor in tensors]


@for_all_lengths(layer=recurrent_layers(), stateful=st.booleans())
def test_alone(lengths: list[int], layer: Any, stateful: bool) -> None:
    state = state_for(layer, len(lengths)).to("cuda") if stateful else None
    laws.check_alone(layer.cuda(), on_gpu(sequences(lengths, (layer.input_size,))), state)


@for_all_lengths(layer=recurrent_layers())
def test_empty_and_order(lengths: list[int], layer: Any) -> None:
    xs = on_gpu(sequences(lengths, (layer.input_size,)))
    laws.check_order(layer.cuda(), xs, list(reversed(range(len(xs)))), state_for(layer, len(xs)).to("cuda"))
    if xs:
        laws.check_empty(layer, xs)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("lengths", [(3, 3), (5, 1, 7), (2, 0, 4)])
def test_nothing_waits_for_the_gpu(kind: Any, lengths: tuple[int, ...]) -> None:
    layer = kind(5, 3, num_layers=2, bidirectional=True).cuda()
    values = torch.randn(sum(lengths), 5, device="cuda", requires_grad=True)
    encode(layer, [values])  # what is made once, as the workspace of cuDNN, may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = SequenceBatch(values, lengths)
        outputs, state = encode_with_state(layer, batch)
        encode(layer, batch.to_sequences())
        encode_with_state(layer, outputs.map(lambda rows: rows[:, :5]), state)
        padded = outputs.to_padded(batch_first=True)
        SequenceBatch.from_padded(padded, lengths, batch_first=True).mean().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert values.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
@pytest.mark.parametrize("lengths", [(3, 3), (5, 2, 70), (2, 0, 4)])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_do_not_wait_for_the_gpu(name: str, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    how = REDUCTIONS[name]
    if not how.can_take(dtype):
        return
    values = make((sum(lengths), 3), dtype)
    wanted = how.of(SequenceBatch(values, lengths))
    given = values.cuda().requires_grad_(dtype.is_floating_point)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = how.of(SequenceBatch(given, lengths))
        total = (found.values if isinstance(found, SequenceBatch) else found).sum()
        if total.requires_grad:
            total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close([one.cpu() for one in found], list(wanted))
    assert given.grad is not None or not (how.is_differentiable and dtype.is_floating_point)


def test_expanding_rows_does_not_wait_for_the_gpu() -> None:
    rows = torch.randn(3, 2, device="cuda", requires_grad=True)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = SequenceBatch(torch.zeros(7, device="cuda"), [3, 0, 4]).expand(rows)
        found.values.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(found[2], rows[2].expand(4, 2))
    assert_close(rows.grad, torch.tensor([[3.0], [0.0], [4.0]], device="cuda").expand(3, 2))


def test_steps_do_not_wait_for_the_gpu() -> None:
    xs = sequences([3, 0, 4], (2,))
    values = torch.cat(xs).detach().cuda().requires_grad_()
    positions = torch.tensor([2, 2, 0, 3], device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = SequenceBatch(values, [3, 0, 4])
        taken = batch.take(SequenceBatch(positions, [2, 0, 2]))
        joined = SequenceBatch.concat_steps([batch[:, 1:], taken, batch.merge([1, 2])[:, ::2].split([2, 0, 2])])
        steps = batch[[2, 0], -1]
        (joined.values.square().sum() + steps.sum()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    wanted = [torch.cat([x[1:], x[places], x[::2]]) for x, places in zip(xs, ([2, 2], [], [0, 3]), strict=True)]
    assert_close([one.cpu() for one in joined.to_sequences()], wanted)
    assert_close(steps.cpu(), torch.stack([xs[2][-1], xs[0][-1]]))
    (sum(one.square().sum() for one in wanted) + xs[2][-1].sum() + xs[0][-1].sum()).backward()
    assert values.grad is not None
    assert_close(values.grad.cpu(), torch.cat([x.grad for x in xs if x.grad is not None and len(x)]))


WRONG_POSITION = """
import torch
from seqbatch import SequenceBatch
batch = SequenceBatch(torch.zeros(5, device="cuda"), [3, 2])
batch.take(SequenceBatch(torch.tensor([3, 0], device="cuda"), [1, 1]))
torch.cuda.synchronize()
"""


def test_a_wrong_position_stops_a_program_on_the_gpu() -> None:
    done = subprocess.run([sys.executable, "-c", WRONG_POSITION], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "device-side assert" in done.stderr


def test_the_loss_does_not_wait_for_the_gpu() -> None:
    losses = torch.rand(5, device="cuda", requires_grad=True)
    count = torch.tensor(2.0, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found, counted = mean_loss(losses), mean_loss(losses, count=count)
        counted_on_host = mean_loss(losses, count=torch.tensor(2))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(found, losses.mean())
    assert_close(counted, losses.sum() / 2)
    assert_close(counted_on_host, losses.sum() / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_autocast_gives_what_it_gives_one_sequence_alone(kind: Any, dtype: torch.dtype) -> None:
    layer = kind(5, 3, num_layers=2, bidirectional=True).cuda()
    xs = [torch.randn(length, 5, device="cuda") for length in (4, 0, 2)]
    with torch.autocast("cuda", dtype):
        outputs, alone = encode(layer, xs), [layer(x)[0] for x in xs if len(x)]
    assert {output.dtype for output in outputs} == {alone[0].dtype}
    for found, wanted in zip([output for output in outputs if len(output)], alone, strict=True):
        assert_close(found, wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(16, 32, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(16, 32, 5, padding=2)],
    ids=str,
)
def test_what_stands_in_a_neighbour_reaches_no_window(layer: nn.Module) -> None:
    """A convolution by a fast transform would mix the rows of a tile, and so what is near a border."""
    xs = [torch.randn(length, 16, *[40] * isinstance(layer, nn.Conv2d), device="cuda") for length in (9, 4, 17)]
    clean = encode(layer.cuda(), xs)
    xs[1] = torch.full_like(xs[1], float("nan"))
    found = encode(layer, xs)
    assert_close([found[0], found[2]], [clean[0], clean[2]])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.graphs
def test_a_graph_on_the_gpu(kind: Any) -> None:
    layer = kind(5, 3, num_layers=2, bidirectional=True).cuda()

    def call(batch: SequenceBatch) -> tuple[SequenceBatch, Tensor]:
        outputs, state = encode_with_state(layer, batch)
        return outputs, outputs.mean() + state.last()

    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        graph = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
        for lengths in ((4, 2), (2, 0, 4), (5, 1, 7, 3)):
            batch = SequenceBatch(torch.randn(sum(lengths), 5, device="cuda"), lengths)
            (outputs, last), (wanted, end) = graph(batch), call(batch)
            assert_close([outputs.values, last], [wanted.values, end])
            weights = [*layer.parameters()]
            found = torch.autograd.grad(outputs.values.square().sum(), weights)
            assert_close(found, torch.autograd.grad(wanted.values.square().sum(), weights))
    torch._dynamo.reset()
