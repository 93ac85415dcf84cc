"""Tests of layers of several kinds: each kind by lengths of each pattern, which drawing the kind too would not give."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import PATTERNS


def for_each_kind(
    name: str,
    kinds: Mapping[str, st.SearchStrategy[Any]],
    *,
    fewer: int = 1,
    **others: st.SearchStrategy[Any],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test with drawn `lengths` of each of the six patterns and a layer of each kind, as the argument `name`.

    All kinds share the examples that a test of one pattern has, or a part of them, but each has three at least, the
    first of which is always the simplest there is.
    """
    examples = max(3, settings().max_examples // len(kinds) // fewer)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("kind", kinds)
        @pytest.mark.parametrize("pattern", PATTERNS)
        @settings(max_examples=examples)
        @given(data=st.data())
        def run(pattern: str, kind: str, data: st.DataObject) -> None:
            lengths = data.draw(PATTERNS[pattern], label="lengths")
            drawn = {key: data.draw(other, label=key) for key, other in {name: kinds[kind], **others}.items()}
            test(lengths=lengths, **drawn)

        run.__name__ = test.__name__
        run.__doc__ = test.__doc__
        decorated: Callable[..., None] = run
        return decorated

    return decorate
