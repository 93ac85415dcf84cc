"""Export to ONNX, with its own nodes for recurrent layers: `pip install seqbatch[onnx]`."""

from seqbatch.onnx._export import export

__all__ = ["export"]
