"""Export to ONNX, with ONNX's nodes for recurrent layers: `pip install "seqbatch[onnx]"`."""

try:
    from seqbatch.onnx._export import export
except ModuleNotFoundError as _error:
    _remedy = 'Install what seqbatch.onnx needs: pip install "seqbatch[onnx]"'
    raise ModuleNotFoundError(f"{_error}. {_remedy}", name=_error.name) from _error

__all__ = ["export"]
