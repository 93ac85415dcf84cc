"""Conversions: the methods of SequenceBatch that convert from and to other layouts.

A conversion is one gather, and its backward pass is another, which can be differentiated again.
"""

from seqbatch.conversions._from import FromLayouts
from seqbatch.conversions._to import ToLayouts

__all__ = ["FromLayouts", "ToLayouts"]
