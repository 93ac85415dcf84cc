"""What is computed from lengths: on the host, once, without waiting for the device, and of use in every mode."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import REDUCTIONS
from strategies import make
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.testing import assert_close

from seqbatch import ContainerState, LSTMState, RNNState, SequenceBatch, _kernels, encode, encode_with_state, scan
from seqbatch._kernels import row_copies
from seqbatch._structure.sequence_lengths import MAX_CACHED_PLANS, Lengths

LENGTHS = [3, 0, 2]
HOST_MASK = SequenceBatch(torch.zeros(5), LENGTHS).mask(batch_first=True)


def encoded(make_layer: Callable[[torch.device], nn.Module]) -> Callable[[SequenceBatch], Any]:
    """Make a call of encode with a layer on the device of the batch."""

    def call(batch: SequenceBatch) -> Any:
        torch.manual_seed(0)
        return encode(make_layer(batch.device), batch)

    return call


def from_state_to_state(batch: SequenceBatch) -> Any:
    torch.manual_seed(0)
    lstm = nn.LSTM(2, 3, num_layers=2, bidirectional=True, device=batch.device)
    _, state = encode_with_state(lstm, batch)
    outputs, final = encode_with_state(lstm, batch, state.select([2, 0, 1]).reset([True, False, False]))
    return outputs, final, final[1], final.last()


def sequential_from_state_to_state(batch: SequenceBatch) -> Any:
    torch.manual_seed(0)
    device = batch.device
    model = nn.Sequential(nn.Linear(2, 3, device=device), nn.GRU(3, 2, device=device), nn.ReLU(inplace=True))
    return encode_with_state(model, batch, encode_with_state(model, batch)[1])


def scan_with_a_memory(batch: SequenceBatch) -> Any:
    def step(inputs: Tensor, total: Tensor, memory: SequenceBatch) -> tuple[tuple[Tensor, SequenceBatch], Tensor]:
        total = total + inputs + memory.softmax().sum() + memory.segment_ids.sum() + memory.positions.sum()
        return (total, memory), total

    start = torch.zeros(3, 2, device=batch.device)
    (sums, of_steps), final = scan(step, batch, start, constants=batch[[2, 0, 1]], reverse=True)
    return sums, of_steps, final


# Functions that build a batch may synchronize with the device, to read there: SequenceBatch and from_padded the
# lengths, from_offsets and from_nested the offsets, from_mask the mask, from_packed the order. So may an index that
# is a Tensor there, and `in`, `count` and `index`, which compare values. Here all of that is on the host.
CALLS: dict[str, Callable[[SequenceBatch], Any]] = {
    "from_sequences": lambda batch: SequenceBatch.from_sequences(batch.to_sequences()),
    "to_padded and from_padded": lambda batch: SequenceBatch.from_padded(
        batch.to_padded(batch_first=True, padding_side="left"), LENGTHS, batch_first=True, padding_side="left"
    ),
    "to_padded, time first": lambda batch: batch.to_padded(batch_first=False, padding_value=-1.0, total_length=4),
    "mask": lambda batch: batch.mask(batch_first=False, padding_side="left"),
    "from_mask": lambda batch: SequenceBatch.from_mask(
        batch.to_padded(batch_first=True), HOST_MASK.cpu(), batch_first=True
    ),
    "to_packed": lambda batch: batch[[2, 0]].to_packed(),
    "to_nested": lambda batch: batch.to_nested(),
    "from_offsets": lambda batch: SequenceBatch.from_offsets(batch.values, [0, 3, 3, 5]),
    "offsets": lambda batch: batch.offsets,
    "segment_ids": lambda batch: batch.segment_ids,
    "positions": lambda batch: batch.positions,
    "sum of long sequences": lambda batch: SequenceBatch(batch.values.repeat(40, 1), [120, 80]).sum(),
    "cumsum of long sequences": lambda batch: SequenceBatch(batch.values.repeat(40, 1), [120, 80]).cumsum(),
    **{name: how.of for name, how in REDUCTIONS.items()},
    "expand": lambda batch: batch.expand(batch.values[:3]),
    "map": lambda batch: batch.map(torch.add, batch.clone()),
    "concat": lambda batch: SequenceBatch.concat([batch, batch]),
    "one index": lambda batch: batch[-1],
    "list of indices": lambda batch: batch[[2, 0, 2]],
    "list of bools": lambda batch: batch[[True, False, True]],
    "slice": lambda batch: batch[::-1],
    "index on the host": lambda batch: batch[torch.tensor([2, 1], device="cpu")],
    "LSTM": encoded(lambda device: nn.LSTM(2, 3, num_layers=2, bidirectional=True, device=device)),
    "LSTM of a list": lambda batch: encoded(lambda device: nn.LSTM(2, 3, device=device))(batch[[0, 2]]).to_sequences(),
    "GRU": encoded(lambda device: nn.GRU(2, 3, device=device)),
    "RNN of nothing": lambda batch: encoded(lambda device: nn.RNN(2, 3, device=device))(batch[[1, 1]]),
    "Linear": encoded(lambda device: nn.Linear(2, 3, device=device)),
    "LayerNorm": encoded(lambda device: nn.LayerNorm(2, device=device)),
    "LSTM from state to state": from_state_to_state,
    "scan with a memory": scan_with_a_memory,
    "Sequential from state to state": sequential_from_state_to_state,
}
every_call = pytest.mark.parametrize("name", CALLS)


def tensors(result: Any) -> list[Tensor]:
    """Return all tensors in the result of a call."""
    if isinstance(result, SequenceBatch):
        return [result.values, result.offsets]
    if getattr(result, "is_nested", False):
        return [result.values(), result.offsets()]
    if isinstance(result, PackedSequence):
        return [part for part in result if part is not None]
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, RNNState):
        return [result.hidden]
    if isinstance(result, LSTMState):
        return [result.hidden, result.cell]
    if result is None:
        return []
    return [
        tensor for part in (result.states if isinstance(result, ContainerState) else result) for tensor in tensors(part)
    ]


def values() -> Tensor:
    return make((5, 2), torch.float32)


def kinds(found: list[Tensor]) -> list[Any]:
    return [(tensor.shape, tensor.dtype) for tensor in found]


@every_call
def test_no_call_waits_for_the_device(name: str) -> None:
    # A tensor on the meta device has no values, so whatever would wait for them raises.
    batch = SequenceBatch(values().to("meta"), LENGTHS)
    found = tensors(CALLS[name](batch))
    assert kinds(found) == kinds(tensors(CALLS[name](SequenceBatch(values(), LENGTHS))))
    assert found[0].is_meta


@pytest.mark.parametrize(
    "wait", [Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.nonzero, bool, lambda x: torch.zeros(9).split(x.tolist())]
)
def test_waiting_for_the_meta_device_raises(wait: Callable[[Tensor], Any]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        wait(torch.zeros(1, device="meta"))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        SequenceBatch(values(), torch.tensor(LENGTHS, device="meta"))


@every_call
def test_another_default_device_changes_nothing(name: str) -> None:
    wanted = tensors(CALLS[name](SequenceBatch(values(), LENGTHS)))
    batch = SequenceBatch(values(), LENGTHS)
    with torch.device("meta"):
        found = tensors(CALLS[name](batch))
    assert_close(found, wanted, rtol=0, atol=0)


@every_call
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_structure_first_computed_without_gradients_serves_training(name: str, mode: Callable[[], Any]) -> None:
    batch, fresh = SequenceBatch(values(), LENGTHS), SequenceBatch(values(), LENGTHS)
    with mode():
        kept = tensors(CALLS[name](batch))
    results = []
    for one in (batch, fresh):
        leaf = values().requires_grad_()
        parts = tensors(CALLS[name](one.with_values(leaf)))
        losses = [part.sin().sum() for part in parts if part.requires_grad]
        gradients = torch.autograd.grad(sum(losses, torch.zeros(())), leaf, allow_unused=True) if losses else ()
        results.append([*parts, *(gradient for gradient in gradients if gradient is not None)])
    assert_close(results[0], results[1], rtol=0, atol=0)
    assert_close(kept, [part.detach() for part in results[0][: len(kept)]])


def test_a_batch_unpacked_in_inference_mode_serves_training() -> None:
    with torch.inference_mode():
        packed = pack_sequence(list(values().split([2, 3])), enforce_sorted=False)
        batch = SequenceBatch.from_packed(packed)
    gru = nn.GRU(2, 3)
    leaf = values().requires_grad_()
    state = RNNState(torch.zeros(1, 1, 2, 3, requires_grad=True))
    outputs, _ = encode_with_state(gru, batch.with_values(leaf), state)
    outputs.values.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.any()


def test_nested_tensors_in_inference_mode() -> None:
    nested = SequenceBatch(values(), LENGTHS).to_nested()
    with torch.inference_mode():
        for given in (values(), values().clone()):
            batch = SequenceBatch(given, LENGTHS)
            assert_close(SequenceBatch.from_nested(batch.to_nested()).values, values(), rtol=0, atol=0)
        assert_close(SequenceBatch.from_nested(nested).values, values(), rtol=0, atol=0)
        assert_close(SequenceBatch.from_nested(encode(nn.Tanh(), nested)).values, values().tanh())


def test_no_more_than_some_plans_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, "IS_THERE", False)  # which need no plans
    batch = SequenceBatch(values(), LENGTHS)
    wanted = batch.to_padded(batch_first=True)
    for extra in range(3 * MAX_CACHED_PLANS):
        padded = batch.to_padded(batch_first=True, total_length=3 + extra)
        assert_close(padded[:, :3], wanted)
        assert not padded[:, 3:].any()
        assert len(batch.structure._plans) <= MAX_CACHED_PLANS
    assert len(batch.structure._plans) == MAX_CACHED_PLANS
    assert_close(batch.to_padded(batch_first=True), wanted)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("known", [False, True])
def test_a_prefix_has_views_of_what_is_known(device: str, known: bool) -> None:
    batch = SequenceBatch(values().to(device), [1, 0, 2, 2])
    names = ("offsets", "segment_ids", "positions")
    if known:
        for name in names:
            getattr(batch, name)
    for number in range(5):
        prefix, wanted = batch.structure.prefix(number), Lengths((1, 0, 2, 2)[:number])
        assert prefix.counts == wanted.counts
        for name in names:
            assert_close(getattr(prefix, name), getattr(wanted, name))
            on_device, whole = (getattr(one.on(batch.device), name) for one in (prefix, batch.structure))
            assert on_device.device == batch.device
            assert on_device.shape == getattr(wanted, name).shape
            if known or name == "offsets":
                assert getattr(prefix, name).data_ptr() == getattr(batch.structure, name).data_ptr() or not number
            assert whole.shape == getattr(batch.structure, name).shape
    if known and device == "meta":
        assert len(batch.structure.prefix(2)._on_device) == 3


def test_fake_tensors() -> None:
    with FakeTensorMode():
        batch = SequenceBatch(torch.zeros(5, 2), LENGTHS)
        assert batch.mean().shape == (3, 2)
        assert batch.map(torch.relu).reverse().to_padded(batch_first=True).shape == (3, 3, 2)
        for layer in (nn.LSTM(2, 3, bidirectional=True), nn.GRU(2, 6)):
            assert encode(layer, batch).values.shape == (5, 6)


def test_copies_on_a_device_are_kept_unless_a_transform_runs() -> None:
    batch = SequenceBatch(values().to("meta"), LENGTHS)
    torch.func.grad(lambda x: x * batch.offsets.shape[0])(torch.ones(()))
    assert not batch.structure._on_device
    assert batch.offsets.is_meta
    assert len(batch.structure._on_device) == 1


@pytest.mark.parametrize("counts", [LENGTHS, [3, 2], [2, 2]])
def test_a_structure_is_freed_with_its_batch(counts: list[int]) -> None:
    gc.disable()  # which would free what refers to itself, only later
    try:
        batch = SequenceBatch(torch.zeros(sum(counts), 2), counts)
        encoded = encode_with_state(nn.LSTM(2, 3, bidirectional=True), batch)
        gone = weakref.ref(batch.structure)
        del batch, encoded
        assert gone() is None
    finally:
        gc.enable()


def test_plans_are_made_once_and_shared() -> None:
    batch = SequenceBatch(values(), LENGTHS)
    batch.reverse()
    (plan,) = batch.structure._plans.values()
    batch.clone().map(torch.neg).reverse()
    assert [*batch.structure._plans.values()] == [plan]


def test_lengths_are_copied_before_they_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may write to the caller's Tensor meanwhile."""
    lengths, measure = torch.tensor([3, 2]), row_copies.measure_lengths

    def measure_and_write(tensor: Tensor) -> list[int] | None:
        found = measure(tensor)
        lengths.fill_(1_000_000)
        return found

    monkeypatch.setattr(row_copies, "measure_lengths", measure_and_write)
    batch = SequenceBatch(torch.arange(5), lengths)
    assert batch.lengths == (3, 2)
    assert batch.to_packed().data.tolist() == [0, 3, 1, 4, 2]
