"""The laws as functions for authors of encoders, and Hypothesis strategies: `pip install "seqbatch[testing]"`."""

try:
    from seqbatch.testing._bits_law import check_bits
    from seqbatch.testing._check_cross_attention import check_cross_attention
    from seqbatch.testing._check_encoder import check_encoder
    from seqbatch.testing._laws import check_alone, check_empty, check_lengths, check_order, check_stepwise
    from seqbatch.testing._memory_law import check_memory
    from seqbatch.testing._padding_law import check_padding
    from seqbatch.testing._side_effects import check_called_as_itself, check_refused, check_unmodified
    from seqbatch.testing._strategies import lengths, maker, sequences
except ModuleNotFoundError as _error:
    _remedy = 'Install what seqbatch.testing needs: pip install "seqbatch[testing]"'
    raise ModuleNotFoundError(f"{_error}. {_remedy}", name=_error.name) from _error

__all__ = [
    "check_alone",
    "check_bits",
    "check_called_as_itself",
    "check_cross_attention",
    "check_empty",
    "check_encoder",
    "check_lengths",
    "check_memory",
    "check_order",
    "check_padding",
    "check_refused",
    "check_stepwise",
    "check_unmodified",
    "lengths",
    "maker",
    "sequences",
]
