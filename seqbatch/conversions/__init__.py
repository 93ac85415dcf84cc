"""Conversions: the methods of SequenceBatch that make it from other layouts and turn it into them.

A conversion is one gather, and its backward pass another, which also stands for gradients of higher order.
"""

from seqbatch.conversions._from import FromLayouts
from seqbatch.conversions._to import ToLayouts

__all__ = ["FromLayouts", "ToLayouts"]
