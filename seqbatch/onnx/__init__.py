"""Export to ONNX, with its own nodes for recurrent layers: `pip install seqbatch[onnx]`."""

try:
    from seqbatch.onnx._export import export
except ModuleNotFoundError as error:
    remedy = 'Install what seqbatch.onnx needs: pip install "seqbatch[onnx]"'
    raise ModuleNotFoundError(f"{error}. {remedy}", name=error.name) from error

__all__ = ["export"]
