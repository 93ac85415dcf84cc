"""How cells run: by an engine, or called step by step if they are not stock, or if an engine rounds differently."""

from typing import Any
from unittest.mock import patch

import attrs
import laws
import pytest
import torch
from reference import run_alone
from strategies import sequences
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

from seqbatch import SequenceBatch, _kernels, encode, encode_with_state
from seqbatch._encode import registry

CELLS: list[Any] = [nn.LSTMCell, nn.GRUCell, nn.RNNCell]
every_kind = pytest.mark.parametrize("kind", CELLS)


def changed(cell: nn.RNNCellBase, how: str) -> nn.RNNCellBase:
    """Change a cell so that it must be called as itself."""
    if how == "forward set on the cell":
        cell.forward = cell.forward  # as libraries that wrap a layer do
    if how == "weight norm":
        parametrizations.weight_norm(cell, "weight_hh")
    if how == "pruned":
        prune.l1_unstructured(cell, "weight_hh", 0.5)
    if how == "hook":
        cell.register_forward_hook(lambda *arguments: None)
    if how == "backward hook":
        cell.register_full_backward_hook(lambda *arguments: None)
    if how == "backward pre-hook":
        cell.register_full_backward_pre_hook(lambda *arguments: None)
    return cell


@every_kind
@pytest.mark.parametrize(
    "how", ["forward set on the cell", "weight norm", "pruned", "hook", "backward hook", "backward pre-hook"]
)
def test_a_cell_that_is_more_than_its_weights_is_called(how: str, kind: Any) -> None:
    cell = changed(kind(2, 3, dtype=torch.float64), how)
    xs = sequences([3, 0, 5, 1], (2,))
    laws.check_alone(cell, xs)
    called = patch.object(torch._VF, cell_function(cell), side_effect=RuntimeError("called"))
    with called, pytest.raises(RuntimeError, match="called"):
        encode(cell, xs)


def cell_function(cell: nn.RNNCellBase) -> str:
    names = {nn.LSTMCell: "lstm_cell", nn.GRUCell: "gru_cell", nn.RNNCell: "rnn_tanh_cell"}
    return next(name for kind, name in names.items() if isinstance(cell, kind))


@every_kind
def test_a_stock_cell_runs_as_a_layer(kind: Any) -> None:
    cell = kind(2, 3)
    with patch.object(torch._VF, cell_function(cell), side_effect=AssertionError("called")):
        encode(cell, sequences([3, 0, 5, 1], (2,), torch.float32))
        if _kernels.IS_THERE:
            encode(cell, sequences([1, 0, 1], (2,), torch.float32))
        with (
            patch.object(_kernels, "IS_THERE", False),
            pytest.raises(
                AssertionError, match="called"
            ),  # because without kernels, calling it is fastest for few steps
        ):
            encode(cell, sequences([1, 0, 1], (2,), torch.float32))


def test_hooks_run_at_each_step_on_the_sequences_that_have_it() -> None:
    cell = nn.GRUCell(2, 3)
    seen: list[int] = []

    def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append(len(args[0]))
        return 2 * output

    cell.register_forward_hook(double)
    xs = sequences([2, 0, 4, 1], (2,), torch.float32)
    laws.check_alone(cell, xs)
    seen.clear()
    encode(cell, xs)
    assert seen == [3, 2, 1, 1]


def test_hooks_of_all_modules_run() -> None:
    cell, calls = nn.LSTMCell(2, 3), []
    handle = register_module_forward_hook(lambda module, args, output: calls.append(module))
    try:
        encode(cell, [torch.zeros(3, 2), torch.zeros(1, 2)])
    finally:
        handle.remove()
    assert len(calls) == 3
    assert all(module is cell for module in calls)


class LearnedStart(nn.GRUCell):
    """A cell that begins with a state that it has learned."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.start = nn.Parameter(torch.ones(self.hidden_size))

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return super().forward(input, self.start.expand(*input.shape[:-1], -1) if hx is None else hx)


def test_a_cell_may_start_from_a_state_of_its_own() -> None:
    laws.check_alone(LearnedStart(2, 3), sequences([2, 4, 1], (2,), torch.float32))


def test_a_custom_cell_may_take_other_features() -> None:
    class Halved(nn.RNNCell):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
            return super().forward(input[..., ::2], hx)

    laws.check_alone(Halved(2, 3), sequences([2, 4, 1], (4,), torch.float32))


@every_kind
def test_a_cell_without_features_or_units(kind: Any) -> None:
    for sizes in ((0, 3), (2, 0)):
        laws.check_alone(kind(*sizes), sequences([2, 0, 3], (sizes[0],), torch.float32))


@every_kind
def test_half_precision(kind: Any) -> None:
    cell, xs = kind(2, 3, dtype=torch.bfloat16), sequences([2, 0, 3], (2,), torch.bfloat16)
    (outputs, state), (alone, end) = encode_with_state(cell, xs), run_alone(cell, xs)
    assert_close([*outputs, *laws.tensors_of(state)], [*alone, *end])


@every_kind
def test_autocast(kind: Any) -> None:
    cell = kind(2, 3)
    xs = sequences([2, 0, 3], (2,), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, wanted = encode(cell, xs), run_alone(cell, xs)[0]
    assert_close([found[0], found[2]], [wanted[0], wanted[2]], rtol=1e-2, atol=1e-2)


@every_kind
def test_other_devices(kind: Any) -> None:
    outputs, state = encode_with_state(kind(2, 3, device="meta"), [torch.zeros(n, 2, device="meta") for n in (3, 0, 4)])
    assert [output.shape for output in outputs] == [(3, 3), (0, 3), (4, 3)]
    assert state.hidden.shape == (1, 1, 3, 3)


@every_kind
def test_weights_may_be_replaced(kind: Any) -> None:
    cell, x = kind(2, 3), torch.randn(4, 2)
    encode(cell, [x])
    cell.weight_hh = nn.Parameter(torch.zeros_like(cell.weight_hh))
    laws.check_alone(cell, [x.requires_grad_()])
    frozen = kind(2, 3).requires_grad_(False)
    assert not encode(frozen, [x.detach()])[0].requires_grad


@every_kind
@pytest.mark.parametrize("steps", [4, 9])
def test_gradients_of_functions(kind: Any, steps: int) -> None:
    cell, xs = kind(2, 3), [torch.randn(steps, 2), torch.randn(2, 2)]

    class Encoded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self) -> Tensor:
            return torch.cat(encode(self.cell, xs)).sum()

    def loss(weights: Any) -> Tensor:
        total: Tensor = torch.func.functional_call(Encoded(), weights, ())
        return total

    found = torch.func.grad(loss)({f"cell.{name}": weight for name, weight in cell.named_parameters()})
    torch.cat(run_alone(cell, xs)[0]).sum().backward()
    for name, weight in cell.named_parameters():
        assert_close(found[f"cell.{name}"], weight.grad)


def test_a_parametrization_is_computed_at_each_step() -> None:
    class Counted(nn.Module):
        calls = 0

        def forward(self, weight: Tensor) -> Tensor:
            Counted.calls += 1
            return weight

    cell = nn.GRUCell(2, 3)
    parametrize.register_parametrization(cell, "weight_hh", Counted())
    Counted.calls = 0
    encode(cell, [torch.zeros(3, 2), torch.zeros(1, 2)])
    assert Counted.calls == 3


def test_a_cell_with_weights_of_a_library_is_called() -> None:
    class Sharded(Tensor):
        pass

    cell = nn.GRUCell(2, 3)
    cell.weight_hh = nn.Parameter(cell.weight_hh.detach().as_subclass(Sharded))
    called = patch.object(torch._VF, "gru_cell", side_effect=RuntimeError("called"))
    with called, pytest.raises(RuntimeError, match="called"):
        encode(cell, [torch.zeros(9, 2)])


class Projected(nn.LSTMCell):
    """A cell whose hidden state has another size than its cell state."""

    proj_size = 1

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        start = [input.new_zeros(*input.shape[:-1], size) for size in (1, self.hidden_size)] if hx is None else hx
        hidden, cell = super().forward(input, (start[0].expand(*start[0].shape[:-1], self.hidden_size), start[1]))
        return hidden.mean(-1, keepdim=True), cell


def test_a_cell_may_have_a_hidden_state_of_another_size() -> None:
    cell, xs = Projected(2, 3), sequences([2, 0, 4], (2,), torch.float32)
    outputs, state = encode_with_state(cell, xs)
    assert [output.shape for output in outputs] == [(2, 1), (0, 1), (4, 1)]
    assert (state.hidden.shape, state.cell.shape) == ((1, 1, 3, 1), (1, 1, 3, 3))
    first, middle = encode_with_state(cell, [x[:1] for x in xs])
    assert_close(encode_with_state(cell, [x[1:] for x in xs], middle)[1].cell, state.cell)
    assert_close(first[0], outputs[0][:1])


@every_kind
def test_a_cell_whose_weights_the_kernels_do_not_read(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, xs = kind(2, 3, dtype=torch.float64), sequences([9, 7, 1], (2,))
    wanted = encode(cell, xs)
    monkeypatch.setattr("seqbatch._engines.can_run_cell", lambda *arguments: False)
    assert_close(encode(cell, xs), wanted)


@every_kind
def test_transforms_run_the_cell_itself(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("not the cell itself")

    cell, xs = kind(2, 3, dtype=torch.float64), sequences([9, 7], (2,))
    for name in ("choose", "run_cell"):
        monkeypatch.setattr(f"seqbatch._engines.{name}", refuse)
    encoder = attrs.evolve(registry.find_encoder(cell), shortcut=None)
    monkeypatch.setitem(registry._entries, kind, encoder)
    with pytest.raises(AssertionError, match="not the cell itself"):
        encode(cell, xs)

    def loss(values: Tensor) -> Tensor:
        return encode(cell, SequenceBatch(values, [9, 7])).values.cos().sum()

    found = torch.func.grad(loss)(torch.cat(xs).detach())
    wanted = torch.autograd.grad(torch.cat(run_alone(cell, xs)[0]).cos().sum(), xs)
    assert_close(found, torch.cat(wanted))
