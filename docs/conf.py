"""The settings of Sphinx, which builds the site from these pages and from the docstrings: `tox run -e docs`."""

import ast
import importlib
import inspect
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import torch
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

ROOT = Path(__file__).parents[1]
# The modules whose `__all__` the reference holds.
MODULES = [
    importlib.import_module(name)
    for name in ("seqbatch", "seqbatch.layers", "seqbatch.data", "seqbatch.testing", "seqbatch.onnx")
]
PUBLIC = {name: f"{module.__name__}.{name}" for module in MODULES for name in module.__all__}

project = "seqbatch"
author = "The seqbatch authors"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
default_role = "literal"  # because single backticks mark code in docstrings
nitpicky = True  # every reference must resolve
myst_heading_anchors = 4  # links to headings use the anchors that GitHub gives them

autodoc_default_options = {
    "members": True,
    # Members of private bases are documented; those of these bases are not.
    "inherited-members": "NotATensor, Module, RNNCellBase, Sampler, Sequence, Generic, BaseException",
}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_numpy_docstring = False
add_module_names = False  # because the title of the page says it
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
pygments_style = "a11y-light"
pygments_dark_style = "a11y-dark"
html_title = "seqbatch"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False

TORCH = "https://docs.pytorch.org/docs/stable"
# Where names of other libraries are documented: listed here, because Sphinx would download a list from each site.
PAGES = {
    "hypothesis.strategies.SearchStrategy": "https://hypothesis.readthedocs.io/en/latest/reference/strategies.html",
    "torch.Size": f"{TORCH}/size.html",
    "torch.Tensor": f"{TORCH}/tensors.html",
    "torch.autocast": f"{TORCH}/amp.html",
    "torch.device": f"{TORCH}/tensor_attributes.html",
    "torch.distributed.distributed_c10d.ProcessGroup": f"{TORCH}/distributed.html",
    "torch.dtype": f"{TORCH}/tensor_attributes.html",
    "torch.inference_mode": f"{TORCH}/generated/torch.autograd.grad_mode.inference_mode.html",
    "torch.onnx.ONNXProgram": f"{TORCH}/onnx_export.html",
    "torch.onnx.OnnxExporterError": f"{TORCH}/onnx_export.html",
    "torch.utils.data.DataLoader": f"{TORCH}/data.html",
}
# The names of functions of seqbatch.testing that are also the names of arguments and attributes.
ARGUMENTS = {"lengths", "sequences"}
# The pages of files at the root of the repository, which the site includes.
ROOT_PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def name_modules_of_classes() -> None:
    """Set the module and qualname of each class to those of its definition, because Sphinx reads its source there.

    Public classes name the public module, so that pickles do not hold the layout of files.
    """
    for name, module in [*sys.modules.items()]:
        if name.startswith("seqbatch.") and str(module.__file__).endswith(".py"):  # and not the compiled one
            for node in ast.parse(inspect.getsource(module)).body:
                if isinstance(node, ast.ClassDef):
                    getattr(module, node.name).__module__ = name
                    getattr(module, node.name).__qualname__ = node.name


def drop_overloads_of_errors() -> None:
    """Remove the overloads that make type checkers report a wrong state or memory, by a private type of result."""
    analyzer = ModuleAnalyzer.for_module("seqbatch._encode")
    analyzer.analyze()
    for name, overloads in analyzer.overloads.items():
        shown = [one for one in overloads if not str(one.return_annotation).startswith("_")]
        analyzer.overloads[name] = shown


def outside(name: str) -> str | None:
    """Return the address of the page on a name of another library, None if it is not known."""
    name = re.sub(r"^torch\.nn\.modules\.\w+\.", "torch.nn.", name)
    module = name.rpartition(".")[0]
    if name in PAGES:
        return f"{PAGES[name]}#{name}"
    if module == "torch" or name.startswith("torch.nn."):
        return f"{TORCH}/generated/{name}.html#{name}"
    if module.split(".")[0] in sys.stdlib_module_names:
        return f"https://docs.python.org/3/library/{module}.html#{name}"
    return None


def is_of_torch(name: str) -> bool:
    """Return True if this is a function or class of PyTorch whose page is known."""
    module, *parts = name.split(".")
    value: object = torch
    for part in parts:
        value = getattr(value, part, None)
    return module == "torch" and outside(name) is not None and callable(value)


def link_names(app: Sphinx, doctree: nodes.document) -> None:
    """Convert code in a page or docstring to a link, if it is a public name or one of PyTorch."""
    for code in [*doctree.findall(nodes.literal)]:
        text = code.astext()
        name = PUBLIC.get(text.removeprefix("seqbatch."), re.sub(r"^nn\.", "torch.nn.", text))
        is_public = name in PUBLIC.values() and text not in ARGUMENTS
        is_linked = isinstance(code.parent, nodes.reference | nodes.title | pending_xref)
        if (is_public or is_of_torch(name)) and not is_linked:
            target = pending_xref("", refdomain="py", reftype="obj", reftarget=name, refexplicit=True)
            code.replace_self(target)
            target += code


def convert_docstring(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Show the types of attributes beside their names, and the shapes of properties before what they are."""
    text = "\n".join(lines)
    text = re.sub(r"(\.\. attribute:: \w+\n)((?:\n| +.*\n)*?)( +:type: .*\n)", r"\1\3\2", text)
    if what == "property":  # because napoleon takes the shape, before a colon, for a type
        text = re.sub(r"^((?:.*\n)*):type: (.*)(?:\n|$)", r"\2: \1", text)
    lines[:] = text.split("\n")


def link_outside(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.TextElement
) -> nodes.Element | None:
    """Resolve a name that the reference does not hold: link it to its page, or show it if its module is private."""
    name = node["reftarget"]
    if node.get("refdomain") != "py":
        return None
    if name.startswith("seqbatch.") and name.rpartition(".")[2].startswith("_"):
        return None  # because a reader cannot know what it is
    if name.startswith("seqbatch.") and "._" in name:
        return shown
    address = outside(name)
    return None if address is None else nodes.reference("", "", shown, internal=False, refuri=address)


def relink(app: Sphinx, path: Path, page: str, content: list[str]) -> None:
    """Convert the links of an included file of the root, because the site includes it from `docs/`."""

    def converted(found: re.Match[str]) -> str:
        name, mark, anchor = found[1].partition("#")
        if not (ROOT / name).exists():  # such as code
            return found[0]
        name = ROOT_PAGES.get(name) or (name.removeprefix("docs/") if name.startswith("docs/") else f"../{name}")
        return f"]({name}{mark}{anchor})"

    content[0] = re.sub(r"\]\(([^#)][^)]*)\)", converted, content[0])


def check_reference(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn about public names, and members of public classes, that the reference lacks, and about all others in it."""
    wanted = {*PUBLIC.values()}
    for module in MODULES:
        for name in module.__all__:
            value = getattr(module, name)
            for base in value.__mro__ if isinstance(value, type) else ():
                if base.__module__.startswith("seqbatch.") and "not_a_tensor" not in base.__module__:
                    members = {member for member in vars(base) if not member.startswith("_")}
                    wanted |= {f"{PUBLIC[name]}.{member}" for member in members}
    objects = env.domains["py"].get_objects()
    found = {name for name, _, kind, *_, priority in objects if kind != "module" and priority >= 0}
    for name in sorted(wanted ^ found):
        fault = "is not in the reference" if name in wanted else "is in the reference, but is not public"
        logging.getLogger(__name__).warning("%s %s", name, fault)


def setup(app: Sphinx) -> None:
    """Connect the functions above to the events of Sphinx."""
    name_modules_of_classes()
    drop_overloads_of_errors()
    app.connect("autodoc-process-docstring", convert_docstring)
    app.connect("doctree-read", link_names)
    app.connect("missing-reference", link_outside)
    app.connect("include-read", relink)
    app.connect("env-check-consistency", check_reference)
