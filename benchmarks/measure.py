"""How it is measured: contenders in turn, in one process, after a check that they agree; medians of many rounds.

Each is called once untimed right before its timed call, so that threads and caches are as warm as in a training loop.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from contenders import Contender, contenders, limit
from torch import Tensor, nn
from workloads import Workload

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
# Seconds that one call of a contender may take; above them it is left out.
PATIENCE = {"opacus": 1.0}


def measure(workload: Workload, kind: str, training: bool, rounds: int, device: str) -> dict[str, Any]:
    """Measure all contenders on a workload.

    Returns:
        milliseconds of each contender and of the matrix products alone, and bytes at the peak of seqbatch and packed.
    """
    torch.manual_seed(0)
    layer = workload.layer(kind, device)
    sequences = workload.sequences(training, device)
    ways = contenders(workload, layer, training)
    taken = check(layer, sequences, ways, training)
    calls: dict[str, Callable[[], Any]] = calls_of(bearable(ways, taken, PATIENCE), layer, sequences, training)
    calls["products"] = limit(workload, GATES[kind], training, device)
    peaks = {name: peak(calls[name]) for name in ("seqbatch", "packed by hand")} if device == "cpu" else {}
    ms = medians(calls, rounds)
    return {"workload": workload.name, "layer": kind, "training": training, "ms": ms, "peaks": peaks}


def run(way: Contender, layer: nn.RNNBase, sequences: list[Tensor], training: bool) -> list[Tensor]:
    """Run one contender: forward, and for training back to the gradients of weights and sequences."""
    if not training:
        with torch.no_grad():
            return way(layer, sequences)
    layer.zero_grad()
    for sequence in sequences:
        sequence.grad = None
    outputs = way(layer, sequences)
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    return outputs


def check(
    layer: nn.RNNBase, sequences: list[Tensor], ways: Mapping[str, Contender], training: bool
) -> dict[str, float]:
    """Raise unless all contenders give what the first other one gives: outputs, and gradients for training.

    Returns:
        seconds that the call of each took, which was its first, and only shows which are far too slow.
    """
    results, taken = [], {}
    for name, way in ways.items():
        start = time.perf_counter()
        outputs = run(way, layer, sequences, training)
        _wait()
        taken[name] = time.perf_counter() - start
        gradients = [source.grad.clone() for source in [*sequences, *layer.parameters()] if source.grad is not None]
        results.append([output.detach().clone() for output in outputs] + gradients)
    for result in results:
        # Sums over all steps are rounded in another order by each, the more so the more steps there are.
        torch.testing.assert_close(result, results[1], rtol=1e-3, atol=1e-3)
    return taken


def bearable(
    ways: Mapping[str, Contender], taken: Mapping[str, float], patience: Mapping[str, float]
) -> dict[str, Contender]:
    """Leave out those that take more seconds than one has patience for."""
    return {name: way for name, way in ways.items() if taken[name] <= patience.get(name, math.inf)}


def calls_of(
    ways: Mapping[str, Contender], layer: nn.RNNBase, sequences: list[Tensor], training: bool
) -> dict[str, Callable[[], Any]]:
    """Bind each contender to its arguments."""
    return {name: partial(run, way, layer, sequences, training) for name, way in ways.items()}


def medians(
    calls: Mapping[str, Callable[..., Any]],
    rounds: int,
    arguments: Callable[[], tuple[Any, ...]] = tuple,
    limits: Mapping[str, int] | None = None,
) -> dict[str, float]:
    """Time all calls in turn, round after round, each after an untimed call of its own.

    Args:
        calls: what to time, by name.
        rounds: how often to time each; two more rounds come before.
        arguments: makes what is passed, anew for every call, and outside of what is timed.
        limits: how many rounds those take part in, by name, that take part in fewer.

    Returns:
        the median of each in milliseconds.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    gc.disable()
    try:
        for i in range(rounds + 2):
            # Each is first in some round, because a call finds in the caches what the call before left there.
            for name in names[i % len(names) :] + names[: i % len(names)]:
                if i < (limits or {}).get(name, rounds) + 2:
                    times[name].append(1000 * _seconds(calls[name], arguments(), arguments()))
    finally:
        gc.enable()
    return {name: statistics.median(taken[2:]) for name, taken in times.items()}


def peak(call: Callable[[], Any]) -> int:
    """Return the bytes of all tensors at the peak of a call."""
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        call()
    recorded: Any = profile.profiler
    events = sorted(recorded.kineto_results.events(), key=lambda event: event.start_ns())
    return max(accumulate(int(event.nbytes()) for event in events if event.name() == "[memory]"))


def _seconds(call: Callable[..., Any], warming: tuple[Any, ...], timed: tuple[Any, ...]) -> float:
    """Time the second of two calls."""
    call(*warming)
    _wait()
    start = time.perf_counter()
    call(*timed)
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
