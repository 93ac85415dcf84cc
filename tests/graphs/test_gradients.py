"""Gradients through compiled models: of what goes in, of frozen and shared weights, and the same bits as without."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_models import LAYERS, PATTERNS, SMALL, Function, compiled, graphs, signals
from graph_models import allow_recurrent_layers as allow_recurrent_layers
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from seqbatch import LSTMState, RNNState, SequenceBatch, _kernels, encode, encode_with_state


def gradients(results: Any, sources: list[Tensor]) -> list[Tensor]:
    """Return the gradients of a loss that weights each result, and each of its elements, differently."""
    loss = torch.zeros(())
    for i, part in enumerate(tree_leaves(results), 1):
        loss = loss + (part.cos() * torch.linspace(1, 2, part.numel()).view(part.shape)).sum() * i
    return [*torch.autograd.grad(loss, sources, materialize_grads=True)]


def weights_of(layer: nn.Module) -> list[Tensor]:
    return [weight for weight in layer.parameters() if weight.requires_grad]


def alone(layer: Any, values: Tensor, lengths: list[int], state: Any) -> tuple[Tensor, list[Tensor]]:
    """Run each sequence by PyTorch alone; give the outputs end to end, and the parts of the final state."""
    start = [part.flatten(0, 1) for part in tree_leaves(state)]
    size = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
    outputs, finals = [values.new_zeros(0, size)], []
    for i, sequence in enumerate(values.split(lengths)):
        parts: Any = tuple(part[:, i] for part in start)
        if len(sequence):
            output, end = layer(sequence, parts if len(parts) == 2 else parts[0])
            outputs.append(output)
            parts = end if isinstance(end, tuple) else (end,)
        finals.append(parts)
    ends = [torch.stack(parts, 1) for parts in zip(*finals, strict=True)] if finals else start
    return torch.cat(outputs), [part.view_as(like) for part, like in zip(ends, tree_leaves(state), strict=True)]


def state_for(layer: Any, batch: int) -> Any:
    rows = (layer.num_layers, 2 if layer.bidirectional else 1, batch)
    hidden = torch.randn(*rows, layer.proj_size or layer.hidden_size).requires_grad_()
    if isinstance(layer, nn.LSTM):
        return LSTMState(hidden, torch.randn(*rows, layer.hidden_size).requires_grad_())
    return RNNState(hidden)


@pytest.mark.parametrize("kind", LAYERS)
def test_of_sequences_weights_and_initial_states(kind: str) -> None:
    layer = LAYERS[kind]()
    graph = compiled(lambda batch, state: encode_with_state(layer, batch, state))
    # How torch specializes small sizes does not depend on the operators, and is the same for each RNN as for the GRU.
    small = () if isinstance(layer, nn.RNN) else SMALL.values()
    for lengths in (*PATTERNS.values(), *small):
        batch, state = signals(lengths), state_for(layer, len(lengths))
        batch = batch.with_values(batch.values.requires_grad_())
        sources = [batch.values, *tree_leaves(state), *weights_of(layer)]
        outputs, end = graph(batch, state)
        found = [outputs.values, *tree_leaves(end)]
        values, parts = alone(layer, batch.values, lengths, state)
        assert_close(found, [values, *parts])
        assert_close(gradients(found, sources), gradients([values, *parts], sources))
    # One, another where the first number of sequences, 3, was taken for a size of the state, and those for 0 and 1.
    assert graphs() <= (7 if small else 2)


def twice_by_one_layer(layer: nn.Module, batch: SequenceBatch) -> Any:
    return encode(layer, encode(layer, batch)).values


def half_without(layer: nn.Module, batch: SequenceBatch) -> Any:
    with torch.no_grad():
        start = encode(layer, batch)
    return encode(layer, start).values


def detached(layer: nn.Module, batch: SequenceBatch) -> Any:
    return encode(layer, encode(layer, batch).detach()).values


def only_the_state(layer: nn.Module, batch: SequenceBatch) -> Any:
    return encode_with_state(layer, batch)[1].last()


def recomputed(layer: nn.Module, batch: SequenceBatch) -> Any:
    def call(values: Tensor) -> Tensor:
        return encode(layer, batch.with_values(values)).values.sin()

    return checkpoint(call, batch.values * 1, use_reentrant=False)


def modified(layer: nn.Module, batch: SequenceBatch) -> Any:
    outputs, state = encode_with_state(layer, batch)
    state.hidden.add_(1)
    return outputs.values.mul_(2).relu_(), state.hidden


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_of_what_else_a_model_does(backend: str) -> None:
    gru = nn.GRU(4, 4, num_layers=2)

    def call(batch: SequenceBatch) -> Any:
        return [
            function(gru, batch)
            for function in (twice_by_one_layer, half_without, detached, only_the_state, recomputed, modified)
        ]

    graph = compiled(call, backend=backend)
    for lengths in (PATTERNS["ragged"], PATTERNS["with 0s"]):
        batch = signals(lengths)
        found, wanted = graph(batch), call(batch)
        assert_close(found, wanted)
        assert_close(gradients(found, weights_of(gru)), gradients(wanted, weights_of(gru)))


@pytest.mark.skipif(not _kernels.IS_THERE, reason="only the kernels promise it")
@pytest.mark.parametrize(
    ("kind", "backend"),
    # By Inductor, one type with a cell and one without: what it compiles lies around the operators.
    [*((kind, "aot_eager") for kind in LAYERS if kind != "projected"), ("lstm", "inductor"), ("gru", "inductor")],
)
def test_the_same_bits_as_without_a_graph(kind: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, calls = LAYERS[kind](), 0
    run = _kernels.forward

    def count(*given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return run(*given, **options)

    monkeypatch.setattr(_kernels, "forward", count)

    def call(batch: SequenceBatch, state: Any) -> Any:
        outputs, end = encode_with_state(layer, batch, state)
        return outputs.values, *tree_leaves(end)

    graph = compiled(call, backend=backend)
    for lengths in ([9, 3, 17, 4], [5, 5], [0, 4, 0, 2]):
        batch, state = signals(lengths), state_for(layer, len(lengths))
        batch = batch.with_values(batch.values.requires_grad_())
        sources = [batch.values, *tree_leaves(state), *weights_of(layer)]
        calls = 0
        found = graph(batch, state)
        of_found = gradients(found, sources)
        assert calls == layer.num_layers, "the backward pass does not run the layer again"
        wanted = call(batch, state)
        assert_close(found, wanted, rtol=0, atol=0)
        assert_close(of_found, gradients(wanted, sources), rtol=0, atol=0)
        with torch.no_grad():
            assert_close(graph(batch, state), tuple(part.detach() for part in wanted), rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_of_outputs_that_are_modified_in_place_outside_of_the_graph(backend: str) -> None:
    lstm, batch = nn.LSTM(4, 3), signals([3, 0, 2])

    def call(batch: SequenceBatch) -> Any:
        return encode(lstm, batch).values

    graph = compiled(call, backend=backend)
    found, wanted = (
        [*torch.autograd.grad(run(batch).mul_(2).relu_().sum(), weights_of(lstm))] for run in (graph, call)
    )
    assert_close(found, wanted)


def test_of_layers_that_are_frozen_and_thawed() -> None:
    lstm = nn.LSTM(4, 3, num_layers=2)

    def call(batch: SequenceBatch) -> Any:
        return encode(lstm, batch).values

    graph, batch = compiled(call), signals([3, 0, 2])
    for frozen in (["l0"], ["bias"], ["weight", "bias"], []):
        for name, weight in lstm.named_parameters():
            weight.requires_grad_(not any(part in name for part in frozen))
        found = graph(batch)
        assert found.requires_grad is bool(weights_of(lstm))
        if weights_of(lstm):
            assert_close(gradients(found, weights_of(lstm)), gradients(call(batch), weights_of(lstm)))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_close(graph(batch), call(batch))
    assert_close(gradients(graph(batch), weights_of(lstm)), gradients(call(batch), weights_of(lstm)))


def test_of_calls_whose_backward_passes_are_yet_to_come() -> None:
    gru = nn.GRU(4, 3)

    def call(batch: SequenceBatch) -> Any:
        return encode(gru, batch).values

    graph, batches = compiled(call), [signals([3, 2]), signals([1, 6], seed=1), signals([3, 2], seed=2)]
    results = [graph(batch) for batch in batches]
    for result, batch in zip(reversed(results), reversed(batches), strict=True):
        assert_close(gradients(result, weights_of(gru)), gradients(call(batch), weights_of(gru)))


def test_of_threads_that_share_a_model() -> None:
    lstm = nn.LSTM(4, 3)

    def call(batch: SequenceBatch) -> Any:
        return encode(lstm, batch).values

    graph, found = compiled(call), {}
    gradients(graph(signals([3, 2])), weights_of(lstm))
    batches = {i: signals([3, 1 + i, 2], seed=i) for i in range(4)}

    def work(i: int) -> None:
        found[i] = [gradients(graph(batches[i]), weights_of(lstm)) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(i,)) for i in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, batch in batches.items():
        assert_close(found[i], [gradients(call(batch), weights_of(lstm))] * 10)


FIRST: dict[str, list[int]] = {
    "as many sequences as steps": [1, 1, 1],
    "as features": [1, 1, 1, 1],
    "all 0": [0, 0, 0],
    "one step": [1],
    "none": [],
}


@pytest.mark.parametrize("first", FIRST)
def test_whatever_comes_first_all_others_are_right(first: str) -> None:
    """PyTorch takes sizes that are equal in the first batch for one, until others come."""
    gru = nn.GRU(4, 3)

    def call(batch: SequenceBatch) -> Any:
        return encode(gru, batch).values, batch.mean(), batch.to_padded(batch_first=True)

    graph: Function = compiled(call)
    with torch.no_grad():
        for lengths in (FIRST[first], [3, 5, 2], [0, 5, 0, 2], *FIRST.values()):
            assert_close(graph(signals(lengths)), call(signals(lengths)))


Layout = Callable[[Tensor], Tensor]
LAYOUTS: dict[str, Layout] = {
    "transposed": lambda part: (
        part.permute(*reversed(range(part.dim()))).contiguous().permute(*reversed(range(part.dim())))
    ),
    "every other": lambda part: part.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda part: part[..., :1].expand_as(part),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_tensors_whose_elements_lie_in_another_order(layout: str) -> None:
    gru, batch = nn.GRU(4, 4), signals([3, 0, 2, 1])

    def call(values: Tensor, hidden: Tensor) -> Any:
        given = batch.with_values(values)
        outputs, state = encode_with_state(gru, given, RNNState(hidden))
        return outputs.values, state.hidden, given.softmax().values, given.reverse().values, given.max(), given.last()

    def sources() -> list[Tensor]:
        torch.manual_seed(0)
        parts = torch.randn(6, 4), torch.randn(1, 1, 4, 4)
        return [LAYOUTS[layout](part).detach().requires_grad_() for part in parts]

    given = sources()
    assert layout == "every other" or not any(part.is_contiguous() for part in given[:1])
    graph = compiled(call, backend="inductor")
    with torch.no_grad():
        assert_close(graph(*given), call(*given))
    found = gradients(graph(*given), [*given, *weights_of(gru)])
    assert_close(found, gradients(call(*given), [*given, *weights_of(gru)]))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_of_arguments_that_depend_on_each_other(kind: str) -> None:
    """With `create_graph=True` the path through the state must not count twice."""
    layer: nn.Module = getattr(nn, kind)(4, 3, dtype=torch.float64)
    values = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def twice(values: Tensor) -> Tensor:
        batch = SequenceBatch(values, [3, 2])
        _, state = encode_with_state(layer, batch)
        outputs, _ = encode_with_state(layer, batch, state)
        return outputs.values

    sources = [values, *layer.parameters()]
    # With this backend operators are differentiated one by one, and in turn.
    found = [gradients(run(values), sources) for run in (torch.compile(twice, backend="eager"), twice)]
    assert_close(*found)
    output = torch.compile(twice, backend="eager")(values)
    firsts = torch.autograd.grad(output.cos().sum(), sources, create_graph=True)
    wanted = torch.autograd.grad(twice(values).cos().sum(), sources, create_graph=True)
    assert_close(firsts, torch.autograd.grad(output.cos().sum(), sources, retain_graph=True))
    assert_close(*(gradients(parts, sources) for parts in (firsts, wanted)))
