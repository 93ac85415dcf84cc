"""The modules at the top of the package, which are folders and files, and which module imports which.

`python tests/helpers/house.py` prints the table of docs/architecture.md, and `--write` replaces it in the page.
"""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
# The table is between these lines of the page.
BEGIN, END = "<!-- python tests/helpers/house.py --write -->\n", "<!-- end of the table -->\n"
Files = dict[str, Path]


def files_of(package: Path) -> Files:
    """Return the files of the package by their names, such as `_ops.eager`; `_ops` is its `__init__.py`."""
    return {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(package.rglob("*.py"))
    }


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of each module that a file imports, at any depth; `from a import b` yields a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_files(path: Path, files: Files) -> set[str]:
    """Return the files of the package that a file imports from."""
    found = set()
    for name in imports(path):
        if name.split(".")[0] == "seqbatch":
            parts = name.split(".")[1:]
            while parts and ".".join(parts) not in files:
                parts.pop()
            found.add(".".join(parts) or "__init__")
    return found


def top_modules(files: Files) -> dict[str, set[str]]:
    """Return the modules at the top, and which others each imports."""
    found: dict[str, set[str]] = {}
    for file, path in files.items():
        module = file.split(".")[0]
        found.setdefault(module, set()).update(other.split(".")[0] for other in imported_files(path, files))
        found[module].discard(module)
    return found


def levels(graph: dict[str, set[str]]) -> dict[str, int]:
    """Return the level of each module: one above the highest that it imports; raise if imports are circular."""
    found: dict[str, int] = {}
    for module in TopologicalSorter(graph).static_order():
        found[module] = 1 + max((found[other] for other in graph[module]), default=0)
    return found


def table() -> str:
    """Return the table, from the highest level to the lowest."""
    graph = top_modules(files_of(ROOT / "seqbatch"))
    level = levels(graph)
    lines = ["| level | module | imports |", "| --- | --- | --- |"]
    for module in sorted(graph, key=lambda module: (-level[module], module)):
        below = sorted(graph[module], key=lambda other: (-level[other], other))
        lines.append(f"| {level[module]} | `{module}` | {', '.join(f'`{other}`' for other in below)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    if sys.argv[1:] == ["--write"]:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}")
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
