"""Functions of PyTorch in ONNX where what its exporter writes does other than PyTorch: those of nn.Embedding."""

from typing import Any

from seqbatch.onnx._layout import integer, op


def embedding(weight: Any, ids: Any, *_: Any) -> Any:
    """Run `aten::embedding`; an id out of range stops the run of the file, as one below 0 does in PyTorch."""
    number = op.CastLike(op.Shape(weight, start=0, end=1), ids)
    # To Gather a negative number is a row from the end.
    return op.Gather(weight, op.Where(op.Less(ids, op.CastLike(integer(0), ids)), number, ids))
