"""How it is measured: contenders in turn, in one process, after a check that they agree; medians of many rounds."""

import gc
import statistics
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from contenders import Contender, contenders, limit
from torch import Tensor, nn
from workloads import Workload

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
# Between two contenders threads that still spin for the one before go to sleep.
PAUSE = 0.005


def measure(workload: Workload, kind: str, training: bool, rounds: int, device: str) -> dict[str, Any]:
    """Measure all contenders on a workload.

    Returns:
        milliseconds of each contender and of the matrix products alone, and bytes at the peak of seqbatch and packed.
    """
    torch.manual_seed(0)
    layer = workload.layer(kind, device)
    sequences = workload.sequences(training, device)
    ways = contenders(workload)
    check(layer, sequences, ways, training)
    calls: dict[str, Callable[[], Any]] = {
        name: lambda way=way: run(way, layer, sequences, training)  # type: ignore[misc]  # mypy knows no defaults here
        for name, way in ways.items()
    }
    calls["products"] = limit(workload, GATES[kind], training, device)
    peaks = {name: peak(calls[name]) for name in ("seqbatch", "packed by hand")} if device == "cpu" else {}
    return {"workload": workload.name, "kind": kind, "training": training, "ms": medians(calls, rounds), "peaks": peaks}


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


def check(layer: nn.RNNBase, sequences: list[Tensor], ways: dict[str, Contender], training: bool) -> None:
    """Raise unless all contenders give what the first other one gives: outputs, and gradients for training."""
    results = []
    for way in ways.values():
        outputs = run(way, layer, sequences, training)
        gradients = [source.grad.clone() for source in [*sequences, *layer.parameters()] if source.grad is not None]
        results.append([output.detach().clone() for output in outputs] + gradients)
    for result in results:
        # Sums over all steps are rounded in another order by each, the more so the more steps there are.
        torch.testing.assert_close(result, results[1], rtol=1e-3, atol=1e-3)


def medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Time all calls in turn, round after round; the median of each in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    gc.disable()
    names = list(calls)
    for i in range(rounds + 2):
        # Each is first in some round, for whoever follows another finds its leavings in the caches.
        for name in names[i % len(names) :] + names[: i % len(names)]:
            time.sleep(PAUSE)
            start = time.perf_counter()
            calls[name]()
            _wait()
            times[name].append(1000 * (time.perf_counter() - start))
    gc.enable()
    return {name: statistics.median(taken[2:]) for name, taken in times.items()}


def peak(call: Callable[[], Any]) -> int:
    """Give the bytes of all tensors at the peak of a call."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    recorded: Any = profile.profiler
    events = sorted(recorded.kineto_results.events(), key=lambda event: event.start_ns())
    return max(accumulate(int(event.nbytes()) for event in events if event.name() == "[memory]"))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
