"""SequenceBatch and states as pytrees, so that torch.export and torch.func see the tensors in them."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils import _pytree

from seqbatch._batch import SequenceBatch
from seqbatch._state import ContainerState, LSTMState, RNNState
from seqbatch._structure.lengths import Lengths


def _flatten_batch(batch: SequenceBatch) -> tuple[list[Any], None]:
    return [batch.values, batch._lengths.tensor], None


def _unflatten_batch(leaves: Iterable[Any], context: None) -> SequenceBatch:
    values, lengths = leaves
    # Tensors of a graph have no numbers to check, and what else stands for a tensor for a while is none.
    if type(values) is type(lengths) is Tensor:
        return SequenceBatch(values, lengths)
    return SequenceBatch._of(values, Lengths.from_tensor(lengths))


def _unflatten_state(kind: type[Any], leaves: Iterable[Any], context: None) -> LSTMState | RNNState:
    tensors = list(leaves)
    made: LSTMState | RNNState = kind(*tensors) if all(type(one) is Tensor for one in tensors) else kind._of(tensors)
    return made


def _register(kind: type[Any], names: list[str], flatten: Any, unflatten: Any) -> None:
    def flatten_with_keys(value: Any) -> tuple[list[tuple[Any, Any]], None]:
        return [(_pytree.GetAttrKey(name), leaf) for name, leaf in zip(names, flatten(value)[0], strict=True)], None

    _pytree.register_pytree_node(
        kind,
        flatten,
        unflatten,
        serialized_type_name=f"seqbatch.{kind.__name__}",
        flatten_with_keys_fn=flatten_with_keys,
    )


_register(SequenceBatch, ["values", "lengths"], _flatten_batch, _unflatten_batch)
_register(RNNState, ["hidden"], lambda state: ([state.hidden], None), partial(_unflatten_state, RNNState))
_register(
    LSTMState,
    ["hidden", "cell"],
    lambda state: ([state.hidden, state.cell], None),
    partial(_unflatten_state, LSTMState),
)
_register(
    ContainerState, ["states"], lambda state: ([state.states], None), lambda leaves, _: ContainerState._of(*leaves)
)
