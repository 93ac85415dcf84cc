"""The one module that names what PyTorch does not document: what each name does, and that no other file has any.

A test named `test_x`, for each `x` of `seqbatch._torch`, fails if PyTorch changes what `x` relies on. Its docstring
says what would go wrong in seqbatch.
"""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import types
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from threading import get_ident
from typing import Any

import pytest
import torch
import torch.ao.nn.quantized.dynamic as quantized
from torch import Tensor, func, nn
from torch._dynamo.exc import InternalTorchDynamoError, TorchRuntimeError, Unsupported
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.export import export
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
    register_module_full_backward_pre_hook,
)
from torch.nn.utils import parametrize, prune
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.testing import assert_close
from torch.torch_version import TorchVersion
from torch.utils.flop_counter import FlopCounterMode

import seqbatch.onnx
from seqbatch import SeqbatchError, SequenceBatch, _torch, encode

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
]
PACKAGE = Path(seqbatch.__file__).parent
FILES = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}

# ---------------------------------------------------------------------------------------------- one file, and its tests

# Documented, but left out of the `__all__` of their module.
DOCUMENTED = {"torch.contiguous_format", "torch.jagged", "torch.jit.is_tracing", "torch.strided"}
# Modules without a promise, although their names do not start with an underscore.
UNDOCUMENTED = ("torch.fx.experimental", "torch.ops.aten")
# The keys of `custom_translation_table`, as the documentation of `torch.onnx.export` writes them.
TRANSLATED = {
    "torch.ops.aten.embedding.default",
    "torch.ops.aten.group_norm.default",
    "torch.ops.aten.repeat_interleave.Tensor",
}
# Names of other libraries than PyTorch: of accelerate, of Python's named tuples, and of Python.
# And the end of the names of weights, as the documentation of `nn.LSTM` writes them.
OTHERS = {"_gpu_gather_object", "_old_forward", "_original_forward", "_asdict", "_replace", "_getframe", "_reverse"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def names_of_the_package() -> set[str]:
    """Return every name that the package gives to something itself."""
    found = {part for path in PACKAGE.rglob("*") for part in (path.stem, path.name)} | OTHERS
    for node in (node for tree in FILES.values() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    return found


OWN = names_of_the_package()


def is_undocumented(path: str) -> bool:
    """Return True if a path such as `torch.nn.Linear` has a part that PyTorch does not document."""
    if path in DOCUMENTED | TRANSLATED:
        return False
    if path.startswith(UNDOCUMENTED):
        return True
    holder: Any = torch
    for name in path.split(".")[1:]:
        if is_private(name):
            return True
        if isinstance(holder, types.ModuleType):
            value = vars(holder)[name] if name in vars(holder) else importlib.import_module(f"{holder.__name__}.{name}")
            listed = getattr(holder, "__all__", [name])
            if name not in listed and not isinstance(value, types.ModuleType) and not name.startswith("__"):
                return True
            holder = value
    return False


def imported_from_torch(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the names that a file imports from PyTorch, and what each stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "torch":
                    yield alias.name, alias.name
                    yield (alias.asname, alias.name) if alias.asname else ("torch", "torch")
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "torch":
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def words_in(tree: ast.Module) -> Iterator[str]:
    """Yield the private names in the strings of a file, other than docstrings."""
    owners = (ast.Module, ast.FunctionDef, ast.ClassDef)
    bodies = [node.body[0] for node in ast.walk(tree) if isinstance(node, owners) and node.body]
    docstrings = [body.value for body in bodies if isinstance(body, ast.Expr)]
    parts = [part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            yield from re.findall(r"\.(_[a-z]\w*)", node.value)
            if node not in parts:
                yield from re.findall(r"^_[a-z]\w*$", node.value)


def undocumented_names(tree: ast.Module) -> set[str]:
    """Return what a file names that neither the package nor PyTorch's documentation explains."""
    imported = dict(imported_from_torch(tree))
    found = {path for path in imported.values() if is_undocumented(path)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, *rest = ast.unparse(node).split(".")
            if root not in imported or not all(name.isidentifier() for name in rest):
                found.update([node.attr] if is_private(node.attr) and node.attr not in OWN else [])
                continue
            path = ".".join([imported[root], *rest])
            # A part of a longer path that is documented.
            is_part = any(whole.startswith(f"{path}.") for whole in TRANSLATED)
            found.update([path] if not is_part and is_undocumented(path) else [])
        elif isinstance(node, ast.keyword):
            found.update([node.arg] if node.arg and node.arg.startswith("_") and node.arg not in OWN else [])
    return found | {word for word in words_in(tree) if word not in OWN}


@pytest.mark.parametrize("file", [file for file in FILES if file != "_torch.py"])
def test_no_other_file_names_what_pytorch_does_not_document(file: str) -> None:
    assert undocumented_names(FILES[file]) == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\ntorch._C._len_torch_dispatch_stack()", {"_C", "_len_torch_dispatch_stack"}),
        ("import torch\ntorch._check(True)", {"_check"}),
        ("import torch._dynamo", {"_dynamo"}),
        ("import torch.utils._pytree as trees\ntrees.keystr", {"_pytree", "keystr"}),
        ("from torch.utils import _pytree", {"_pytree"}),
        ("from torch import Tensor, nn\nnn.modules.module._global_forward_hooks", {"_global_forward_hooks"}),
        ("from torch.nn.modules.linear import NonDynamicallyQuantizableLinear", {"NonDynamicallyQuantizableLinear"}),
        ("from torch.fx.experimental.symbolic_shapes import guard_or_false", {"guard_or_false"}),
        ("import torch\ntorch.ops.aten.lift_fresh(made)", {"lift_fresh"}),
        ("import torch\ntorch.full((), 2.0)._cdata, torch.Tensor.data._base", {"_cdata", "_base"}),
        ("held = layer._parameters", {"_parameters"}),
        ("layer._parameters = {}", {"_parameters"}),
        ("hooks = getattr(layer, '_forward_hooks')", {"_forward_hooks"}),
        ("is_there = 'torch._dynamo' in modules", {"_dynamo"}),
        ("said = f'Pass {name}, layer._orig_mod.'", {"_orig_mod"}),
        ("vars(function).update(_dynamo_marked_constant=True)", {"_dynamo_marked_constant"}),
        ("vars(function).update(__prepare_scriptable__=None)", {"__prepare_scriptable__"}),
        ("import torch\nfrom torch.nn.functional import relu\ntorch.compiler.is_compiling(), torch.strided", set()),
        ("import torch\nx = torch.ops.aten.embedding.default, torch.__version__, self._on_device, f'{x}_l0'", set()),
    ],
)
def test_what_counts_as_undocumented(source: str, found: set[str]) -> None:
    assert {name.split(".")[-1] for name in undocumented_names(ast.parse(source))} == found


def test_every_name_has_a_test() -> None:
    names: set[str] = set()
    for node in FILES["_torch.py"].body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names.update(ast.unparse(target) for target in targets)
        names.update([node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else [])
    public = {name for name in names if not name.startswith("_")}
    assert "is_dense" in public
    assert {f"test_{name}" for name in public} - globals().keys() == set()


def fullgraph(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function, or raise where its graph would break."""
    return torch.compile(function, fullgraph=True, backend="eager")


def in_a_process(program: str) -> None:
    """Run a program, which asserts what it shows, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr


class Applied(nn.Module):
    """A module that applies a function, for export."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: Any) -> Any:
        return self.function(*values)


# ------------------------------------------------------------------------------------------------------------- version

TOO_OLD = r"`torch` must be version 2\.13 or newer for {}; got {}\. Upgrade torch, or run the model without a graph\."


def test_HAS_GRAPHS() -> None:  # noqa: N802  # as the constant
    """Else what is traced stops at a line of seqbatch that an old torch cannot trace, without the reason."""
    assert _torch.HAS_GRAPHS is (TorchVersion(torch.__version__) >= "2.13")
    for version, has_graphs in (("2.9.1", False), ("2.12.1+cu130", False), ("2.13.0a0+git1", True), ("3.0.0", True)):
        in_a_process(
            f"import torch\ntorch.__version__ = {version!r}\n"
            f"from seqbatch import _torch\nassert _torch.HAS_GRAPHS is {has_graphs}"
        )


def test_require_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an export to ONNX fails in the middle, without the reason."""
    monkeypatch.setattr(_torch, "HAS_GRAPHS", True)
    _torch.require_graphs("a graph")
    monkeypatch.setattr(_torch, "HAS_GRAPHS", False)
    with pytest.raises(SeqbatchError, match=f"^{TOO_OLD.format('a graph', re.escape(torch.__version__))}$"):
        _torch.require_graphs("a graph")


class Encoded(nn.Module):
    """A model with seqbatch inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return encode(self.layer, SequenceBatch(x, torch.tensor([2, 1]))).values


@pytest.mark.filterwarnings("ignore:.*lift_fresh")
def test_a_torch_that_is_too_old_for_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch, "HAS_GRAPHS", False)
    needs = TOO_OLD.format(r"torch\.compile and torch\.export", re.escape(torch.__version__))
    model, x = Encoded(), torch.ones(3, 2)
    for fullgraph in (True, False):
        torch.compiler.reset()
        with pytest.raises(InternalTorchDynamoError, match=f"^SeqbatchError: {needs}"):
            torch.compile(model, fullgraph=fullgraph, backend="eager")(x)
    for strict in (True, False):
        with pytest.raises(SeqbatchError, match=f"^{needs}$"):
            export(model, (x,), strict=strict)
    with pytest.raises(SeqbatchError, match=f"^{TOO_OLD.format('seqbatch.onnx', re.escape(torch.__version__))}$"):
        seqbatch.onnx.export(model, SequenceBatch(x, [2, 1]), batch_first=True)
    assert_close(model(x), model.layer(x))


# ------------------------------------------------------------------------------------------------------------- tracing


@pytest.mark.graphs
def test_in_a_graph() -> None:
    """Else a graph is specialized on its lengths, or another thread gets symbols for numbers."""
    elsewhere: list[bool] = []

    def ask(x: Tensor) -> Tensor:
        return x + _torch.in_a_graph()

    def ask_elsewhere(x: Tensor) -> Tensor:
        assert torch.compiler.is_compiling()
        with ThreadPoolExecutor(1) as pool:
            elsewhere.append(pool.submit(_torch.in_a_graph).result())
        return x + 1

    x = torch.zeros(2)
    assert fullgraph(ask)(x).tolist() == [1, 1]
    for strict in (True, False):
        assert export(Applied(ask), (x,), strict=strict).module()(x).tolist() == [1, 1]
    export(Applied(ask_elsewhere), (x,))
    assert elsewhere == [False]
    assert ask(x).tolist() == [0, 0]


@pytest.mark.graphs
def test_in_an_export() -> None:
    """Else an error while exporting advises a function outside of the graph, which is not exported."""

    def ask(x: Tensor) -> Tensor:
        return x + _torch.in_an_export()

    x = torch.zeros(2)
    assert fullgraph(ask)(x).tolist() == [0, 0]
    for strict in (True, False):
        assert export(Applied(ask), (x,), strict=strict).module()(x).tolist() == [1, 1]
    assert ask(x).tolist() == [0, 0]


@pytest.mark.graphs
def test_skipped_in_graphs() -> None:
    """Else a graph is specialized by a check, or breaks."""
    seen: list[object] = []

    @_torch.skipped_in_graphs
    def note(value: object) -> None:
        seen.append(value)

    def noted(x: Tensor) -> Tensor:
        note(x)
        return x + 1

    x = torch.zeros(2)
    assert fullgraph(noted)(x).tolist() == [1, 1]
    for strict in (True, False):
        export(Applied(noted), (x,), strict=strict)
    assert seen == []
    noted(x)
    assert seen == [x]


@pytest.mark.graphs
def test_has_known_values() -> None:
    """Else a check reads values that a graph does not know, or synchronizes."""

    def ask(x: Tensor) -> Tensor:
        return x + _torch.has_known_values(x)

    x = torch.zeros(2)
    assert fullgraph(ask)(x).tolist() == [0, 0]
    assert ask(x).tolist() == [1, 1]
    assert not _torch.has_known_values(torch.zeros(2, device="meta"))


@pytest.mark.graphs
def test_known_or_false() -> None:
    """Else a check on sizes that are unknown while tracing raises in PyTorch's words, and no graph is made."""

    def ask(x: Tensor) -> Tensor:
        number = x.nonzero().shape[0]  # known at run time only
        return x + 10 * _torch.known_or_false(number == 3) + _torch.known_or_false(x.shape[0] == 4)

    program = export(Applied(ask), (torch.ones(4),)).module()
    assert program(torch.tensor([0.0, 1.0, 1.0, 1.0])).tolist() == [1, 2, 2, 2]
    assert _torch.known_or_false(1 == 1)


@pytest.mark.graphs
def test_check_size() -> None:
    """Else sizes that are unknown while tracing are never compared, and steps go to the wrong sequences."""

    def check(x: Tensor) -> Tensor:
        _torch.check_size(x.nonzero().shape[0] == 3, "three of them")
        return x + 1

    x = torch.tensor([0.0, 1.0, 1.0, 1.0])
    program = export(Applied(check), (x,)).module()
    for run in (program, check):
        run(x)
        with pytest.raises((RuntimeError, AssertionError), match=r"three of them|Runtime assertion failed"):
            run(torch.ones(4))
    with pytest.raises(RuntimeError, match=r"^three of them$"):
        check(torch.ones(4))


@pytest.mark.graphs
def test_check_size_or() -> None:
    """Else a negative number of steps is padded to in a graph, or raises an error of another type."""

    def check(x: Tensor) -> Tensor:
        _torch.check_size_or(LookupError, x.shape[0] < 4, "too many")
        return x + 1

    for run in (check, fullgraph(check)):
        assert run(torch.ones(3)).tolist() == [2, 2, 2]
        with pytest.raises((LookupError, TorchRuntimeError), match="too many"):
            run(torch.ones(4))
    with pytest.raises(LookupError, match=r"^too many$"):
        check(torch.ones(4))


@pytest.mark.graphs
def test_check_tensor() -> None:
    """Else a graph runs on lengths that do not fit its values."""

    def check(x: Tensor) -> Tensor:
        _torch.check_tensor((x > 0).all(), "all above zero")
        return x + 1

    for run in (
        check,
        torch.compile(check, fullgraph=True, backend="aot_eager"),
        export(Applied(check), (torch.ones(2),)).module(),
    ):
        assert run(torch.ones(2)).tolist() == [2, 2]
        with pytest.raises(RuntimeError, match="all above zero"):
            run(torch.zeros(2))


def test_is_compiler_imported() -> None:
    """Else every process that uses a layer pays for the import of the compiler, or a graph traces what it must not."""
    in_a_process(
        "import torch\n"
        "from seqbatch import _torch\n"
        "assert not _torch.is_compiler_imported()\n"
        "torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1))\n"
        "assert _torch.is_compiler_imported()\n"
    )
    assert _torch.is_compiler_imported()  # by the imports of this file


def test_keep_out_of_graphs() -> None:
    """Else `torch.compile` traces an encoder that reads the lengths, and has one graph for each of them."""
    graphs: list[list[str]] = []

    def backend(graph: Any, _: object) -> Any:
        graphs.append([node.name for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    def called(x: Tensor) -> Tensor:
        return x + 1

    def inner(x: Tensor) -> Tensor:
        return -called(x)

    # What the function calls has a graph of its own, and the function has none.
    for expected in ([["mul", "add", "neg"]], [["mul"], ["add"]]):
        assert torch.compile(lambda x: inner(2 * x), backend=backend)(torch.ones(1)).tolist() == [-3]
        assert graphs == expected
        graphs.clear()
        torch.compiler.reset()
        _torch.keep_out_of_graphs(inner, "it reads lengths")
    with pytest.raises(Unsupported, match="it reads lengths"):
        fullgraph(lambda x: inner(2 * x))(torch.ones(1))


def test_constant_in_graphs() -> None:
    """Else `torch.onnx.export` of a compiled model keeps the lengths of its example."""

    @_torch.constant_in_graphs
    def in_this_thread() -> bool:
        return get_ident() == here  # which cannot be traced

    here = get_ident()
    assert fullgraph(lambda x: x + in_this_thread())(torch.ones(1)).tolist() == [2]


def test_set_scripted() -> None:
    """Else `torch.jit.script` fails in words of its own, or makes a function that keeps lengths."""

    def double(x: Tensor) -> Tensor:
        return 2 * x

    def refuse() -> Any:
        raise LookupError("not by scripting")

    _torch.set_scripted(double, refuse)
    with pytest.raises(LookupError, match="not by scripting"):
        torch.jit.script(double)
    assert double(torch.ones(1)).tolist() == [2]


# -------------------------------------------------------------------------------------------------- gradients and modes


def test_wants_gradients() -> None:
    """Else a layer runs without a backward pass, or keeps what only that pass reads."""
    plain, weight = torch.ones(2), torch.ones(2, requires_grad=True)
    assert _torch.wants_gradients([plain, weight])
    assert not _torch.wants_gradients([plain])
    assert not _torch.wants_gradients([])
    with torch.no_grad():
        assert not _torch.wants_gradients([plain, weight])


def under_each_transform(ask: Callable[[Tensor], bool]) -> dict[str, bool]:
    """Return what a function of a Tensor returns under the transforms of PyTorch, and under none."""
    found: dict[str, bool] = {}

    def asked(name: str) -> Callable[[Tensor], Tensor]:
        def function(x: Tensor) -> Tensor:
            found[name] = ask(x)
            return x.sum()

        return function

    x = torch.ones(3)
    asked("none")(x)
    func.grad(asked("grad"))(x)
    func.vjp(asked("vjp"), x)
    func.grad(func.grad(asked("grad of grad")))(torch.ones(()))
    func.vmap(asked("vmap"))(x)
    func.vmap(func.grad(asked("grad, then vmap")))(x)
    func.grad(lambda x: func.vmap(asked("vmap, then grad"))(x).sum())(x)
    func.jvp(asked("jvp"), (x,), (x,))
    with forward_ad.dual_level():
        asked("forward mode")(forward_ad.make_dual(x, x))
        func.grad(asked("grad in forward mode"))(x)
    asked("none again")(x)
    return found


def test_autocasts() -> None:
    """Else dtypes that autocast makes alike are refused, or others pass."""
    cpu, meta = torch.device("cpu"), torch.device("meta")
    assert not _torch.autocasts(cpu)
    with torch.autocast("cpu", torch.bfloat16):
        assert _torch.autocasts(cpu)
        assert not _torch.autocasts(meta)


def test_is_transformed() -> None:
    """Else a kernel computes behind the back of a transform, whose results are then zeros without an error."""
    found = under_each_transform(lambda x: _torch.is_transformed())
    assert {name for name, answer in found.items() if not answer} == {"none", "none again"}
    assert len(found) == 11


def test_is_intercepted() -> None:
    """Else a kernel reads the memory of a fake tensor, or a mode does not see what it counts."""
    found = under_each_transform(lambda x: _torch.is_intercepted())
    assert {name for name, answer in found.items() if not answer} == {"none", "none again"}
    for mode in (FakeTensorMode(), FlopCounterMode(display=False)):
        with mode:
            assert _torch.is_intercepted()
            assert not _torch.is_transformed()
        assert not _torch.is_intercepted()


def test_takes_gradients_only() -> None:
    """Else attention runs by kernels of PyTorch that do not support `vmap` and forward mode."""
    found = under_each_transform(lambda x: _torch.takes_gradients_only())
    assert {name for name, answer in found.items() if answer} == {"grad", "vjp", "grad of grad"}


def test_is_mapped() -> None:
    """Else lengths that `vmap` maps over are read as those of the first sample, or raise in PyTorch's words."""
    found = under_each_transform(_torch.is_mapped)
    assert {name for name, answer in found.items() if answer} == {"vmap", "grad, then vmap", "vmap, then grad"}
    shared: list[bool] = []

    def ask(x: Tensor, y: Tensor) -> Tensor:
        shared.append(_torch.is_mapped(y))
        return x + y

    func.vmap(ask, in_dims=(0, None))(torch.ones(3), torch.ones(()))
    assert shared == [False]
    assert fullgraph(lambda x: x + _torch.is_mapped(x))(torch.ones(1)).tolist() == [1]


def test_are_batched() -> None:
    """Else the kernels of the backward pass read the first of the batched gradients for all."""
    found: list[bool] = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            found.append(_torch.are_batched([None, *gradients]))
            return gradients[0]

    x = torch.ones(2, requires_grad=True)
    for gradients, are_batched in ((torch.eye(2), True), (torch.ones(2), False)):
        apply: Any = Watch.apply
        torch.autograd.grad(apply(x), x, gradients, is_grads_batched=are_batched)
    assert found == [True, False]
    assert not _torch.are_batched([None])


# -------------------------------------------------------------------------------------------------------------- memory


class Marked(Tensor):
    """A subclass of Tensor."""


def fake() -> Tensor:
    with FakeTensorMode():
        return torch.ones(2)


def in_inference_mode() -> Tensor:
    with torch.inference_mode():
        return torch.ones(2)


def test_STOCK_TENSORS() -> None:  # noqa: N802  # as the constant
    """Else packed sequences and kernels run on subclasses of Tensor, which lose what these add."""
    assert all(type(one) in _torch.STOCK_TENSORS for one in (torch.ones(2), nn.Parameter(torch.ones(2))))
    assert not any(type(one) in _torch.STOCK_TENSORS for one in (fake(), torch.ones(2).as_subclass(Marked)))


DENSE: dict[str, Callable[[], Tensor]] = {
    "dense": lambda: torch.ones(2),
    "of float64": lambda: torch.ones(2, dtype=torch.float64),
    "ints": lambda: torch.ones(2, dtype=torch.int64),
    "a parameter": lambda: nn.Parameter(torch.ones(2)),
    "with gradients": lambda: torch.ones(2, requires_grad=True) * 2,
    "in inference mode": in_inference_mode,
    "a view": lambda: torch.ones(3, 4).T[1:],
}
NOT_DENSE: dict[str, Callable[[], Tensor]] = {
    "fake": fake,
    "a subclass": lambda: torch.ones(2).as_subclass(Marked),
    "conjugate": lambda: torch.ones(2, dtype=torch.complex64).conj(),
    "negative": lambda: torch.ones(2, dtype=torch.complex64).conj().imag,
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
    "sparse": lambda: torch.ones(2).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "without memory": lambda: torch.ones(2, device="meta"),
    "zeros that take no memory": lambda: torch.ops.aten._efficientzerotensor([2]),
}


@pytest.mark.parametrize("name", [*DENSE, *NOT_DENSE])
def test_is_dense(name: str) -> None:
    """Else a kernel reads the address of something that has no numbers there: wrong results, or the process ends."""
    assert _torch.is_dense({**DENSE, **NOT_DENSE}[name]()) == (name in DENSE)


def test_interception_checks() -> None:
    """Else the shortcut of recurrent layers runs where a transform, a mode or a hook must see the call."""
    asked = _torch.interception_checks()
    x = torch.ones(2)
    with torch.inference_mode():
        made = torch.ones(2)
    keys = asked["dispatch_keys"]
    assert [keys(x) == asked["dense"], keys(made) == asked["dense_in_inference_mode"]] == [True, True]
    assert not asked["is_tracing"]()
    assert not asked["is_transformed"]()
    assert not asked["modes"]()
    assert not asked["function_modes"]()
    assert func.vmap(lambda row: row + asked["is_transformed"]())(x).tolist() == [2, 2]
    with FakeTensorMode():
        assert asked["modes"]() == 1
    with torch.device("cpu"):
        assert asked["function_modes"]() == 1
    assert asked["forward_ad"]._current_level < 0
    with forward_ad.dual_level():
        assert asked["forward_ad"]._current_level >= 0
    registers: list[Callable[[Any], Any]] = [
        *(register_module_forward_pre_hook, register_module_forward_hook),
        *(register_module_full_backward_pre_hook, register_module_full_backward_hook),
    ]
    for hooks, register in zip(asked["hooks_of_all"], registers, strict=True):
        assert not hooks
        handle = register(lambda *given: None)
        assert len(hooks) == 1
        handle.remove()


def test_what_a_transform_wraps_is_not_dense() -> None:
    found = under_each_transform(_torch.is_dense)
    # In forward mode too the memory holds the values, but not the tangents; `is_transformed` is asked as well.
    assert {name for name, answer in found.items() if answer} == {"none", "none again", "forward mode"}


def test_lifted() -> None:
    """Else lengths stay real tensors under fake ones, and PyTorch raises that the two are mixed."""
    made = torch.frombuffer(array("q", [3, 2]), dtype=torch.int64)
    assert _torch.lifted(made) is made
    with FakeTensorMode() as mode:
        made = torch.frombuffer(array("q", [3, 2]), dtype=torch.int64)
        assert type(made) is Tensor
        assert type(_torch.lifted(made)) is type(mode.from_tensor(torch.ones(2)))


def test_version_of() -> None:
    """Else `check_unmodified` does not notice that an encoder writes to the Tensors of its caller."""
    x = torch.ones(4)
    versions = [_torch.version_of(x)]
    calls: list[Callable[[], Tensor]] = [lambda: x.add(1), lambda: x.add_(1), lambda: x[:2].mul_(2), lambda: x.sum()]
    for call in calls:
        call()
        versions.append(_torch.version_of(x))
    assert [now - before for before, now in pairwise(versions)] == [0, 1, 1, 0]


# --------------------------------------------------------------------------------------------------------------- hooks


def nothing(*arguments: Any) -> None:
    """A hook that does nothing."""


OWN_HOOKS: list[Callable[[nn.Module], Any]] = [
    lambda layer: layer.register_forward_pre_hook(nothing),
    lambda layer: layer.register_forward_hook(nothing),
    lambda layer: layer.register_full_backward_pre_hook(nothing),
    lambda layer: layer.register_full_backward_hook(nothing),
]
GLOBAL_HOOKS: list[Callable[[nn.Module], Any]] = [
    lambda layer: register_module_forward_pre_hook(nothing),
    lambda layer: register_module_forward_hook(nothing),
    lambda layer: register_module_full_backward_pre_hook(nothing),
    lambda layer: register_module_full_backward_hook(nothing),
]


def with_each_hook(ask: Callable[[nn.Module], bool]) -> list[bool]:
    """Return what is said of a layer with each of its own hooks, then with each of those of every module."""
    found = []
    for register in (*OWN_HOOKS, *GLOBAL_HOOKS):
        layer = nn.Linear(2, 2)
        assert not ask(layer)
        handle = register(layer)
        try:
            found.append(ask(layer))
        finally:
            handle.remove()
        assert not ask(layer)
    return found


YES, NO = [True] * 4, [False] * 4


def test_HOOKS() -> None:  # noqa: N802  # as the constant
    """Else a container is called without its hooks, or with those of another kind."""
    for i, register in enumerate(OWN_HOOKS):
        layer = nn.Linear(2, 2)
        register(layer)
        assert [list(getattr(layer, name).values()) for name in _torch.HOOKS] == [
            [nothing] * (i == j) for j in range(4)
        ]


def test_UnobservedHook() -> None:  # noqa: N802  # as the class
    """Else `encode_chunks` leaves the fast engines as soon as opacus is imported, because of a hook of its own."""

    class Own(_torch.UnobservedHook):
        def __call__(self, *arguments: Any) -> None:
            pass

    own = register_module_forward_pre_hook(Own())
    assert not _torch.has_global_hooks()
    other = register_module_forward_pre_hook(nothing)
    assert _torch.has_global_hooks()
    other.remove()
    assert not _torch.has_global_hooks()
    own.remove()


def test_has_hooks() -> None:
    """Else hooks do not run, because an engine runs in place of the layer."""
    assert with_each_hook(_torch.has_hooks) == YES + YES


def test_has_own_hooks() -> None:
    """Else hooks of a layer in an attention layer do not run."""
    assert with_each_hook(_torch.has_own_hooks) == YES + NO


def test_has_global_hooks() -> None:
    """Else hooks of every module, such as those of profilers, do not run."""
    assert with_each_hook(lambda layer: _torch.has_global_hooks()) == NO + YES


def test_has_backward_hooks() -> None:
    """Else a recurrent layer gets packed sequences, around which PyTorch runs no hooks of the backward pass."""
    assert with_each_hook(_torch.has_backward_hooks) == [False, False, True, True] * 2


def test_hooks_before() -> None:
    """Else input that a hook would convert is refused, and the error for weights that hooks compute has no remedy."""
    layer = nn.LazyLinear(2)
    handle = layer.register_forward_pre_hook(nothing)
    assert len(_torch.hooks_before(layer)) == 2
    assert _torch.hooks_before(layer)[handle.id] is nothing
    handle.remove()
    layer(torch.ones(1, 2))
    assert not _torch.hooks_before(layer)


def test_hooks_after() -> None:
    """Else the hooks of opacus are not found, and each step counts as a sample."""
    layer = nn.Linear(2, 2)
    assert not _torch.hooks_after(layer)
    layer.register_forward_hook(nothing)
    layer.register_forward_pre_hook(print)
    assert list(_torch.hooks_after(layer).values()) == [nothing]


def test_has_hooks_before() -> None:
    """Else the input of a lazy layer is not checked, or a hook that converts the input comes too late."""
    for layer in (nn.Linear(2, 2), nn.LazyLinear(2)):
        assert not _torch.has_hooks_before(layer)
        handle = layer.register_forward_pre_hook(nothing)
        assert _torch.has_hooks_before(layer)
        handle.remove()
        layer(torch.ones(1, 2))
        assert not _torch.has_hooks_before(layer)


def test_pruned_weights() -> None:
    """Else the error for a pruned layer in an exported model does not say what to remove."""
    layer = nn.Linear(2, 2)
    layer.register_forward_pre_hook(nothing)
    assert _torch.pruned_weights(layer) == []
    prune.l1_unstructured(layer, "weight", amount=1)
    prune.random_unstructured(layer, "bias", amount=1)
    assert _torch.pruned_weights(layer) == ["weight", "bias"]
    for name in _torch.pruned_weights(layer):
        prune.remove(layer, name)
    assert _torch.pruned_weights(layer) == []


# -------------------------------------------------------------------------------------------------------------- layers


def test_OutputProjection() -> None:  # noqa: N802  # as the class
    """Else every attention layer counts as modified, and runs once for each length."""
    projection = nn.MultiheadAttention(4, 2).out_proj
    assert type(projection) is _torch.OutputProjection
    assert type(projection).forward is nn.Linear.forward


def require_parts(layer: Any, names: tuple[str, ...], given: list[Tensor]) -> None:
    """Check that the `forward` of a layer calls these methods, in this order, and no others that are private."""
    called: list[str] = []

    def part(name: str) -> Callable[..., Tensor]:
        def run(x: Tensor, *arguments: Any, **options: Any) -> Tensor:
            called.append(name)
            return x

        return run

    vars(layer).update({name: part(name) for name in names})
    layer(*given)
    assert called == list(names)
    assert {*re.findall(r"self\.(_\w+)\(", inspect.getsource(type(layer).forward))} == {*names}


@pytest.mark.parametrize("norm_first", [True, False])
def test_TRANSFORMER_PARTS(norm_first: bool) -> None:  # noqa: N802  # as the constant
    """Else a subclass that replaces a part of the layer runs as if it did not."""
    layer = nn.TransformerEncoderLayer(4, 2, norm_first=norm_first)
    require_parts(layer, _torch.TRANSFORMER_PARTS, [torch.ones(3, 4)])


@pytest.mark.parametrize("norm_first", [True, False])
def test_DECODER_PARTS(norm_first: bool) -> None:  # noqa: N802  # as the constant
    """Else a subclass that replaces a part of the layer runs as if it did not."""
    layer = nn.TransformerDecoderLayer(4, 2, norm_first=norm_first)
    require_parts(layer, _torch.DECODER_PARTS, [torch.ones(3, 4), torch.ones(2, 4)])


class Asks(nn.Module):
    """A layer that adds 1 where it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.compiler.is_compiling()


def test_NOT_COMPILED() -> None:  # noqa: N802  # as the constant
    """Else a container on which `compile` was called runs on Tensors, and not on batches."""
    layer = Asks()
    layer.compile(backend="eager")
    assert layer(torch.ones(1)).tolist() == [2]
    vars(layer).update(_torch.NOT_COMPILED)
    assert layer(torch.ones(1)).tolist() == [1]


def test_EXPANDED_WEIGHTS() -> None:  # noqa: N802  # as the constant
    """Else expanded weights are never looked for, or every call of `encode` looks for them."""
    in_a_process(
        "import sys, torch\n"
        "from seqbatch._torch import EXPANDED_WEIGHTS\n"
        "assert EXPANDED_WEIGHTS not in sys.modules\n"
        "import torch.nn.utils._per_sample_grad\n"
        "assert EXPANDED_WEIGHTS in sys.modules\n"
    )


def names_of_classes(layer: nn.Module) -> list[str]:
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(layer).__mro__]


def test_CHECKPOINTED() -> None:  # noqa: N802  # as the constant
    """Else the advice for a layer with activation checkpoints is to write an encoder for PyTorch's wrapper."""
    assert _torch.CHECKPOINTED in names_of_classes(checkpoint_wrapper(nn.Linear(2, 2)))


def test_COMPILED() -> None:  # noqa: N802  # as the constant
    """Else the advice for a compiled layer is to write an encoder for PyTorch's wrapper."""
    compiled: Any = torch.compile(nn.Linear(2, 2))
    assert _torch.COMPILED in names_of_classes(compiled)


def test_SCRIPTED() -> None:  # noqa: N802  # as the constant
    """Else the advice for a scripted layer is to write an encoder for a class of PyTorch."""
    assert _torch.SCRIPTED in names_of_classes(torch.jit.script(nn.Linear(2, 2)))


def test_ORIGINAL_OF_COMPILED() -> None:  # noqa: N802  # as the constant
    """Else the remedy in the error for a compiled layer does not work."""
    layer = nn.Linear(2, 2)
    assert getattr(torch.compile(layer), _torch.ORIGINAL_OF_COMPILED) is layer


def test_parameters_of() -> None:
    """Else kernels read other weights than the call uses."""
    layer = nn.Linear(2, 2, bias=False)
    assert _torch.parameters_of(layer) == {"weight": layer.weight, "bias": None}
    given, found = torch.ones(2, 2), list[Tensor]()
    layer.register_forward_pre_hook(lambda layer, inputs: found.append(_torch.parameters_of(layer)["weight"]))
    func.functional_call(layer, {"weight": given}, torch.ones(1, 2))
    assert found[0] is given
    assert _torch.parameters_of(nn.Sequential(layer)) == {}


def test_set_parameters() -> None:
    """Else a cell whose weights are Tensors, as in `functional_call`, raises, or runs with other weights."""
    layer = nn.Linear(2, 1, device="meta")
    weight = torch.tensor([[2.0, 3.0]]) * torch.ones((), requires_grad=True)
    _torch.set_parameters(layer, {"weight": weight, "bias": torch.ones(1)})
    assert layer.weight is weight
    assert layer(torch.ones(1, 2)).tolist() == [[6]]
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


def test_is_parametrized() -> None:
    """Else an engine reads the weights from before a parametrization."""
    layer = nn.Linear(2, 2)
    for expected in (False, True, False):
        assert _torch.is_parametrized(layer) == parametrize.is_parametrized(layer) == expected
        if expected:
            parametrize.remove_parametrizations(layer, "weight")
        else:
            parametrize.register_parametrization(layer, "weight", nn.Identity())


def test_is_lazy() -> None:
    """Else a lazy layer is asked for sizes that it does not have, or is never taken for initialized."""
    layer = nn.LazyConv1d(2, 1)
    assert _torch.is_lazy(layer)
    layer(torch.ones(1, 3, 2))
    assert not _torch.is_lazy(layer)
    assert not _torch.is_lazy(nn.Conv1d(3, 2, 1))


def test_has_expanded_weights() -> None:
    """Else each step counts as a sample, and the gradients of samples are wrong without an error."""
    found: list[bool] = []

    class Layer(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # as its base
            found.append(_torch.has_expanded_weights(self))
            return super().forward(input)

    layer = Layer(2, 2)
    layer(torch.ones(3, 2))
    call_for_per_sample_grads(layer)(torch.ones(3, 2)).sum().backward()
    assert found == [False, True]


def quantized_recurrent(kind: Any, dtype: torch.dtype) -> nn.Module:
    layer: nn.Module = kind(2, 2, dtype=dtype)
    return layer


@pytest.mark.parametrize("kind", [quantized.LSTM, quantized.GRU])
def test_is_recurrent_float16(kind: Any) -> None:
    """Else sequences of unequal range share one, and round each other, or all of them run one by one."""
    half, eighth = (quantized_recurrent(kind, dtype) for dtype in (torch.float16, torch.qint8))
    assert _torch.is_recurrent_float16(half)
    assert not _torch.is_recurrent_float16(eighth)
    half.load_state_dict(eighth.state_dict())
    assert not _torch.is_recurrent_float16(half)


def test_is_linear_float16() -> None:
    """Else sequences of unequal range share one, and round each other, or all of them run one by one."""
    assert _torch.is_linear_float16(quantized.Linear(2, 2, dtype=torch.float16))
    assert not _torch.is_linear_float16(quantized.Linear(2, 2, dtype=torch.qint8))


# ------------------------------------------------------------------------------------------------------------- pytrees


class Pair:
    """A pytree of two tensors."""

    def __init__(self, left: Any, right: Any) -> None:
        self.left, self.right = left, right


_torch.register_pytree(Pair, ["left", "right"], lambda pair: [pair.left, pair.right], Pair)


def test_register_pytree(tmp_path: Path) -> None:
    """Else torch.func and torch.export do not see the tensors in a batch or a state, or a program cannot be saved."""
    pair = Pair(torch.tensor(2.0), torch.tensor(3.0))
    gradients = func.grad(lambda pair: pair.left * pair.right)(pair)
    assert type(gradients) is Pair
    assert_close([gradients.left, gradients.right], [pair.right, pair.left])
    program = export(Applied(lambda pair: Pair(pair.right, pair.left)), (pair,))
    with torch.serialization.safe_globals([Pair]):
        torch.export.save(program, tmp_path / "program.pt2")
        swapped = torch.export.load(tmp_path / "program.pt2").module()(pair)
    assert_close([swapped.left, swapped.right], [pair.right, pair.left])
    assert [path for path, _ in _torch.leaves_by_path([pair], Tensor)] == ["[0].left", "[0].right"]


def test_leaves_by_path() -> None:
    """Else the results of a model exported to ONNX have other names, or another order."""
    pair = Pair(1, 2)
    tree = {"b": [3, (None, pair)], "a": pair}
    assert _torch.leaves_by_path(tree, Pair) == [
        ("['b'][0]", 3),
        ("['b'][1][0]", None),
        ("['b'][1][1]", pair),
        ("['a']", pair),
    ]
    assert _torch.leaves_by_path(pair, Pair) == [("", pair)]


def test_PytreeStructure() -> None:  # noqa: N802  # as the class
    """Else `scan` takes one part of a state for another, or a step gets another state than it returned."""
    pair = Pair(3, 4)
    for tree, leaf_type, number in (
        ({"b": [3, (None, pair)], "a": pair}, Pair, 3),
        ({"b": [3, (None, pair)], "a": pair}, (), 5),
        ((1, 2), (), 2),
        ((1, None), (), 1),
        (None, (), 0),
        ((1, (2, 3)), (), 3),
        ((), (), 0),
        (1, (), 1),
        (pair, Pair, 1),
    ):
        structure = _torch.PytreeStructure(tree, leaf_type)
        leaves = [leaf for _, leaf in _torch.leaves_by_path(tree, leaf_type) if leaf is not None]
        assert structure.leaves_in(tree) == leaves
        assert len(leaves) == number
        new = [object() for _ in leaves]
        built = structure.build(iter(new))
        assert type(built) is type(tree) or number == 1
        assert structure.leaves_in(built) == new
    for tree, other in ((None, 1), ((1, None), (1, 2))):
        with pytest.raises(ValueError, match=r"^Expected None, but got <class 'int'>\.$"):
            _torch.PytreeStructure(tree).leaves_in(other)
    structure = _torch.PytreeStructure({"b": (1, 2), "a": pair})
    assert structure.leaves_in({"a": Pair(5, [6]), "b": (7, 8)}) == [7, 8, 5, [6]]
    others: list[Any] = [{"b": (1, 2)}, {"b": (1, 2, 3), "a": pair}, {"b": [1, 2], "a": pair}, {"b": (1, 2), "a": 3}]
    for other in others:
        with pytest.raises(ValueError, match="mismatch"):
            structure.leaves_in(other)
    others = [(1, 2, 3), [1, 2], 1, (1,)]
    for other in others:
        with pytest.raises(ValueError, match="mismatch"):
            _torch.PytreeStructure((1, 2)).leaves_in(other)


def test_keys_of_results() -> None:
    """Else the results of a model exported to ONNX have the names of others."""
    program = export(Applied(lambda x: {"b": x + 1, "a": x + 2}), (torch.ones(1),))
    assert _torch.keys_of_results(program) == ["b", "a"]
    assert_close([*program.module()(torch.ones(1)).values()], [torch.full((1,), 2.0), torch.full((1,), 3.0)])
