"""scan: every law against a loop over the steps of each sequence alone; what a step may keep and return; and errors."""

import itertools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from reference import scan_alone
from strategies import for_all_lengths, make, sequences
from torch import Tensor, func, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.testing import assert_close
from torch.utils import _pytree

from seqbatch import (
    ContainerState,
    LSTMState,
    RNNState,
    SeqbatchError,
    SeqbatchTypeError,
    SeqbatchValueError,
    SequenceBatch,
    encode,
    encode_with_state,
    scan,
)

# ----------------------------------------------------------------------------------------------------- steps to be run


class Case(NamedTuple):
    """A step function, with the state and the constants for a number of sequences, and the layer of its weights."""

    layer: nn.Module
    step: Callable[..., Any]
    state: Callable[[int], Any]
    constants: Callable[[int], Any] | None = None


def rows(*shape: int, seed: int) -> Tensor:
    return make(shape, torch.float64, seed).requires_grad_()


def one_tensor() -> Case:
    cell = nn.GRUCell(3, 4)

    def step(inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        hidden = cell(inputs, hidden)
        return hidden, hidden

    return Case(cell, step, lambda number: rows(number, 4, seed=1))


def lstm_state() -> Case:
    cell = nn.LSTMCell(3, 4)

    def step(inputs: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        hidden, memory = cell(inputs, (state.hidden[0, 0], state.cell[0, 0]))
        return hidden, LSTMState(hidden[None, None], memory[None, None])

    return Case(cell, step, lambda number: LSTMState(*(rows(1, 1, number, 4, seed=seed) for seed in (1, 2))))


def nested_state() -> Case:
    """A dict of a pair and a count, with a mask for each sequence, and a pytree of outputs."""
    layer = nn.Linear(3 + 4, 4)

    def step(inputs: Tensor, state: Any, mask: Tensor) -> Any:
        hidden, memory = state["pair"]
        hidden = torch.tanh(layer(torch.cat([inputs, hidden * mask], 1)))
        memory = memory + hidden
        steps = state["steps"] + 1
        # In another order than the state that was passed.
        return (hidden * steps[:, None], [memory.sum(1)]), {"steps": steps, "pair": (hidden, memory)}

    def state(number: int) -> Any:
        return {"pair": (rows(number, 4, seed=1), rows(number, 4, seed=2)), "steps": torch.arange(number)}

    return Case(layer, step, state, lambda number: rows(number, 4, seed=3))


def no_state() -> Case:
    layer = nn.Linear(3, 2)
    return Case(layer, lambda inputs, state: (layer(inputs), state), lambda number: ())


def attention() -> Case:
    """A decoder that attends over a memory, and returns the context and the weights."""
    cell, query = nn.GRUCell(3 + 2, 4), nn.Linear(4, 2)

    def step(inputs: Tensor, state: tuple[RNNState, Tensor], constants: Any) -> Any:
        memory, keys = constants
        hidden = cell(torch.cat([inputs, state[1]], 1), state[0].hidden[0, 0])
        asked = keys.with_values(query(hidden)[keys.segment_ids])
        weights = keys.map(lambda key, one: (key * one).sum(1), asked).softmax()
        context = memory.map(lambda value, weight: value * weight[:, None], weights).sum()
        return {"context": context, "weights": weights}, (RNNState(hidden[None, None]), context)

    def state(number: int) -> Any:
        return RNNState(rows(1, 1, number, 4, seed=1)), rows(number, 2, seed=2)

    def constants(number: int) -> Any:
        lengths = [(0, 3, 1, 2)[i % 4] for i in range(number)]
        memory = SequenceBatch(rows(sum(lengths), 2, seed=5), lengths)
        return memory, memory.map(torch.tanh)

    return Case(nn.ModuleList([cell, query]), step, state, constants)


CASES = {made.__name__: made for made in (one_tensor, lstm_state, nested_state, no_state, attention)}
every_case = pytest.mark.parametrize("name", CASES)


def case_of(name: str) -> Case:
    torch.manual_seed(0)
    made = CASES[name]()
    made.layer.double()
    return made


def is_batch(one: object) -> bool:
    return isinstance(one, SequenceBatch)


def select(tree: Any, indices: list[int]) -> Any:
    """Return what a pytree holds for some sequences."""
    if isinstance(tree, Tensor):
        return tree[indices]
    if isinstance(tree, SequenceBatch | RNNState | LSTMState):
        return tree[indices]
    if isinstance(tree, dict):
        return {key: select(one, indices) for key, one in tree.items()}
    return tuple(select(one, indices) for one in tree)


def tensors(tree: Any) -> list[Tensor]:
    """Return the leaves of a pytree, those of a dict in the order of its keys, which a step may return in any order."""
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in tensors(tree[key])]
    if isinstance(tree, list | tuple):
        return [leaf for part in tree for leaf in tensors(part)]
    return _pytree.tree_leaves(tree)


def steps_of(outputs: Any) -> list[list[Any]]:
    """Return what outputs of lists hold for each step of each sequence, as a step returns it for one sequence."""
    lengths = [len(one) for one in next(leaf for leaf in leaf_lists(outputs) if isinstance(leaf, list))]
    starts = [0, *itertools.accumulate(lengths)]

    def at(i: int, t: int) -> Any:
        def pick(leaf: Any) -> Any:
            return leaf[[starts[i] + t]] if isinstance(leaf, SequenceBatch) else leaf[i][t : t + 1]

        return _pytree.tree_map(pick, outputs, is_leaf=is_output)

    return [[at(i, t) for t in range(length)] for i, length in enumerate(lengths)]


def is_output(leaf: Any) -> bool:
    """Return True for a list of sequences, and not a list that the step returns itself."""
    return is_batch(leaf) or (isinstance(leaf, list) and all(isinstance(one, Tensor) for one in leaf))


def leaf_lists(outputs: Any) -> list[Any]:
    return _pytree.tree_leaves(outputs, is_leaf=is_output)


def run_both(case: Case, xs: list[Tensor], reverse: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the results of a scan, those of each sequence alone, and what gradients flow to."""
    number = len(xs)
    state, constants = case.state(number), None if case.constants is None else case.constants(number)
    outputs, final = scan(case.step, xs, state, constants=constants, reverse=reverse)
    each = [[i] for i in range(number)]
    kept = None if constants is None else [select(constants, one) for one in each]
    alone, ends = scan_alone(case.step, xs, [select(state, one) for one in each], kept, reverse=reverse)
    found = [steps_of(outputs), [select(final, one) for one in each]]
    sources = [*xs, *case.layer.parameters(), *tensors(state), *tensors(constants)]
    return tensors(found), tensors([alone, ends]), [one for one in sources if isinstance(one, Tensor)]


def gradients(results: list[Tensor], sources: list[Tensor]) -> list[Tensor]:
    leaves = [one for one in sources if one.is_leaf and one.requires_grad]
    used = enumerate(one for one in results if one.requires_grad)
    weighted = [(one * make(tuple(one.shape), one.dtype, i)).sum() for i, one in used]
    loss = sum(weighted, torch.zeros((), dtype=torch.float64)) + sum(0 * one.sum() for one in leaves)
    return list(torch.autograd.grad(loss, leaves, retain_graph=True))


# --------------------------------------------------------------------------------------------------------------- laws


@for_all_lengths(name=st.sampled_from([*CASES]), reverse=st.booleans())
def test_alone(lengths: list[int], name: str, reverse: bool) -> None:
    found, wanted, sources = run_both(case_of(name), sequences(lengths or [0], (3,)), reverse)
    assert_close(found, wanted)
    assert_close(gradients(found, sources), gradients(wanted, sources))


@for_all_lengths(name=st.sampled_from([*CASES]), reverse=st.booleans(), random=st.randoms(use_true_random=False))
def test_order(lengths: list[int], name: str, reverse: bool, random: Any) -> None:
    case, xs = case_of(name), sequences(lengths or [0], (3,))
    order = random.sample(range(len(xs)), len(xs))
    state, constants = case.state(len(xs)), None if case.constants is None else case.constants(len(xs))
    outputs, final = scan(case.step, xs, state, constants=constants, reverse=reverse)
    moved = None if constants is None else select(constants, order)
    others, end = scan(case.step, [xs[i] for i in order], select(state, order), constants=moved, reverse=reverse)
    assert_close(tensors(end), tensors(select(final, order)))
    by_step = steps_of(outputs)
    assert_close(tensors(steps_of(others)), tensors([by_step[i] for i in order]))


@every_case
@pytest.mark.parametrize("number", [0, 1, 3])
def test_empty_sequences_have_the_features_of_others(name: str, number: int) -> None:
    case = case_of(name)
    constants = None if case.constants is None else case.constants
    kept, many = (None if constants is None else constants(n) for n in (number, 2))
    some, _ = scan(case.step, SequenceBatch(rows(3, 3, seed=0), [2, 1]), case.state(2), constants=many)
    state = case.state(number)
    none, final = scan(case.step, SequenceBatch(rows(0, 3, seed=0), [0] * number), state, constants=kept)
    assert _pytree.tree_structure(none, is_leaf=is_batch) == _pytree.tree_structure(some, is_leaf=is_batch)
    pairs = zip(*(_pytree.tree_leaves(outputs, is_leaf=is_batch) for outputs in (none, some)), strict=True)
    for nothing, something in pairs:
        assert (nothing.feature_shape, nothing.dtype) == (something.feature_shape, something.dtype)
    assert_close(tensors(final), tensors(state))
    weights = list(case.layer.parameters())
    results = [one for one in [*tensors(none), *tensors(final)] if one.requires_grad]
    loss: Any = sum(one.sum() for one in results)
    assert_close(list(torch.autograd.grad(loss, weights)), [torch.zeros_like(one) for one in weights])


@every_case
@pytest.mark.parametrize("lengths", [[5, 3, 4], [2, 6, 0, 1]])
def test_chunks_are_the_whole(name: str, lengths: list[int]) -> None:
    case, xs = case_of(name), sequences(lengths, (3,))
    state, constants = case.state(len(xs)), None if case.constants is None else case.constants(len(xs))
    whole, final = scan(case.step, xs, state, constants=constants)
    first, middle = scan(case.step, [x[:2] for x in xs], state, constants=constants)
    rest, end = scan(case.step, [x[2:] for x in xs], middle, constants=constants)
    assert_close(tensors(end), tensors(final))
    joined = [one + other for one, other in zip(steps_of(first), steps_of(rest), strict=True)]
    assert_close(tensors(joined), tensors(steps_of(whole)))


def is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


@pytest.mark.parametrize("lengths", [[2, 2], [3, 1], [0, 2], [0, 0]])
@every_case
def test_gradients_of_both_orders(name: str, lengths: list[int]) -> None:
    case = case_of(name)
    values = rows(sum(lengths), 3, seed=0)
    state = case.state(len(lengths))
    constants = None if case.constants is None else case.constants(len(lengths))
    structures = [_pytree.tree_flatten(tree) for tree in (values, state, constants)]
    sources = [one.detach().requires_grad_() for leaves, _ in structures for one in leaves if is_floating(one)]

    def outputs(*leaves: Tensor) -> tuple[Tensor, ...]:
        changed = iter(leaves)
        built = [
            _pytree.tree_unflatten([next(changed) if is_floating(one) else one for one in old], spec)
            for old, spec in structures
        ]
        found = scan(case.step, SequenceBatch(built[0], lengths), built[1], constants=built[2])
        return tuple(one for one in tensors(found) if one.requires_grad)

    assert torch.autograd.gradcheck(outputs, sources, fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, sources, fast_mode=True)


def test_transforms() -> None:
    case, transforms = case_of("nested_state"), func
    batch = SequenceBatch(rows(9, 3, seed=0).detach(), [4, 0, 2, 3])
    state, mask = case.state(4), rows(4, 4, seed=3).detach()

    def run(values: Tensor, mask: Tensor) -> Tensor:
        results: Any = scan(case.step, batch.with_values(values), state, constants=mask, reverse=True)
        outputs, final = results
        loss: Tensor = outputs[0].values.sum() + outputs[1][0].values.sum() + final["pair"][1].sum()
        return loss

    several = torch.stack([batch.values, 2 * batch.values, -batch.values])
    vmap: Any = transforms.vmap
    assert_close(vmap(run, (0, None))(several, mask), torch.stack([run(values, mask) for values in several]))
    masks = torch.stack([mask, mask + 1])
    assert_close(vmap(run, (None, 0))(batch.values, masks), torch.stack([run(batch.values, one) for one in masks]))
    values = batch.values.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(run(values, mask), values)
    assert_close(func.grad(run)(batch.values, mask), wanted)
    tangent = make((9, 3), torch.float64, 7)
    assert_close(func.jvp(lambda one: run(one, mask), (batch.values,), (tangent,))[1], (wanted * tangent).sum())
    each = vmap(func.grad(run), (0, None))(several, mask)
    assert_close(each, torch.stack([func.grad(run)(one, mask) for one in several]))


# ------------------------------------------------------------------------------------------------- layouts and features


def test_every_layout_in_is_the_same_layout_out() -> None:
    case = case_of("one_tensor")
    xs, state = sequences([2, 4, 1], (3,)), case.state(3)
    outputs, final = scan(case.step, xs, state)
    assert type(outputs) is list
    batch = SequenceBatch.from_sequences(xs)
    for given in (tuple(xs), batch, batch.to_nested(), pack_sequence(xs, enforce_sorted=False)):
        found, end = scan(case.step, given, state)
        assert type(found) is (list if type(given) is tuple else type(given))
        if isinstance(found, PackedSequence):
            found = SequenceBatch.from_packed(found)
        if isinstance(found, Tensor):
            found = SequenceBatch.from_nested(found)
        assert_close(list(found), outputs)
        assert_close(end, final)
    assert scan(case.step, batch, state)[0].structure is batch.structure
    alone, end = scan(case.step, xs[1], state[1:2])
    assert type(alone) is Tensor
    assert_close([alone, end], [outputs[1], final[1:2]])
    packed, _ = scan(lambda inputs, state: ((inputs, inputs), state), pack_sequence(xs, enforce_sorted=False), ())
    assert [type(one) for one in packed] == [PackedSequence] * 2


def test_token_ids_and_outputs_without_features() -> None:
    embedding = nn.Embedding(9, 3)

    def step(ids: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        total = total + embedding(ids)
        return total.argmax(1), total

    ids = [torch.tensor([1, 2, 3]), torch.tensor([], dtype=torch.int64), torch.tensor([4])]
    outputs, total = scan(step, ids, torch.zeros(3, 3))
    assert_close(total, torch.stack([embedding(one).sum(0) for one in ids]))
    assert_close(outputs, [embedding(one).cumsum(0).argmax(1) for one in ids])


def test_a_list_of_none_has_unknown_features() -> None:
    def step(inputs: Tensor, state: Any) -> Any:
        raise AssertionError

    state = (torch.zeros(0, 2), RNNState(torch.zeros(1, 1, 0, 3)))
    outputs, final = scan(step, [], state)
    assert outputs == []
    assert_close(final[0], state[0])
    assert_close(final[1].hidden, state[1].hidden)


def test_it_equals_the_cell() -> None:
    cell = nn.LSTMCell(3, 4)
    batch = SequenceBatch(torch.randn(12, 3), [5, 0, 3, 4])
    outputs, state = encode_with_state(cell, batch)

    def step(inputs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        state = cell(inputs, state)
        return state[0], state

    found, (hidden, memory) = scan(step, batch, (torch.zeros(4, 4), torch.zeros(4, 4)))
    assert_close([found.values, hidden, memory], [outputs.values, state.hidden[0, 0], state.cell[0, 0]])
    backward, (hidden, _) = scan(step, batch, (torch.zeros(4, 4), torch.zeros(4, 4)), reverse=True)
    outputs, state = encode_with_state(cell, batch.reverse())
    assert_close([backward.values, hidden], [outputs.reverse().values, state.hidden[0, 0]])


def test_autocast_may_change_the_dtype_of_the_state() -> None:
    cell = nn.GRUCell(3, 4)

    def step(inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        hidden = cell(inputs, hidden)
        return hidden, hidden

    for lengths in ([2, 0, 3], [0, 0, 0]):
        batch = SequenceBatch(torch.randn(sum(lengths), 3), lengths)
        with torch.autocast("cpu", torch.bfloat16):
            outputs, hidden = scan(step, batch, torch.ones(3, 4))
            wanted = encode(cell, batch)
        assert outputs.dtype is hidden.dtype is wanted.dtype
        assert_close(hidden[lengths.index(0)], torch.ones(4, dtype=hidden.dtype))


def test_the_state_of_a_container_and_no_output() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.GRU(4, 4), nn.Sequential(nn.Tanh(), nn.LSTM(4, 2)))
    batch = SequenceBatch(torch.randn(9, 3), [4, 0, 3, 2])
    _, start = encode_with_state(model, batch)
    wanted, end = encode_with_state(model, batch, start)

    def step(inputs: Tensor, state: tuple[ContainerState, None]) -> Any:
        outputs, hidden = encode_with_state(model, SequenceBatch(inputs, [1] * len(inputs)), state[0])
        return {"outputs": outputs.values, "nothing": None}, (hidden, None)

    results: Any = scan(step, batch, (start, None))
    outputs, (final, nothing) = results
    assert_close(outputs["outputs"].values, wanted.values)
    assert outputs["nothing"] is nothing is None
    assert type(final) is ContainerState
    assert_close(tensors(final), tensors(end))
    only_state, final = scan(lambda inputs, state: (None, step(inputs, state)[1]), batch, (start, None))
    assert only_state is None
    assert_close(tensors(final[0]), tensors(end))


# -------------------------------------------------------------------------------------------- how the step is called


def test_the_step_runs_once_for_each_time_step_on_views_of_the_constants() -> None:
    calls: list[Any] = []
    memory = SequenceBatch(torch.randn(10, 2), [1, 2, 3, 4])

    def step(inputs: Tensor, state: Any, constants: Any) -> Any:
        calls.append((inputs, constants))
        return inputs, state

    constants = [{"mask": torch.arange(4)}, memory, memory.map(torch.tanh)]
    scan(step, SequenceBatch(torch.arange(9), [1, 3, 0, 5]), (), constants=constants)
    assert [inputs.tolist() for inputs, _ in calls] == [[4, 1, 0], [5, 2], [6, 3], [7], [8]]
    assert [kept[0]["mask"].tolist() for _, kept in calls] == [[3, 1, 0], [3, 1], [3, 1], [3], [3]]
    assert [kept[1].lengths for _, kept in calls] == [(4, 2, 1), (4, 2), (4, 2), (4,), (4,)]
    assert len({kept[0]["mask"].data_ptr() for _, kept in calls}) == 1
    assert len({kept[1].values.data_ptr() for _, kept in calls}) == 1
    assert calls[1][1] is calls[2][1]
    assert all(kept[1].structure is kept[2].structure for _, kept in calls)
    chosen = memory[[3, 1, 0, 2]]
    assert_close(list(calls[0][1][1]), list(chosen)[:3])


def test_the_structure_of_a_memory_is_not_computed_again() -> None:
    seen: list[SequenceBatch] = []

    def step(inputs: Tensor, state: Any, memory: SequenceBatch) -> Any:
        seen.append(memory)
        assert memory.segment_ids.tolist() == [i for i, n in enumerate(memory.lengths) for _ in range(n)]
        assert memory.positions.tolist() == [i for n in memory.lengths for i in range(n)]
        assert memory.offsets.tolist() == [0, *itertools.accumulate(memory.lengths)]
        return inputs, state

    scan(step, SequenceBatch(torch.zeros(6), [3, 1, 2]), (), constants=SequenceBatch(torch.zeros(7), [2, 4, 1]))
    assert [one.lengths for one in seen] == [(2, 1, 4), (2, 1), (2,)]
    for name in ("segment_ids", "positions", "offsets"):
        assert len({getattr(one.structure, name).data_ptr() for one in seen}) == 1, name


def test_what_is_given_is_not_modified() -> None:
    def step(inputs: Tensor, state: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        inputs += 1
        mask += 1
        return inputs.clone(), state.add_(inputs)

    with torch.no_grad():
        values, state, mask = torch.ones(5, 2), torch.ones(2, 2), torch.ones(2, 2)
        _, final = scan(step, SequenceBatch(values, [2, 3]), state, constants=mask)
    assert_close([values, state, mask], [torch.ones(5, 2), torch.ones(2, 2), torch.ones(2, 2)])
    assert_close(final, torch.tensor([[5.0, 5.0], [7.0, 7.0]]))


def sum_in_place(inputs: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    total += inputs
    return total, total


@pytest.mark.parametrize("batched", [False, True])
def test_an_output_that_a_later_step_modifies_is_refused(batched: bool) -> None:
    def step(inputs: Tensor, total: Tensor) -> Any:
        output, total = sum_in_place(inputs, total)
        return SequenceBatch(output, [1] * len(output)) if batched else output, total

    said = (
        "`step(inputs, state)[0]` must not be modified in place by a later step; got that of time step 0, which was. "
        "Compute the next state out of place, or return a clone of the output."
    )
    with torch.no_grad(), pytest.raises(SeqbatchError, match=f"^{re.escape(said)}$"):
        scan(step, SequenceBatch(torch.ones(4), [1, 3]), torch.zeros(2))


@pytest.mark.parametrize("batched", [False, True])
def test_in_inference_mode_each_output_is_copied(batched: bool) -> None:
    def step(inputs: Tensor, total: Tensor) -> Any:
        output, total = sum_in_place(inputs, total)
        return SequenceBatch(output, [1] * len(output)) if batched else output, total

    with torch.inference_mode():
        outputs, _ = scan(step, SequenceBatch(torch.ones(4), [1, 3]), torch.zeros(2))
    assert_close(outputs.values, torch.tensor([1.0, 1.0, 2.0, 3.0]))


# -------------------------------------------------------------------------------------------------------------- errors

BATCH = SequenceBatch(torch.zeros(4, 3), [1, 3])
ZEROS = torch.zeros(2, 4)


def keep(inputs: Tensor, state: Any) -> Any:
    return inputs, state


# Without its type, because type checkers report some of the calls below.
scan_any: Any = scan

REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no function": (
        lambda: scan_any(3, BATCH, ZEROS),
        SeqbatchTypeError,
        "`step` must be a function; got an int.",
    ),
    "reverse": (
        lambda: scan_any(keep, BATCH, ZEROS, reverse=1),
        SeqbatchTypeError,
        "`reverse` must be True or False; got 1.",
    ),
    "sequences": (
        lambda: scan_any(keep, "text", ZEROS),
        SeqbatchTypeError,
        "`sequences` must be a list or tuple of Tensors, a Tensor, a SequenceBatch, a PackedSequence or a nested "
        "Tensor; got a str.",
    ),
    "a state of too many rows": (
        lambda: scan_any(keep, BATCH, {"a": [ZEROS, torch.zeros(3)]}),
        SeqbatchValueError,
        "`state['a'][1]` must have size 2 in dimension 0, one for each sequence; got shape (3,).",
    ),
    "a state without rows": (
        lambda: scan_any(keep, BATCH, torch.zeros(())),
        SeqbatchValueError,
        "`state` must have size 2 in dimension 0, one for each sequence; got shape ().",
    ),
    "an RNNState of too many sequences": (
        lambda: scan_any(keep, BATCH, (ZEROS, RNNState(torch.zeros(1, 2, 3, 4)))),
        SeqbatchValueError,
        "`state[1].hidden` must have size 2 in dimension 2, one for each sequence; got shape (1, 2, 3, 4).",
    ),
    "no state": (lambda: scan_any(keep, BATCH, None), SeqbatchTypeError, "`state` must be a Tensor; got None."),
    "a number in the state": (
        lambda: scan_any(keep, BATCH, (ZEROS, 3)),
        SeqbatchTypeError,
        "`state[1]` must be a Tensor; got an int.",
    ),
    "a batch in the state": (
        lambda: scan_any(keep, BATCH, (BATCH,)),
        SeqbatchTypeError,
        "`state[0]` must be a Tensor; got a seqbatch.SequenceBatch. Call encode(layer, batch) for a layer, "
        "batch.map(function) for a function that treats every step by itself.",
    ),
    "constants of too many rows": (
        lambda: scan_any(lambda inputs, state, mask: (inputs, state), BATCH, (), constants=[torch.zeros(3)]),
        SeqbatchValueError,
        "`constants[0]` must have size 2 in dimension 0, one for each sequence; got shape (3,).",
    ),
    "a memory of too many sequences": (
        lambda: scan_any(
            lambda inputs, state, memory: (inputs, state), BATCH, (), constants={"memory": BATCH[[0, 1, 0]]}
        ),
        SeqbatchValueError,
        "`constants['memory']` must have 2 sequences, as many as `sequences`; got 3.",
    ),
    "a number in the constants": (
        lambda: scan_any(lambda inputs, state, rate: (inputs, state), BATCH, (), constants=0.5),
        SeqbatchTypeError,
        "`constants` must be a Tensor; got a float.",
    ),
    "no pair": (
        lambda: scan_any(lambda inputs, state: inputs, BATCH, ZEROS),
        SeqbatchTypeError,
        "`step(inputs, state)` must be a pair (output, state); got a torch.Tensor, at time step 0.",
    ),
    "a list of two": (
        lambda: scan_any(lambda inputs, state, mask: [inputs, state], BATCH, ZEROS, constants=ZEROS),
        SeqbatchTypeError,
        "`step(inputs, state, constants)` must be a pair (output, state); got a list, at time step 0.",
    ),
    "a cell's own result": (
        lambda: scan_any(nn.LSTMCell(3, 4), BATCH, (ZEROS, ZEROS)),
        SeqbatchTypeError,
        "`step(inputs, state)[1]` must have the structure of `state`; got a torch.Tensor, at time step 0. Node type "
        "mismatch; expected <class 'tuple'>, but got <class 'torch.Tensor'>. For a cell of PyTorch call "
        "encode_with_state(cell, sequences, state).",
    ),
    "a state where there was none": (
        lambda: scan_any(lambda inputs, state: (inputs, [inputs, inputs]), BATCH, [None, torch.zeros(2, 3)]),
        SeqbatchTypeError,
        "`step(inputs, state)[1]` must have the structure of `state`; got a list, at time step 0. Expected None, but "
        "got <class 'torch.Tensor'>.",
    ),
    "an output where there was none": (
        lambda: scan_any(lambda inputs, state: (None if len(inputs) > 1 else inputs, state), BATCH, ()),
        SeqbatchTypeError,
        "`step(inputs, state)[0]` must have the structure of the first output; got a torch.Tensor, at time step 1. "
        "Expected None, but got <class 'torch.Tensor'>.",
    ),
    "a state that is not a Tensor": (
        lambda: scan_any(lambda inputs, state: (inputs, None), BATCH, ZEROS),
        SeqbatchTypeError,
        "`step(inputs, state)[1]` must be a Tensor; got None, at time step 0.",
    ),
    "a state of all sequences": (
        lambda: scan_any(lambda inputs, state: (inputs, [ZEROS]), BATCH, [ZEROS]),
        SeqbatchValueError,
        "`step(inputs, state)[1][0]` must have shape (1, 4), as before the step; got (2, 4), at time step 1.",
    ),
    "a state of another dtype": (
        lambda: scan_any(lambda inputs, state: (inputs, state.double()), BATCH, ZEROS),
        SeqbatchValueError,
        "`step(inputs, state)[1]` must have dtype torch.float32, as before the step; got torch.float64, at time "
        "step 0.",
    ),
    "an output of all sequences": (
        lambda: scan_any(lambda inputs, state: (ZEROS, state), BATCH, ZEROS),
        SeqbatchValueError,
        "`step(inputs, state)[0]` must have size 1 in dimension 0, as `inputs`; got shape (2, 4), at time step 1.",
    ),
    "an output without rows": (
        lambda: scan_any(lambda inputs, state: ((inputs, inputs.sum()), state), BATCH, ZEROS),
        SeqbatchValueError,
        "`step(inputs, state)[0][1]` must have size 2 in dimension 0, as `inputs`; got shape (), at time step 0.",
    ),
    "an output of other features": (
        lambda: scan_any(lambda inputs, state: (inputs[:, : len(inputs)], state), BATCH, ZEROS),
        SeqbatchValueError,
        "`step(inputs, state)[0]` must have features (2,), as at time step 0; got (1,), at time step 1.",
    ),
    "an output of another dtype": (
        lambda: scan_any(lambda inputs, state: (inputs if len(inputs) > 1 else inputs.double(), state), BATCH, ZEROS),
        SeqbatchValueError,
        "`step(inputs, state)[0]` must have dtype torch.float32, as at time step 0; got torch.float64, at time step 1.",
    ),
    "an output of another structure": (
        lambda: scan_any(lambda inputs, state: ((inputs,) * len(inputs), state), BATCH, ZEROS),
        SeqbatchTypeError,
        "`step(inputs, state)[0]` must have the structure of the first output; got a tuple, at time step 1. Node arity "
        "mismatch; expected 2, but got 1.",
    ),
    "a batch of all sequences": (
        lambda: scan_any(lambda inputs, state: (BATCH, state), BATCH, ZEROS),
        SeqbatchValueError,
        "`step(inputs, state)[0]` must have 1 sequence, one for each row of `inputs`; got 2, at time step 1.",
    ),
    "an RNNState as output": (
        lambda: scan_any(lambda inputs, state: ((state,), state), BATCH, RNNState(torch.zeros(1, 1, 2, 4))),
        SeqbatchTypeError,
        "`step(inputs, state)[0][0]` must be a Tensor or a SequenceBatch; got a seqbatch.RNNState, at time step 0.",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_errors(what: str) -> None:
    call, error, said = REFUSED[what]
    with pytest.raises(error, match=f"^{re.escape(said)}$"):
        call()


def test_an_error_of_the_step_says_when() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        scan(lambda inputs, state: (inputs / (1 // (len(inputs) - 1)), state), BATCH, ())
    assert caught.value.__notes__ == ["while `step` ran on 1 sequence at time step 1"]
