"""Draw the rooms and their imports into docs/architecture.md: `python tests/import_graph.py --write`.

A picture of every import would be a knot. The graph leaves out an arrow where a longer way leads to the same room (what
remains is the order in which rooms rest on each other); the table beside it names all imports.
"""

import ast
import sys

from helpers import REPO
from test_layers import LAYERS, PACKAGE, TREES, level, ours, room

DOCUMENT = REPO / "docs/architecture.md"
BEGIN, END = "<!-- import graph: python tests/import_graph.py --write -->", "<!-- end -->"
Graph = dict[str, set[str]]


def import_graph() -> Graph:
    """Return for each room the rooms that it imports from, imports within functions included."""
    graph: Graph = {}
    for path, tree in TREES.items():
        imports = graph.setdefault(room(path), set())
        imports |= {room(other) for other in ours(ast.walk(tree))} - {room(path)}
    return graph


def reachable(graph: Graph, start: str) -> set[str]:
    """Return every room that can be come to from `start`."""
    return graph[start].union(*(reachable(graph, name) for name in graph[start]))


def reduced(graph: Graph) -> Graph:
    """Return the graph without the arrows that follow from others (its transitive reduction)."""
    return {
        name: imports - set().union(*(reachable(graph, other) for other in imports)) for name, imports in graph.items()
    }


def purpose(name: str) -> str:
    """Return the first line of a room's own description."""
    path = PACKAGE / name / "__init__.py" if (PACKAGE / name).is_dir() else PACKAGE / f"{name}.py"
    return (ast.get_docstring(TREES[path]) or "").splitlines()[0]


def rendered() -> str:
    """Return the graph as Mermaid, the highest layer on top, and the table of all rooms."""
    graph = import_graph()
    order = sorted(graph, key=lambda name: (-level(name), name))
    arrows = reduced(graph)
    lines = ["```mermaid", "graph TD"]
    lines += [f"  {name.strip('_')} --> {other}" for name in order for other in sorted(arrows[name])]
    lines += ["```", "", "| layer | room | what it is | imports from |", "| --- | --- | --- | --- |"]
    for name in order:
        imports = ", ".join(sorted(graph[name], key=lambda other: (-level(other), other)))
        lines.append(f"| {len(LAYERS) - level(name)} | `{name}` | {purpose(name)} | {imports} |")
    count = sum(map(len, graph.values()))
    lines += ["", f"{len(graph)} rooms, {count} imports, of which the picture shows {sum(map(len, arrows.values()))}."]
    return "\n".join(lines)


def updated(text: str) -> str:
    """Return the document with the graph of the code as it is now."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{rendered()}\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    document = updated(DOCUMENT.read_text(encoding="utf-8"))
    if "--write" in sys.argv[1:]:
        DOCUMENT.write_text(document, encoding="utf-8")
    else:
        print(rendered())
