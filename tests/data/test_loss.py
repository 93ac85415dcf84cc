"""mean_loss in one process, with torch.distributed and without; tests/helpers/ranks has two."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, distributed
from torch.testing import assert_close

from seqbatch import SeqbatchTypeError, SeqbatchValueError, SequenceBatch
from seqbatch.data import mean_loss


@pytest.fixture(params=[False, True])
def group_of_one(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test without torch.distributed, and where it is initialized for one process."""
    if not request.param:
        yield
        return
    distributed.init_process_group("gloo", init_method="tcp://localhost:0", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_process_has_the_plain_mean(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    losses = torch.rand(shape, dtype=dtype, requires_grad=True)
    wide = losses.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    found, wanted = mean_loss(losses), wide.mean()
    assert_close(found, wanted)
    found.backward()
    wanted.backward()
    assert_close(losses.grad, wide.grad, check_dtype=False, rtol=1e-2 if dtype is torch.bfloat16 else 1e-3, atol=0)


def test_half_precision_does_not_overflow() -> None:
    assert_close(mean_loss(torch.full((1000,), 100, dtype=torch.float16)), torch.tensor(100.0))


@given(st.lists(st.integers(0, 5)))
def test_a_batch_is_averaged_over_its_steps(lengths: list[int]) -> None:
    batch = SequenceBatch(torch.rand(sum(lengths), 2), lengths)
    wanted = batch.values.mean() if sum(lengths) else torch.tensor(0.0)
    assert_close(mean_loss(batch), wanted)


@pytest.mark.usefixtures("group_of_one")
def test_no_item_gives_zero_and_zeros() -> None:
    values = torch.rand(0, 2)
    weight = torch.rand(2, requires_grad=True)
    loss = mean_loss(values @ weight)
    loss.backward()
    assert loss.item() == 0
    assert_close(weight.grad, torch.zeros(2))
    masked = torch.zeros(3, requires_grad=True)
    mean_loss(masked, count=0).backward()
    assert masked.grad is not None
    assert masked.grad.isfinite().all()


@pytest.mark.parametrize("count", [4, torch.tensor(4), torch.tensor(4.0), torch.tensor(4.0, requires_grad=True)])
@pytest.mark.parametrize("losses", [torch.tensor(6.0), torch.tensor([1.0, 5.0])])
def test_the_count_may_be_given(count: Any, losses: Tensor) -> None:
    found = mean_loss(losses, count=count)
    assert_close(found, torch.tensor(1.5))
    assert not found.requires_grad
    assert_close(torch.as_tensor(count).item(), 4, check_dtype=False)


@pytest.mark.usefixtures("group_of_one")
def test_the_count_may_be_a_sum_of_weights() -> None:
    assert_close(mean_loss(torch.tensor([1.0]), count=torch.tensor(0.5)), torch.tensor(2.0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint64, torch.float16, torch.float8_e5m2])
def test_the_count_may_be_of_any_floating_or_integer_dtype(dtype: torch.dtype) -> None:
    assert_close(mean_loss(torch.tensor([1.0, 5.0]), count=torch.tensor(4).to(dtype)), torch.tensor(1.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("device", "wanted"), [("cpu", torch.float64), ("meta", torch.float32)])
def test_the_count_is_summed_in_a_dtype_of_the_device(
    dtype: torch.dtype, device: str, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the losses are of, for others may be of another; tests/helpers/ranks has such processes."""
    summed: list[torch.dtype] = []
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda group: 1)
    monkeypatch.setattr(distributed, "all_reduce", lambda total, group: summed.append(total.dtype))
    losses = torch.ones(2, dtype=dtype, device=device)
    for count in (None, 2, torch.tensor(2, device=device), torch.tensor(2.0, device=device)):
        assert mean_loss(losses, count=count).dtype is torch.promote_types(dtype, torch.float32)
    assert summed == [wanted] * 4


@pytest.mark.parametrize("count", [torch.tensor(2.0), 2, None])
@pytest.mark.graphs
def test_a_graph_and_a_transform(count: Any) -> None:
    losses = torch.rand(3, 4)
    graph = torch.compile(lambda x, count: mean_loss(x, count=count), fullgraph=True, backend="eager")
    assert_close(graph(losses, count), mean_loss(losses, count=count))
    if isinstance(count, Tensor):
        found = torch.vmap(lambda x, count: mean_loss(x, count=count))(losses, count.expand(3))
        assert_close(found, losses.sum(1) / 2)


@pytest.mark.parametrize(
    ("losses", "count", "kind", "said"),
    [
        ([1.0], None, SeqbatchTypeError, r"`losses` must be a Tensor; got a list\. Make it one by torch\.as_tensor\."),
        (torch.ones(2, dtype=torch.int64), None, SeqbatchTypeError, r"must be of a floating dtype; got torch\.int64"),
        (torch.ones(2, dtype=torch.complex64), None, SeqbatchTypeError, r"a floating dtype; got torch\.complex64"),
        (
            torch.tensor(1.0),
            None,
            SeqbatchValueError,
            r"^`losses` must have a dimension, the loss of each item, or be given with their count; "
            r'got a Tensor of no dimension\. Pass reduction="none" to the loss function\.$',
        ),
        (torch.ones(2), -1, SeqbatchValueError, r"^`count` must be at least 0, and less than 2\*\*63; got -1\.$"),
        (torch.ones(2), 2**63, SeqbatchValueError, rf"^`count` must be at least 0, and less than .*; got {2**63}\.$"),
        (torch.ones(2), 1.5, SeqbatchTypeError, r"^`count` must be an integer; got 1\.5\.$"),
        (torch.ones(2), torch.tensor(-2.0), SeqbatchValueError, r"^`count` must be at least 0; got -2\.0\.$"),
        (torch.ones(2), torch.tensor(True), SeqbatchTypeError, r"be of a floating or integer dtype; got torch\.bool\."),
        (torch.ones(2), torch.tensor(1j), SeqbatchTypeError, r"a floating or integer dtype; got torch\.complex64\."),
        (torch.ones(2), torch.ones(2), SeqbatchValueError, r"^`count` must have no dimension; got shape \(2,\)\.$"),
        (
            torch.ones(2),
            torch.tensor(2.0).to_sparse(),
            SeqbatchTypeError,
            "^`count` must be a dense Tensor; got layout",
        ),
    ],
)
def test_errors(losses: Any, count: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        mean_loss(losses, count=count)


def test_a_process_outside_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches torch to report such a process; tests/helpers/ranks has real ones."""
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda group: -1)
    with pytest.raises(SeqbatchValueError, match=r"^`group` must hold this process; got one of others\.$"):
        mean_loss(torch.ones(2))
