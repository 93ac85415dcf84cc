"""Settings of all tests: what is slow, and how many examples Hypothesis tries.

Folders are named after what they test: `tests/ops` tests `seqbatch/_ops`, and `tests/onnx` tests `seqbatch/onnx`. A
file at the top tests one module of the package, or all of it. These folders have no counterpart in the package:

- `graphs`, `libraries`, `transforms` and `typing`: with compilers, libraries, torch.func and type checkers.
- `benchmarks`: tests of the benchmark.
- `helpers`: modules that tests share. `helpers/reference.py` is the oracle. `helpers/ranks` has scripts that run in
  several processes.

To run one check in seconds, name its folder, file or test: `pytest tests/ops/test_reduce.py -k gradients`. To check
every part of the package in about two minutes, run `pytest -m "not slow" --numprocesses=auto`. HYPOTHESIS_PROFILE
chooses between `dev`, `few` with a quarter of its examples, and `ci` with twice as many.

With a torch that is too old for graphs, tests of graphs and ONNX are left out: the folders in GRAPHS, and the tests
with the mark `graphs`.
"""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from seqbatch._torch import HAS_GRAPHS

settings.register_profile("dev", deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", deadline=None, max_examples=30, derandomize=True, print_blob=True)
settings.register_profile("few", deadline=None, max_examples=4, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))
torch.manual_seed(0)

TESTS = Path(__file__).parent
# Those that compile, start processes, or try many layers. A faster test of the same folder or module stays.
SLOW = {
    TESTS / name
    for name in (
        "benchmarks",
        "checks/test_exporters.py",
        "data/test_data_loader.py",
        "data/test_distributed.py",
        "data/test_resume.py",
        "engines/test_bits.py",
        "graphs",
        "kernels/test_installing.py",
        "kernels/test_loading.py",
        "kernels/test_sanitized.py",
        "libraries",
        "onnx/test_export.py",
        "onnx/test_layers.py",
        "onnx/test_steps.py",
        "test_examples.py",
        "testing/test_kinds_of_layers.py",
        "testing/test_plugin_example.py",
        "testing/test_right_and_wrong_layers.py",
        "typing",
    )
}
# Those whose coverage is not measured, but for the tests named here. Where PyTorch's compiler runs, measuring takes a
# third of the time, and other tests run the same lines.
UNMEASURED: dict[Path, set[str]] = {
    TESTS / "graphs" / "test_compile.py": {"test_autocast_gives_the_dtypes_that_it_gives_without_a_graph"},
    TESTS / "graphs" / "test_export.py": set(),
    TESTS / "graphs" / "test_gradients.py": set(),
    TESTS / "graphs" / "test_operators.py": {
        "test_weights_of_other_sizes_than_those_of_a_projection_reach_no_kernel",
        "test_the_expansion_of_rows_passes_the_checks_of_torch",
        "test_lengths_that_a_graph_could_not_look_at",
        "test_a_layer_returns_what_it_returns_without_a_graph",
        "test_only_an_lstm_has_a_projection",
    },
    TESTS / "graphs" / "test_steps.py": {
        "test_they_are_exported_for_all_lengths",
        "test_what_a_graph_refuses",
        "test_a_tensor_as_a_bound_is_refused_in_an_export",
    },
    TESTS / "onnx" / "test_steps.py": {"test_what_does_not_fit_stops_the_run"},
}
# Those whose tests all make graphs, or export them.
GRAPHS = {TESTS / name for name in ("graphs", "onnx")}


def pytest_configure() -> None:
    if missing := [str(path) for path in SLOW | GRAPHS | UNMEASURED.keys() if not path.exists()]:
        raise pytest.UsageError(f"tests/conftest.py names what is not there: {missing}")


def is_one_of(paths: set[Path], path: Path) -> bool:
    """Return True if a file, or a folder it is in, is one of these."""
    return not paths.isdisjoint({path, *path.parents})


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # Collecting a file imports it, and the other libraries that it tests take seconds.
    is_left_out = config.option.markexpr == "not slow" and is_one_of(SLOW, collection_path)
    return True if is_left_out or (not HAS_GRAPHS and is_one_of(GRAPHS, collection_path)) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if is_one_of(SLOW, item.path):
            item.add_marker("slow")
        if item.path in UNMEASURED and item.name.partition("[")[0] not in UNMEASURED[item.path]:
            item.add_marker("no_cover")
    # First what takes longest, so that no process waits for it at the end.
    items.sort(key=lambda item: item.path.name != "test_sanitized.py")
    if not HAS_GRAPHS:
        left_out = [item for item in items if item.get_closest_marker("graphs")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
