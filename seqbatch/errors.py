"""The errors of seqbatch: one root, and children that are also the built-in errors they refine."""


class SeqbatchError(Exception):
    """Root of every error that seqbatch raises by itself."""


class SeqbatchValueError(SeqbatchError, ValueError):
    """An argument of the right type with a value that cannot be used."""


class SeqbatchTypeError(SeqbatchError, TypeError):
    """An argument of a type that cannot be used."""


class SeqbatchIndexError(SeqbatchError, IndexError):
    """An index of a sequence that is not in the batch or the state."""


class UnsupportedLayerError(SeqbatchTypeError):
    """A layer that no encoder handles, or one that keeps no state where a state is asked for."""
