"""What a piece of code builds on: the statements of a notebook's earlier cells that give its names their values.

A program slice by names alone, which is enough for chapters: statements of a module, each taken
whole. A call on a value, such as ``rows.append(1)``, counts as a change of it; calls on modules
and functions do not, so plots are left out, and seeds and changes through arguments are lost.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

IMPORTS = (ast.Import, ast.ImportFrom)
NAMED = (ast.FunctionDef, ast.ClassDef)
BY_NAME = "__main__:"  # a recipe's part that a notebook defines
PERHAPS = (ast.For, ast.While, ast.If, ast.Try)  # may leave a name as it was
FIRST = {"iter", "value", "test"}  # fields of a node that are executed before the others
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class Statement:
    """A statement of a cell, with the comments above it.

    Args:
        cell: the cell's number.
        sets, changes, reads: names of the module that get a value, whose value changes, and that are needed for it.
    """

    cell: int
    node: ast.stmt = field(compare=False)
    source: str
    sets: set[str]
    changes: set[str]
    reads: set[str]


def read(cells: Sequence[str]) -> list[Statement]:
    """The statements of code cells, in their order.

    Raises:
        SyntaxError: a cell that is no Python.
    """
    return [statement for number, cell in enumerate(cells) for statement in _statements(number, cell)]


def builds_on(code: str, statements: Sequence[Statement]) -> list[Statement]:
    """Those of the statements that ``code`` needs.

    Raises:
        SyntaxError: code that is no Python.
    """
    modules = set().union(*(s.sets for s in statements if isinstance(s.node, IMPORTS)))
    needed, kept = set(), []
    for statement in reversed(read([code])):
        needed = _before(statement, needed)
    for statement in reversed(statements):
        if needed & (statement.sets | statement.changes - modules):
            needed = _before(statement, needed)
            kept.insert(0, statement)
    return kept


def _before(statement: Statement, needed: set[str]) -> set[str]:
    """What is needed before a statement, if ``needed`` is after it."""
    left = needed if isinstance(statement.node, PERHAPS) else needed - statement.sets
    return left | statement.reads


def written(statements: Sequence[Statement], code: str) -> list[str]:
    """Their sources, joined by cell; of imports only the names that the statements or ``code`` need."""
    names = set(_reads(ast.parse(code))).union(*(s.reads for s in statements))
    cells = [[s for s in statements if s.cell == number] for number in sorted({s.cell for s in statements})]
    return ["".join(_written(cell, names)).strip("\n") for cell in cells]


def _statements(number: int, cell: str) -> Iterator[Statement]:
    lines, end = cell.splitlines(keepends=True), 0
    for node in ast.parse(cell).body:
        source = "".join(lines[end : node.end_lineno]).rstrip("\n") + "\n"
        if node.end_lineno == end:  # several statements in a line
            source = ast.unparse(node) + "\n"
        end = node.end_lineno
        yield Statement(number, node, source, set(_sets(node)), set(_changes(node)), set(_reads(node)))


def _written(cell: Sequence[Statement], names: set[str]) -> Iterator[str]:
    """Sources with the empty lines that a formatter asks for."""
    before = None
    for statement in cell:
        node, source = statement.node, statement.source
        if isinstance(node, IMPORTS):
            few = [name for name in node.names if _bound(name) in names]
            head = f"from {node.module} import" if isinstance(node, ast.ImportFrom) else "import"
            before_it = source[: len(source) - len(source.lstrip("\n"))]
            source = f"{before_it}{head} {', '.join(f'{n.name} as {n.asname}' if n.asname else n.name for n in few)}\n"
        elif isinstance(node, NAMED) or isinstance(before, NAMED):
            source = "\n\n" + source.lstrip("\n")
        elif isinstance(before, IMPORTS):
            source = "\n" + source.lstrip("\n")
        yield source
        before = node


def _bound(name: ast.alias) -> str:
    return name.asname or name.name.split(".")[0]


# --- names, by Python's scopes -----------------------------------------------------------------


def _sets(node: ast.AST) -> Iterator[str]:
    """Names that a statement gives a value in its own scope."""
    if isinstance(node, IMPORTS):
        yield from map(_bound, node.names)
    elif isinstance(node, NAMED):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif not isinstance(node, (*COMPREHENSIONS, ast.Lambda, ast.AugAssign)):
        for child in ast.iter_child_nodes(node):
            yield from _sets(child)


def _reads(node: ast.AST, own: Set[str] = frozenset()) -> Iterator[str]:
    """Names that it takes from outside: those that are read before it sets them, builtins left out."""
    if isinstance(node, ast.Constant) and str(node.value).startswith(BY_NAME):
        yield node.value.removeprefix(BY_NAME)
    if isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Load) and node.id not in own and not hasattr(builtins, node.id):
            yield node.id
        return
    if isinstance(node, COMPREHENSIONS):
        own = own.union(*(_sets(generator.target) for generator in node.generators))
    elif isinstance(node, (ast.FunctionDef, ast.Lambda)):
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            yield from _reads(default, own)  # outside of the function
        own = own | {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
        if isinstance(node, ast.FunctionDef):
            own = own.union(*map(_sets, node.body))
    # what is executed first stands first: the iterable of a loop before its variable, a value before its name
    fields = [getattr(node, name) for name in sorted(node._fields, key=FIRST.__contains__, reverse=True)]
    for child in [c for value in fields for c in (value if isinstance(value, list) else [value])]:
        if isinstance(child, ast.AST):
            yield from _reads(child, own)
            if isinstance(child, ast.stmt) or isinstance(node, (ast.For, ast.With)):
                own = own.union(_sets(child))


def _changes(node: ast.AST) -> Iterator[str]:
    """Names whose value changes in place: by item, by attribute, or by a call that is made for its effect."""
    if isinstance(node, NAMED):
        return
    for part in ast.walk(node):
        if isinstance(part, ast.AugAssign) and isinstance(part.target, ast.Name):
            yield part.target.id
        stored = isinstance(part, (ast.Subscript, ast.Attribute)) and isinstance(part.ctx, ast.Store)
        called = isinstance(part, ast.Expr) and isinstance(part.value, ast.Call)
        base = part if stored else part.value.func if called else None
        while isinstance(base, (ast.Subscript, ast.Attribute, ast.Call)):
            base = base.func if isinstance(base, ast.Call) else base.value
            if isinstance(base, ast.Name):
                yield base.id
