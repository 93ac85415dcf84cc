"""The layout of the package: which file may import which, what is public, and what importing changes: nothing."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from house import files_of, imported_files, imports, levels, top_modules
from torch import nn

import seqbatch
import seqbatch.data
import seqbatch.layers
import seqbatch.onnx
import seqbatch.testing

PACKAGE, ROOT = Path(seqbatch.__file__).parent, Path(__file__).parents[1]

# What a user may import. All else at the top of the package is private, and says so by an underscore.
PUBLIC = {"__init__", "__main__", "data", "errors", "layers", "onnx", "py.typed", "testing"}
MOST_ENTRIES, MOST_LEVELS = 18, 10
FILES = files_of(PACKAGE)


def test_the_top_of_the_package_is_small() -> None:
    entries = {path.stem if path.suffix == ".py" else path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert len(entries) <= MOST_ENTRIES
    assert {entry for entry in entries if not entry.startswith("_") or entry.startswith("__")} == PUBLIC


def test_modules_have_few_levels() -> None:
    assert max(levels(top_modules(FILES)).values()) <= MOST_LEVELS


def names_in(path: Path) -> Iterator[str]:
    """Yield the functions and classes that a file defines; `_` is the name of those that a decorator registers."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name != "_":
            yield node.name


def test_no_name_is_used_twice() -> None:
    """A name stands for one thing: a module, a function or a class."""
    # These define the same functions on purpose: the two halves of `_ops`, and the engines, each with its `run`.
    places: dict[str, set[str]] = {}
    for file, path in FILES.items():
        places.setdefault(file.split(".")[-1].strip("_"), set()).add(file)
        for name in set(names_in(path)):
            is_engine = file.startswith("_engines.") and name in ("can_run", "run")
            places.setdefault(name, set()).add("engines" if is_engine else file.replace("_ops.traced", "_ops.eager"))
    assert {name: sorted(files) for name, files in places.items() if len(files) > 1} == {}


def test_the_package_leaves_out_what_only_some_users_want() -> None:
    assert {"data", "onnx", "testing"} & {
        file.split(".")[0] for file in imported_files(FILES["__init__"], FILES)
    } == set()


def test_no_imports_go_round_in_circles() -> None:
    graph = {file: imported_files(path, FILES) for file, path in FILES.items()}
    assert len([*TopologicalSorter(graph).static_order()]) == len(FILES)


def test_containers_are_imported_by_containers_only() -> None:
    found = {file for file, path in FILES.items() if "_encoders.containers" in imported_files(path, FILES)}
    assert found == {"_encoders", "layers.residual", "layers.two_way"}


def test_runtime_dependencies_are_attrs_and_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[^\w-]", dependency)[0] for dependency in project["dependencies"]]
    assert names == ["attrs", "torch"]
    used = {file: {name.split(".")[0] for name in imports(path)} for file, path in FILES.items()}
    everywhere = sys.stdlib_module_names | {*names, "seqbatch"}
    extras = {"testing": {"hypothesis"}, "onnx": {"onnx", "onnxscript"}}
    for file, modules in used.items():
        assert modules - everywhere <= extras.get(file.split(".")[0], set()), file


@pytest.mark.parametrize(
    "name",
    [
        "seqbatch",
        "seqbatch.data",
        "seqbatch._engines",
        "seqbatch.layers",
        "seqbatch.onnx",
        "seqbatch.testing",
    ],
)
def test_what_is_public_is_listed_in_order(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_all_that_is_public_is_listed() -> None:
    bound = {name for name, value in vars(seqbatch).items() if not isinstance(value, types.ModuleType)}
    assert {name for name in bound if not name.startswith("_")} == set(seqbatch.__all__)
    errors = importlib.import_module("seqbatch.errors")
    assert {name for name in vars(errors) if not name.startswith("_")} <= set(seqbatch.__all__)


def public() -> Iterator[tuple[str, Any]]:
    """Yield everything that users may call or read, with its name."""
    for module in (seqbatch, seqbatch.data, seqbatch.layers, seqbatch.onnx, seqbatch.testing):
        for name in module.__all__:
            value = getattr(module, name)
            yield name, value
            for member, inner in inspect.getmembers(value) if isinstance(value, type) else []:
                function = inspect.unwrap(getattr(inner, "fget", inner))
                here = str(getattr(function, "__module__", "")).startswith("seqbatch")
                if here and not member.startswith("_") and not is_told_by_torch(value, member):
                    yield f"{name}.{member}", inner


def is_told_by_torch(value: type, member: str) -> bool:
    """Return True if PyTorch documents a member of a layer; `forward` is documented by the layer itself."""
    bases = [base for base in value.__mro__ if base.__module__.startswith("torch.")]
    return issubclass(value, nn.Module) and member != "forward" and any(hasattr(base, member) for base in bases)


@pytest.mark.parametrize(("name", "value"), [pytest.param(*one, id=one[0]) for one in public()])
def test_docstrings_tell_of_every_argument(name: str, value: Any) -> None:
    text = inspect.getdoc(value)
    assert text
    assert text.splitlines()[0].endswith(".")
    if not callable(value) or (isinstance(value, type) and issubclass(value, Exception)):
        return
    _, _, section = text.partition("\nArgs:\n")
    told = re.findall(r"^    (\w+): ", section.split("\n\n")[0], re.MULTILINE)
    taken = [
        argument.name
        for argument in inspect.signature(value).parameters.values()
        if argument.name != "self" and argument.name not in ("args", "kwargs")  # those of the method of torch it names
    ]
    assert told == taken


def shown() -> Iterator[tuple[str, Any]]:
    """Yield everything that must have an example: what can be called, on any machine."""
    for name, value in public():
        is_error = isinstance(value, type) and issubclass(value, Exception)
        # A layer is called in the example of its class.
        if callable(value) and not is_error and name != "SequenceBatch.cuda" and not name.endswith(".forward"):
            yield name, value


@pytest.mark.parametrize(("name", "value"), [pytest.param(*one, id=one[0]) for one in shown()])
def test_docstrings_have_an_example(name: str, value: Any) -> None:
    assert "\n>>> " in str(inspect.getdoc(value))


def test_there_is_something_public() -> None:
    names = [name for name, _ in public()]
    for name in ("encode", "SequenceBatch.to_padded", "SequenceBatch.lengths", "LSTMState.last", "RNNState.select"):
        assert name in names


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=str(path.relative_to(folder.parent)))
        for folder in (PACKAGE, ROOT / "tests", ROOT / "benchmarks", ROOT / "packages")
        for path in sorted(folder.rglob("*.py"))
    ],
)
def test_every_file_opens_with_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert text.startswith('"""')
    assert (ast.get_docstring(ast.parse(text)) or "").splitlines()[0].endswith((".", ":"))


PROGRAM = """
import random, sys, warnings
import torch, torch.nn.functional, torch.nn.utils.rnn

PLACES = [
    torch, torch.Tensor, torch.nn, torch.nn.functional, torch.nn.utils.rnn, torch.nn.Module, torch.nn.RNNBase,
    torch.nn.LSTM, torch.nn.Sequential, torch.nn.modules.module, torch.autograd, torch.serialization, torch.nested,
]


def state():
    things = [dict(vars(place)) for place in PLACES]
    settings = [torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), random.getstate()]
    return things, [*settings, torch.get_rng_state().tolist(), list(warnings.filters), torch.get_default_device()]


before, settings = state()
safe = set(torch.serialization.get_safe_globals())
import seqbatch

after, settings_after = state()
assert settings == settings_after
assert "torch._dynamo" not in sys.modules, "PyTorch's compiler takes a second to import"
for place, old, new in zip(PLACES, before, after):
    changed = [name for name in {**old, **new} if name not in old or old[name] is not new.get(name, new)]
    assert not changed, f"{place} has changed: {changed}"
added = set(torch.serialization.get_safe_globals()) - safe
assert all(one.__module__ == "seqbatch" for one in added), added
print(sorted(one.__name__ for one in added))
"""


def test_importing_changes_nothing_of_torch_but_what_may_be_loaded() -> None:
    path = [str(PACKAGE.parent)]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {path}\n{PROGRAM}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "['ContainerState', 'LSTMState', 'Lengths', 'RNNState', 'SequenceBatch']\n", done.stderr
