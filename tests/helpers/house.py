"""The rooms of the package, which are the folders and files at its top, and which room imports which.

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


def rooms(files: Files) -> dict[str, set[str]]:
    """Return the rooms, and which others each imports."""
    found: dict[str, set[str]] = {}
    for file, path in files.items():
        room = file.split(".")[0]
        found.setdefault(room, set()).update(other.split(".")[0] for other in imported_files(path, files))
        found[room].discard(room)
    return found


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Return the floor of each room: one above the highest that it imports; raise if imports go round in circles."""
    found: dict[str, int] = {}
    for room in TopologicalSorter(graph).static_order():
        found[room] = 1 + max((found[other] for other in graph[room]), default=0)
    return found


def table() -> str:
    """Return the table, from the highest floor to the lowest."""
    graph = rooms(files_of(ROOT / "seqbatch"))
    floor = floors(graph)
    lines = ["| floor | room | imports |", "| --- | --- | --- |"]
    for room in sorted(graph, key=lambda room: (-floor[room], room)):
        below = sorted(graph[room], key=lambda other: (-floor[other], other))
        lines.append(f"| {floor[room]} | `{room}` | {', '.join(f'`{other}`' for other in below)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    if sys.argv[1:] == ["--write"]:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}")
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
