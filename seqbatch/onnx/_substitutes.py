"""Functions of PyTorch in ONNX that PyTorch's exporter lacks, or where its result differs from PyTorch."""

from typing import Any

from seqbatch.onnx._layout_nodes import float_node, int_node, ints_node, op, step_nodes, widened_node


def embedding_node(weight: Any, ids: Any, *_: Any) -> Any:
    """Translate `aten::embedding`; an id out of range stops the run of the file, as a negative one does in PyTorch."""
    rows = op.CastLike(op.Shape(weight, start=0, end=1), ids)
    # To Gather a negative number is a row from the end.
    return op.Gather(weight, op.Where(op.Less(ids, op.CastLike(int_node(0), ids)), rows, ids))


def group_norm_node(
    values: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Any:
    """Translate `aten::group_norm`; unlike that of PyTorch's exporter, it also runs if all sequences are empty."""
    wide = widened_node(values)
    size = 1
    for axis in values.shape[1:]:
        size *= int(axis)
    shape = op.Concat(op.Shape(values, start=0, end=1), ints_node(groups, size // groups), axis=0)
    grouped = op.Reshape(wide, shape, allowzero=1)
    centred = op.Sub(grouped, op.ReduceMean(grouped, ints_node(2)))
    variance = op.ReduceMean(op.Mul(centred, centred), ints_node(2))
    deviation = op.Sqrt(op.Add(variance, op.CastLike(float_node(eps), wide)))
    result = op.Reshape(op.Div(centred, deviation), op.Shape(values), allowzero=1)
    if weight is not None:
        result = op.Mul(result, _per_channel_node(weight, wide, len(values.shape)))
    if bias is not None:
        result = op.Add(result, _per_channel_node(bias, wide, len(values.shape)))
    return op.CastLike(result, values)


def _per_channel_node(weight: Any, like: Any, dimensions: int) -> Any:
    """Convert a weight per channel to the dtype and the dimensions of `(total_steps, channels, *features)`."""
    axes = range(1, dimensions - 1)
    return op.CastLike(op.Unsqueeze(weight, ints_node(*axes)) if axes else weight, like)


def repeat_interleave_node(counts: Any, output_size: Any = None) -> Any:
    """Translate `aten::repeat_interleave.Tensor`: for each step the sequence that it is in, from lengths `(batch,)`."""
    return op.Gather(op.NonZero(step_nodes(counts).real), int_node(0), axis=0)
