"""check_cross_attention: the laws for a layer that attends to another batch, on lengths that Hypothesis draws."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._encode import encode
from seqbatch.testing._check_encoder import broken_law
from seqbatch.testing._comparison import assert_alike, gradients
from seqbatch.testing._memory_law import peak_by_step
from seqbatch.testing._oracle import Sequences
from seqbatch.testing._side_effects import CALL_THE_LAYER, copied, sevens_like, submodules_called, watch
from seqbatch.testing._strategies import PATTERNS, lengths, make_all, maker

# From a layer, one sequence and its memory to its output.
AloneWithMemory = Callable[[Any, Tensor, Tensor], Tensor]
_PairLaw = Callable[[nn.Module, Sequences, Sequences], None]


def call_with_memory(layer: nn.Module, query: Tensor, memory: Tensor) -> Tensor:
    """Call the layer on one sequence and its memory: the default oracle."""
    if isinstance(layer, nn.MultiheadAttention):
        attended: Tensor = layer(query, memory, memory)[0]
        return attended
    output: Tensor = layer(query, memory)
    return output


def check_cross_attention(
    layer: nn.Module,
    features: tuple[int, ...] = (),
    memory_features: tuple[int, ...] = (),
    *,
    alone: AloneWithMemory = call_with_memory,
    times: float | None = 50,
    examples: int = 10,
) -> None:
    """Check that the encoder of a layer that attends to memory obeys the laws, as `check_encoder`.

    The laws are Alone, Order, Padding of both batches, Empty (sequences of either batch), Lengths, No surprise (hooks
    of the layer), Errors (nothing is modified) and Memory. Where memory is empty, results and gradients must be finite,
    and the oracle is not run.

    Args:
        layer: the layer, in double precision and without random numbers, as for `check_encoder`.
        features: the shape of one step of the queries.
        memory_features: the shape of one step of memory.
        alone: the oracle, `(layer, query, memory) -> output`; by default it calls the layer.
        times: the limit of the law Memory: the peak memory per step of 511 pairs of one step, with a pair of 512 and 1
            steps and one of 1 and 512, relative to that of these two alone. None skips that law.
        examples: the number of lists of lengths that are drawn for each law and pattern.

    Raises:
        AssertionError: a law is broken, or its check raised, as for `check_encoder`.
        SeqbatchTypeError: the layer cannot be copied.

    Source: Hypothesis, `hypothesis.given`.

    >>> check_cross_attention(nn.MultiheadAttention(4, 2).double(), (4,), (4,), examples=1)
    """
    layer = copied(layer)
    dtypes = (weight.dtype for weight in layer.parameters() if weight.is_floating_point() or weight.is_complex())
    dtype = next(dtypes, torch.float64)
    make, make_memory = maker(features, dtype), maker(memory_features, dtype)
    for name, law in _laws_with_memory(alone).items():
        for pattern in PATTERNS:
            _check_pair_law(layer, name, law, pattern, make, make_memory, examples)
    if times is not None:
        try:
            check_peak_with_memory(copied(layer), make, make_memory, times=times)
        except Exception as error:
            raise broken_law(layer, "Memory", "", error) from error


def _laws_with_memory(alone: AloneWithMemory) -> dict[str, _PairLaw]:
    return {
        "Alone": lambda layer, xs, ms: check_alone_with_memory(layer, xs, ms, alone=alone),
        "Order": lambda layer, xs, ms: check_order_with_memory(layer, xs, ms, [*reversed(range(len(xs)))]),
        "Padding": lambda layer, xs, ms: check_padding_with_memory(layer, xs, ms),
        "Empty": check_empty_with_memory,
        "No surprise": lambda layer, xs, ms: check_hooks_with_memory(layer, xs, ms, alone=alone),
        "Errors (nothing is modified)": check_unmodified_with_memory,
    }


def _check_pair_law(
    layer: nn.Module,
    name: str,
    law: _PairLaw,
    pattern: str,
    make: Callable[[int], Tensor],
    make_memory: Callable[[int], Tensor],
    examples: int,
) -> None:
    """Check one law on drawn lengths of queries, of one pattern, and of memory."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.nested_given],
    )
    @given(lengths_of_pairs(lengths(pattern)))
    def run(drawn: tuple[list[int], list[int]]) -> None:
        queries, memory = make_all(make, drawn[0]), make_all(make_memory, drawn[1])
        try:
            law(copied(layer), queries, memory)
        except Exception as error:
            where = f" on sequences of {drawn[0]} steps and memory of {drawn[1]} steps"
            raise broken_law(layer, name, where, error) from error

    run()


def lengths_of_pairs(drawn: st.SearchStrategy[list[int]]) -> st.SearchStrategy[tuple[list[int], list[int]]]:
    """Return a strategy for the lengths of queries, as drawn, and as many of memory; often both are the same."""
    return drawn.flatmap(
        lambda counts: st.tuples(
            st.just(counts),
            st.lists(st.integers(0, 7), min_size=len(counts), max_size=len(counts)) | st.just(counts),
        )
    )


def check_alone_with_memory(
    layer: nn.Module,
    queries: Sequences,
    memory: Sequences,
    *,
    alone: AloneWithMemory = call_with_memory,
    with_empty_memory: bool = False,
) -> None:
    """Check the law Alone: outputs and gradients, those of pairs with empty memory only if asked for."""
    outputs = encode(layer, queries, memory)
    assert [len(output) for output in outputs] == [len(query) for query in queries], "lengths must be those of queries"
    there = [i for i, pair in enumerate(zip(queries, memory, strict=True)) if _both(*pair, with_empty_memory)]
    found = [outputs[i] for i in there]
    wanted = [alone(layer, queries[i].clone(), memory[i].clone()) for i in there]
    assert_alike(found, wanted)
    sources = [*queries, *memory, *layer.parameters()]
    assert_alike(gradients(found, sources), gradients(wanted, sources), "of gradients")


def _both(query: Tensor, memory: Tensor, with_empty_memory: bool) -> bool:
    return len(query) > 0 and (with_empty_memory or len(memory) > 0)


def check_order_with_memory(layer: nn.Module, queries: Sequences, memory: Sequences, order: list[int]) -> None:
    """Check the law Order: permuting queries and memory permutes the outputs."""
    outputs = encode(layer, queries, memory)
    permuted = encode(layer, [queries[i] for i in order], [memory[i] for i in order])
    assert_alike(permuted, [outputs[i] for i in order])


def check_padding_with_memory(
    layer: nn.Module, queries: Sequences, memory: Sequences, *, poison: float = float("nan"), **options: Any
) -> None:
    """Check the law Padding: neither padding of either batch nor another pair reaches a result or a gradient.

    Args:
        layer: the layer.
        queries: leaves that require gradients.
        memory: as many leaves that require gradients.
        poison: the value of the padding that both are read from.
        options: `batch_first` and `padding_side`, those of the padded tensors.
    """
    options = {"batch_first": True, "padding_side": "right", **options}
    outputs, back = _there_and_back(layer, queries, memory)
    if queries:
        padded = [_poisoned(sequences, poison, options) for sequences in (queries, memory)]
        batches = [
            SequenceBatch.from_padded(one, [*map(len, sequences)], **options)
            for one, sequences in zip(padded, (queries, memory), strict=True)
        ]
        found = encode(layer, *batches)
        assert_alike(found.to_sequences(), outputs)
        for one, batch, wanted in zip(gradients([*found], padded), batches, back, strict=True):
            read = SequenceBatch.from_padded(one, batch.lengths, **options)
            assert_alike(read.to_sequences(), wanted, "of gradients")
            padding = ~batch.mask(total_length=batch.max_length + 2, **options)
            assert not one[padding].any(), "a gradient reaches padding"
    _check_neighbours_with_memory(layer, queries, memory, outputs, back)


def _poisoned(sequences: Sequences, poison: float, options: dict[str, Any]) -> Tensor:
    batch = SequenceBatch.from_sequences(sequences).detach()
    padded = batch.to_padded(padding_value=poison, total_length=batch.max_length + 2, **options)
    return padded.requires_grad_()


def _check_neighbours_with_memory(
    layer: nn.Module, queries: Sequences, memory: Sequences, outputs: list[Tensor], back: tuple[Sequences, Sequences]
) -> None:
    """Fill each query, and each memory, in turn with NaN and infinity; the results of other pairs stay the same."""
    for side, sequences in enumerate((queries, memory)):
        for i in [i for i, sequence in enumerate(sequences) if len(sequence)]:
            for poison in (float("nan"), float("inf")):
                given = [list(queries), list(memory)]
                given[side][i] = torch.full_like(sequences[i], poison).requires_grad_()
                found, found_back = _there_and_back(layer, *given)
                what = f"{poison} in {('sequence', 'memory')[side]} {i} reaches"
                others = [j for j in range(len(queries)) if j != i]
                assert_alike([found[j] for j in others], [outputs[j] for j in others], f"{what} outputs of others")
                for one, other in zip(found_back, back, strict=True):
                    assert_alike([one[j] for j in others], [other[j] for j in others], f"{what} gradients of others")


def _there_and_back(
    layer: nn.Module, queries: Sequences, memory: Sequences
) -> tuple[list[Tensor], tuple[Sequences, Sequences]]:
    """Return the outputs, and the gradients of queries and memory."""
    outputs = encode(layer, queries, memory)
    found = gradients(outputs, [*queries, *memory])
    return outputs, (found[: len(queries)], found[len(queries) :])


def check_empty_with_memory(layer: nn.Module, queries: Sequences, memory: Sequences) -> None:
    """Check the law Empty: pairs of which one or both are empty have finite results, and others do not see them."""
    wanted = encode(layer, queries, memory)
    assert all(output.isfinite().all() for output in wanted), "a result is not finite"
    if not queries:
        return
    full, other = queries[0], memory[0]
    more = [(full[:0], other), (full, other[:0]), (full[:0], other[:0])]
    pairs = [*more, *zip(queries, memory, strict=True), *more]
    outputs = encode(layer, [query for query, _ in pairs], [source for _, source in pairs])
    assert_alike(outputs[len(more) : -len(more)], wanted)
    for (query, _), output in zip(pairs, outputs, strict=True):
        assert len(output) == len(query), "the output of a sequence must have its length"
    sources = [*queries, *memory, *layer.parameters()]
    finite = all(one.isfinite().all() for one in [*outputs, *gradients(outputs, sources)])
    assert finite, "a result or a gradient is not finite where memory is empty"
    for number in (3, 0):
        nothing = [SequenceBatch(one[:0], [0] * number) for one in (full, other)]
        found = encode(layer, *nothing)
        assert found.lengths == (0,) * number, f"the outputs of {number} empty pairs are not empty"
        kinds = [(tuple(one.shape[1:]), one.dtype) for one in (found.values, wanted[0])]
        assert kinds[0] == kinds[1], f"the outputs of {number} empty pairs must have features and dtype {kinds[1]}"


def check_hooks_with_memory(
    layer: nn.Module, queries: Sequences, memory: Sequences, *, alone: AloneWithMemory = call_with_memory
) -> None:
    """Check the law No surprise: hooks of the layer run, what they return counts, and its submodules are called."""
    watched = copied(layer)
    plain, called = submodules_called(watched, lambda: encode(watched, queries, memory))
    entered = []
    watched.register_forward_pre_hook(lambda module, args: entered.append(module))
    watched.register_forward_hook(lambda module, args, output: sevens_like(output))
    hooked = encode(watched, queries, memory)
    pairs = [pair for pair in zip(queries, memory, strict=True) if _both(*pair, False)]
    if pairs:
        assert entered, f"a hook before the layer must run at least once; {CALL_THE_LAYER}"
        assert all(module is watched for module in entered), "a hook is given another layer"
        replaced = [torch.full_like(output, 7) for output in plain]
        assert_alike(hooked, replaced, "what a hook returns must count for every sequence")
        wanted = submodules_called(watched, lambda: alone(watched, *pairs[0]))[1]
        assert called == wanted, f"the layers in it that run must be {sorted(wanted)}; got {sorted(called)}"


def check_unmodified_with_memory(layer: nn.Module, queries: Sequences, memory: Sequences) -> None:
    """Check the law Errors: queries, memory and the layer are not modified."""
    batches = [SequenceBatch.from_sequences(sequences) for sequences in (queries, memory)]
    check = watch(layer, queries, None, *memory, *(batch.values for batch in batches))
    encode(layer, queries, memory)
    encode(layer, *batches)  # without a copy, unlike lists
    check()


def check_peak_with_memory(
    layer: nn.Module,
    make: Callable[[int], Tensor],
    make_memory: Callable[[int], Tensor],
    *,
    times: float,
    ones: int = 511,
    longest: int = 512,
) -> None:
    """Check the law Memory: memory grows with the pairs of steps, and not with batch x longest x longest."""

    def peak(queries: list[int], memory: list[int]) -> float:
        source = SequenceBatch(make_memory(sum(memory)), memory)
        batch = SequenceBatch(make(sum(queries)), queries)
        found = peak_by_step(layer, batch, lambda layer, batch: (encode(layer, batch, source), None))
        return found * sum(queries) / (sum(queries) + sum(memory))

    skewed = [longest, 1]
    found = peak([*[1] * ones, *skewed], [*[1] * ones, *skewed[::-1]]) / peak(skewed, skewed[::-1])
    what = "times what the longest sequences take by themselves, by the step"
    assert found <= times, f"a peak of {found:.1f} {what}; at most {times} are right"
