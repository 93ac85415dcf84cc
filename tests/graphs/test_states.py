"""States in graphs: select and reset by every kind of index, also by Tensors, whose numbers a graph does not know."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_models import allow_recurrent_layers as allow_recurrent_layers
from graph_models import compiled, graphs, tensors
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch.export import Dim, export
from torch.testing import assert_close

from seqbatch import ContainerState, LSTMState, RNNState, SeqbatchIndexError, SeqbatchTypeError

BATCH, NUMBER = Dim("batch", min=0), Dim("number", min=0)
STATES: dict[str, Callable[[int], Any]] = {
    "RNNState": lambda size: RNNState(torch.randn(2, 1, size, 3)),
    "LSTMState": lambda size: LSTMState(torch.randn(1, 2, size, 3), torch.randn(1, 2, size, 4)),
}
METHODS: dict[str, Callable[[Any, Any], Any]] = {
    "select": lambda state, index: state.select(index),
    "reset": lambda state, index: state.reset(index),
    "brackets": lambda state, index: state[index],
    "in a container": lambda state, index: ContainerState([None, ContainerState([state])]).select(index).states[1],
}
every_method = pytest.mark.parametrize("method", METHODS)


class Indexed(nn.Module):
    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def forward(self, state: Any, index: Any) -> Any:
        return tensors(METHODS[self.method](state, index))


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        *((method, kind) for method in ("select", "reset") for kind in STATES),
        # Both select, with the same function.
        ("brackets", "RNNState"),
        ("in a container", "LSTMState"),
    ],
)
def test_an_index_that_is_a_tensor(method: str, kind: str) -> None:
    model = Indexed(method)
    for dtype in (torch.bool, torch.int64, torch.int16):
        torch._dynamo.reset()
        graph = compiled(model)
        pairs = [([1, 0, -4], 4), ([-1, 2, 2, 0], 3), ([0, 1, -1, 1, 0], 5)]
        if dtype is torch.bool:
            pairs = [([1, 0, 1, 0], 4), ([0, 0, 0], 3), ([1, 1, 1, 1, 1], 5), ([0], 1)]
        example = STATES[kind](4), torch.tensor(pairs[0][0], dtype=dtype)
        sizes = [{2: BATCH}, {2: BATCH}][: len(tensors(example[0]))], {0: BATCH if dtype is torch.bool else NUMBER}
        program = export(model, example, dynamic_shapes=sizes).module()
        for numbers, size in pairs:
            state, index = STATES[kind](size), torch.tensor(numbers, dtype=dtype)
            for made in (graph, program):
                assert_close(made(state, index), model(state, index))


def test_one_graph_serves_all_numbers() -> None:
    graph = compiled(Indexed("reset"))
    for size in (4, 2, 7):
        state = STATES["RNNState"](size)
        for index in (torch.arange(size) < 2, torch.arange(size) > 1):
            assert_close(graph(state, index), Indexed("reset")(state, index))
    assert graphs() == 1


@pytest.mark.parametrize("method", ["select", "reset"])
@pytest.mark.parametrize("index", [torch.tensor([True, False, True]), torch.tensor([2, 0])], ids=str)
def test_gradients(method: str, index: Tensor) -> None:
    hidden = torch.randn(1, 1, 3, 2, requires_grad=True)

    def call(hidden: Tensor, index: Tensor) -> Tensor:
        return torch.stack(tensors(METHODS[method](RNNState(hidden), index))).sin().sum()

    found, wanted = (torch.autograd.grad(one(hidden, index), hidden) for one in (compiled(call), call))
    assert_close(found, wanted)


@every_method
@pytest.mark.parametrize("index", [1, -1, [2, 0, -1], [True, False, True], slice(1, None), torch.tensor(-2)], ids=str)
def test_other_indices(method: str, index: Any) -> None:
    state = STATES["RNNState"](3)
    wanted = Indexed(method)(state, index)
    assert_close(compiled(lambda state: Indexed(method)(state, index))(state), wanted)


@every_method
def test_a_graph_raises_for_a_sequence_out_of_range(method: str) -> None:
    model, example = Indexed(method), (STATES["RNNState"](3), torch.tensor([0, 1]))
    program = export(model, example, dynamic_shapes=([{2: BATCH}], {0: NUMBER})).module()
    for made in (compiled(model), program):
        for numbers in ([3], [0, -4], [9, 0]):
            with pytest.raises(RuntimeError, match="`index` must name sequences that are there"):
                made(STATES["RNNState"](3), torch.tensor(numbers))


@pytest.mark.parametrize(
    ("index", "kind", "said"),
    [
        (
            torch.tensor([True, False]),
            SeqbatchIndexError,
            "have one bool for each sequence, as it is a mask; got fewer",
        ),
        (torch.tensor([1, 0], dtype=torch.uint8), SeqbatchTypeError, "say whether it is a mask; got torch.uint8."),
        (torch.tensor([1.0, 0.0]), SeqbatchTypeError, "be integers, as a Tensor of one axis and an integer dtype;"),
        (torch.tensor(True), SeqbatchTypeError, "be integers, as a Tensor of one axis and an integer dtype;"),
    ],
)
@pytest.mark.parametrize("method", ["select", "reset"])
def test_tensors_that_are_not_an_index(method: str, index: Tensor, kind: type[Exception], said: str) -> None:
    model, state = Indexed(method), STATES["RNNState"](3)
    with pytest.raises(Unsupported, match=re.escape(f"`index` must {said}")):
        compiled(model)(state, index)
    with pytest.raises(kind, match=re.escape(f"`index` must {said}")):
        export(model, (state, index))
    with pytest.raises(kind):
        model(state, index)
