"""scan: run a function step by step over sequences of unequal length, each exactly as if it ran alone."""

# mypy: disable-error-code="overload-overlap"
# Overloads overlap on purpose, and the first that matches is used. PackedSequence comes before tuple, because it is a
# subclass. One Tensor for output comes before several, because its type can be known.

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from seqbatch._batch import SequenceBatch, is_nothing
from seqbatch._checks.arguments import require_function, require_tensor
from seqbatch._checks.exporters import refuse_exporters, unscriptable
from seqbatch._checks.grammar import complaint, counted, type_name
from seqbatch._checks.layout_arguments import require_bool
from seqbatch._checks.per_sample_gradients import require_no_samples, samples_refused
from seqbatch._checks.tracing import outside_graphs
from seqbatch._encode.inputs import open_input
from seqbatch._ops.layouts import rearrange
from seqbatch._ops.time_steps import Parts, run_time_steps
from seqbatch._state import LSTMState, RNNState, State
from seqbatch._structure.plans import packed_backward_plan, packed_plan
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._torch import PytreeStructure, autocasts, leaves_by_path, version_of
from seqbatch.errors import SeqbatchError, SeqbatchTypeError, SeqbatchValueError

T = TypeVar("T", bound=Tensor)
S = TypeVar("S")
C = TypeVar("C")
Same = TypeVar("Same", Tensor, SequenceBatch, PackedSequence)
Output = TypeVar("Output")
_Step = Callable[[Tensor, S], tuple[Output, S]]
_StepWith = Callable[[Tensor, S, C], tuple[Output, S]]
# What a step may return in place of one Tensor.
_Several = SequenceBatch | tuple[Any, ...] | list[Any] | dict[Any, Any] | None
_Listed = list[T] | tuple[T, ...]
_AnySequences = Tensor | SequenceBatch | PackedSequence | _Listed[T]


@overload
def scan(
    step: _Step[S, Tensor], sequences: Same, state: S, *, constants: None = None, reverse: bool = False
) -> tuple[Same, S]: ...
@overload
def scan(
    step: _Step[S, Tensor], sequences: _Listed[T], state: S, *, constants: None = None, reverse: bool = False
) -> tuple[list[Tensor], S]: ...
@overload
def scan(
    step: _Step[S, _Several], sequences: _AnySequences[T], state: S, *, constants: None = None, reverse: bool = False
) -> tuple[Any, S]: ...
@overload
def scan(
    step: _StepWith[S, C, Tensor], sequences: Same, state: S, *, constants: C, reverse: bool = False
) -> tuple[Same, S]: ...
@overload
def scan(
    step: _StepWith[S, C, Tensor], sequences: _Listed[T], state: S, *, constants: C, reverse: bool = False
) -> tuple[list[Tensor], S]: ...
@overload
def scan(
    step: _StepWith[S, C, _Several], sequences: _AnySequences[T], state: S, *, constants: C, reverse: bool = False
) -> tuple[Any, S]: ...
@unscriptable
def scan(
    step: Callable[..., Any], sequences: Any, state: Any, *, constants: Any = None, reverse: bool = False
) -> tuple[Any, Any]:
    """Run a function step by step over sequences of unequal length; each gets the result it would get alone.

    It drives a recurrent cell of your own, or a decoder. The function runs once for each time step, on all sequences
    that have this step. They run from longest to shortest, so that the running ones are always the first rows.

    A pytree here is one Tensor, or tuples, lists and dicts of Tensors, also nested. RNNState, LSTMState and
    ContainerState may be in it, the first two with the sequences in their third dimension, and None where there is
    nothing. Outside of `step` it holds all sequences in the caller's order, and within those that run.

    Args:
        step: `(inputs, state) -> (output, state)`, or with constants `(inputs, state, constants) -> (output, state)`.
            It must treat each sequence by itself, and must not modify in place what it has returned. `inputs` is
            `(running, *features)`. The state it returns has the structure, shapes and dtypes of the state it got. The
            output is a Tensor `(running, *features)`, a SequenceBatch of `running` sequences, or a pytree of these, of
            equal features and dtypes in every call. If no sequence has a step, it runs once with `running` 0, so
            that the features of its outputs are known.
        sequences: as for `encode`. One Tensor is one sequence.
        state: a pytree of Tensors `(batch, ...)`: the initial state, each sequence at its index. `()`, and not None,
            if there is none.
        constants: a pytree of Tensors `(batch, ...)` and of SequenceBatches of as many sequences: what each sequence
            keeps through its steps, such as a dropout mask, or a memory to attend over. It is narrowed to the running
            sequences without a copy. What all sequences share needs no constants: `step` may refer to it.
        reverse: whether to run each sequence from its last step to its first. Outputs stay in the order of the steps.

    Returns:
        the outputs, in the same order and the same layout as `sequences`, and the state after the last step of each
        sequence, which for an empty sequence is its initial state. Gradients flow, of every order that `step` has.
        Where `step` returns a pytree, the outputs are one too. Where it returns a SequenceBatch, such as attention
        weights, they are one SequenceBatch with one sequence for each step of all sequences, in order. For an empty
        list, whose features are unknown, `step` does not run: the outputs are such a list again.

    Raises:
        SeqbatchTypeError: the sequences are of another type; `step` is not a function or does not return a pair; a
            part of the state, the constants or the output is of another type; the returned state has another structure
            than the given one; or `reverse` is not a bool.
        SeqbatchValueError: the sequences differ from each other in features, dtype or device; a part of the state or
            the constants does not have a row for each sequence; or what `step` returns has another shape or dtype than
            it must.
        UnsupportedLayerError: `step` is or calls a layer for which gradients per sample are computed, as by opacus.
        SeqbatchError: an output was modified in place by a later step; or `torch.export`, `torch.jit.trace`,
            `torch.jit.script` or `torch.onnx.export` runs the call. `torch.compile` has a graph break there.

    Source: `jax.lax.scan`, for sequences of unequal length.

    >>> cell, xs = nn.GRUCell(5, 3), [torch.randn(10, 5), torch.randn(7, 5)]
    >>> def step(inputs, hidden, mask):  # recurrent dropout with one mask for all steps of a sequence
    ...     hidden = cell(inputs, hidden * mask)
    ...     return hidden, hidden
    >>> mask = nn.functional.dropout(torch.ones(2, 3))
    >>> outputs, hidden = scan(step, xs, torch.zeros(2, 3), constants=mask)
    >>> [output.shape for output in outputs], hidden.shape
    ([torch.Size([10, 3]), torch.Size([7, 3])], torch.Size([2, 3]))
    """
    refuse_exporters()  # here too, because what follows names `torch.export`
    result: tuple[Any, Any] = _scan_outside_graphs(step, sequences, state, constants, reverse)
    return result


def _scan(step: Any, sequences: object, state: object, constants: object, reverse: object) -> tuple[Any, Any]:
    require_function("step", step)
    require_no_samples("step", step)
    backward = require_bool("reverse", reverse)
    batch, close = open_input(sequences)
    lengths = batch.structure
    form = _form_of("state", state, len(batch))
    start = tuple(require_tensor(f"state{path}", leaf) for path, leaf in form.leaves)
    kept = None if constants is None else _Constants(_form_of("constants", constants, len(batch)), lengths)
    if is_nothing(batch):
        return close(batch), form.structure.build(part.clone() for part in start)
    make_plan = packed_backward_plan if backward else packed_plan
    plan = lengths.plan(make_plan, device=batch.device)
    call = _StepCall(step, form, kept)
    with samples_refused("step"):
        steps, final = run_time_steps(call, rearrange(batch.values, plan), lengths, start, form.axes)
    call.require_unmodified(steps)

    def join(parts: tuple[Any, ...]) -> Any:
        if isinstance(parts[0], Tensor):
            return close(batch.with_values(rearrange(torch.cat(parts), plan.inverse)))
        of_steps = lengths.plan(make_plan, device=torch.device("cpu")).inverse.take
        return SequenceBatch.concat(parts)[of_steps]

    outputs = [join(parts) for parts in zip(*steps, strict=True)]
    assert call.output_structure is not None, "the step runs at least once"
    return call.output_structure.build(outputs), form.structure.build(final)


# mypy takes the function for one of a layer, whose type `outside_graphs` would show in an error.
_scan_outside_graphs: Any = outside_graphs(
    _scan, "scan calls `step` as often as their numbers say", lambda step: ("a call of scan", "")
)


class _Form(NamedTuple):
    """What is known of a pytree that holds something for each sequence.

    Args:
        structure: the pytree without its leaves.
        leaves: its leaves with their paths, such as `['name'][0]`.
        axes: the axis of the sequences in each leaf.
    """

    structure: PytreeStructure
    leaves: list[tuple[str, Any]]
    axes: list[int]


_STATES = (RNNState, LSTMState)


def _form_of(subject: str, tree: object, number: int) -> _Form:
    """Return the form of a pytree if each leaf has something for each of a number of sequences, else raise."""
    if tree is None:  # because it may stand for zeros elsewhere
        require_tensor(subject, tree)
    form = _Form(PytreeStructure(tree, SequenceBatch), _leaves_but_none(tree, SequenceBatch), _axes_of(tree))
    for (path, leaf), axis in zip(form.leaves, form.axes, strict=True):
        if isinstance(leaf, SequenceBatch):
            if len(leaf) != number:
                must = f"have {counted(number, 'sequence')}, as many as `sequences`"
                raise complaint(SeqbatchValueError, f"{subject}{path}", must, len(leaf))
            continue
        shape = tuple(require_tensor(f"{subject}{path}", leaf).shape)
        if shape[axis : axis + 1] != (number,):
            must = f"have size {number} in dimension {axis}, one for each sequence"
            raise complaint(SeqbatchValueError, f"{subject}{path}", must, f"shape {shape}")
    return form


def _leaves_but_none(tree: object, leaf_type: type[Any] | tuple[type[Any], ...]) -> list[tuple[str, Any]]:
    return [pair for pair in leaves_by_path(tree, leaf_type) if pair[1] is not None]


def _axes_of(tree: object) -> list[int]:
    """Return the axis of the sequences in each leaf of a pytree: the third in states of recurrent layers."""
    axes: list[int] = []
    for _, part in _leaves_but_none(tree, (SequenceBatch, *_STATES)):
        axes += [2] * len(leaves_by_path(part, SequenceBatch)) if isinstance(part, _STATES) else [0]
    return axes


class _Constants:
    """What each sequence keeps through its steps, for the running sequences: views of what is sorted once."""

    def __init__(self, form: _Form, lengths: Lengths) -> None:
        self._form = form
        self._running = len(lengths)
        sorted_structures: dict[Lengths, Lengths] = {}

        def in_order(leaf: Any, axis: int) -> Any:
            if isinstance(leaf, Tensor):
                return leaf.index_select(axis, lengths.on(leaf.device).order)
            chosen = leaf[lengths.order_list]
            # Batches that share a structure go on sharing it, with the plans computed from it.
            return SequenceBatch(chosen.values, sorted_structures.setdefault(leaf.structure, chosen.structure))

        pairs = zip(form.leaves, form.axes, strict=True)
        self._leaves = [in_order(leaf, axis) for (_, leaf), axis in pairs]
        self._tree = form.structure.build(self._leaves)

    def of_running(self, running: int) -> Any:
        """Return the pytree for the first sequences; never more of them than in the call before."""
        if running < self._running:
            prefixes: dict[Lengths, Lengths] = {}

            def narrow(leaf: Any, axis: int) -> Any:
                if isinstance(leaf, Tensor):
                    return leaf.narrow(axis, 0, running)
                if leaf.structure not in prefixes:
                    prefixes[leaf.structure] = leaf.structure.prefix(running)
                structure = prefixes[leaf.structure]
                return SequenceBatch(leaf.values.narrow(0, 0, structure.total), structure)

            # From the last views and not from the whole, because each backward pass then fills only their size.
            self._leaves = list(map(narrow, self._leaves, self._form.axes))
            self._tree = self._form.structure.build(self._leaves)
            self._running = running
        return self._tree


class _StepCall:
    """Calls the step: from leaves to pytrees and back, with checks of what it returns."""

    def __init__(self, step: Callable[..., Any], form: _Form, constants: _Constants | None) -> None:
        self._step, self._form, self._constants = step, form, constants
        self._returned = "step(inputs, state)" if constants is None else "step(inputs, state, constants)"
        self._time = 0
        self._versions: list[list[int]] = []
        # What is known after the first call.
        self.output_structure: PytreeStructure | None = None
        self._first: list[_FirstOutput] = []

    def __call__(self, inputs: Tensor, state: Parts) -> tuple[list[Any], Parts]:
        running = inputs.shape[0]
        arguments = [inputs, self._form.structure.build(state)]
        if self._constants is not None:
            arguments.append(self._constants.of_running(running))
        try:
            result = self._step(*arguments)
        except Exception as error:
            error.add_note(f"while `step` ran on {counted(running, 'sequence')} at time step {self._time}")
            raise
        if not (isinstance(result, tuple) and len(result) == 2):
            raise self._complaint(SeqbatchTypeError, "", "be a pair (output, state)", type_name(result), self._remedy())
        outputs, new = self._outputs_of(result[0], running), self._state_of(result[1], state)
        self._time += 1
        return outputs, new

    def _state_of(self, tree: object, before: Parts) -> Parts:
        """Return the leaves of the state after a step if they are like those before it, else raise."""
        leaves = self._leaves_in(self._form.structure, tree, "[1]", "`state`")
        for (path, _), leaf, old in zip(self._form.leaves, leaves, before, strict=True):
            if not isinstance(leaf, Tensor):
                raise self._complaint(SeqbatchTypeError, f"[1]{path}", "be a Tensor", type_name(leaf))
            if leaf.shape != old.shape:
                must, shape = f"have shape {tuple(old.shape)}, as before the step", tuple(leaf.shape)
                raise self._complaint(SeqbatchValueError, f"[1]{path}", must, shape)
            if leaf.dtype is not old.dtype and not autocasts(leaf.device):
                must = f"have dtype {old.dtype}, as before the step"
                raise self._complaint(SeqbatchValueError, f"[1]{path}", must, leaf.dtype)
        return tuple(leaves)

    def _outputs_of(self, tree: object, running: int) -> list[Any]:
        """Return the leaves of an output if they fit the running sequences and the first output, else raise."""
        if self.output_structure is None:
            leaf_types = (SequenceBatch, State)
            self.output_structure = PytreeStructure(tree, leaf_types)
            paths = [f"[0]{path}" for path, _ in _leaves_but_none(tree, leaf_types)]
            leaves = self.output_structure.leaves_in(tree)
            self._first = [self._describe(*pair, running) for pair in zip(paths, leaves, strict=True)]
        else:
            leaves = self._leaves_in(self.output_structure, tree, "[0]", "the first output")
        versions = []
        for i, (leaf, first) in enumerate(zip(leaves, self._first, strict=True)):
            # Fast path, because the full check takes as long as a small operation.
            is_alike = isinstance(leaf, Tensor) and leaf.shape == (running, *first.features)
            if not is_alike or leaf.dtype is not first.dtype:
                self._require_like(first, leaf, running)
            if _values_of(leaf).is_inference():  # a copy, because it does not count modifications
                leaves[i] = leaf.clone()
            versions.append(_version_of_output(leaf))
        self._versions.append(versions)
        return leaves

    def _require_like(self, first: "_FirstOutput", leaf: Any, running: int) -> None:
        """Raise unless an output has a row for each running sequence, and the features and dtype of the first."""
        found = self._describe(first.place, leaf, running)
        for what, one, wanted in zip(("", "features", "dtype"), found, first, strict=True):
            if one != wanted:
                raise self._complaint(SeqbatchValueError, first.place, f"have {what} {wanted}, as at time step 0", one)

    def _describe(self, place: str, leaf: Any, running: int) -> "_FirstOutput":
        """Return the features and the dtype of an output if it has a row for each running sequence, else raise."""
        if isinstance(leaf, SequenceBatch):
            if len(leaf) != running:
                must = f"have {counted(running, 'sequence')}, one for each row of `inputs`"
                raise self._complaint(SeqbatchValueError, place, must, len(leaf))
            return _FirstOutput(place, tuple(leaf.feature_shape), leaf.dtype)
        if not isinstance(leaf, Tensor):
            raise self._complaint(SeqbatchTypeError, place, "be a Tensor or a SequenceBatch", type_name(leaf))
        shape = tuple(leaf.shape)
        if shape[:1] != (running,):
            must = f"have size {running} in dimension 0, as `inputs`"
            raise self._complaint(SeqbatchValueError, place, must, f"shape {shape}")
        return _FirstOutput(place, shape[1:], leaf.dtype)

    def _leaves_in(self, structure: PytreeStructure, tree: object, place: str, wanted: str) -> list[Any]:
        try:
            return structure.leaves_in(tree)
        except ValueError as error:
            must = f"have the structure of {wanted}"
            remedy = f"{error} {self._remedy()}".rstrip()
            raise self._complaint(SeqbatchTypeError, place, must, type_name(tree), remedy) from None

    def _remedy(self) -> str:
        """Return what to call for a cell, which returns no output besides its state."""
        is_cell = isinstance(self._step, nn.RNNCellBase)
        return "For a cell of PyTorch call encode_with_state(cell, sequences, state)." if is_cell else ""

    def require_unmodified(self, steps: list[list[Any]]) -> None:
        """Raise if an output was modified in place after the step that returned it."""
        for time, (leaves, versions) in enumerate(zip(steps, self._versions, strict=True)):
            if [_version_of_output(leaf) for leaf in leaves] != versions:
                must = "not be modified in place by a later step"
                found = f"that of time step {time}, which was"
                remedy = "Compute the next state out of place, or return a clone of the output."
                raise complaint(SeqbatchError, f"{self._returned}[0]", must, found, remedy)

    def _complaint(
        self, error: type[SeqbatchError], place: str, must: str, found: object, remedy: str = ""
    ) -> SeqbatchError:
        found = f"{found}, at time step {self._time}"
        return complaint(error, f"{self._returned}{place}", must, found, remedy)


class _FirstOutput(NamedTuple):
    """What every output must be like: its place in what the step returns, its features and its dtype."""

    place: str
    features: tuple[int, ...]
    dtype: torch.dtype


def _values_of(leaf: Tensor | SequenceBatch) -> Tensor:
    return leaf.values if isinstance(leaf, SequenceBatch) else leaf


def _version_of_output(leaf: Tensor | SequenceBatch) -> int:
    values = _values_of(leaf)
    return 0 if values.is_inference() else version_of(values)
