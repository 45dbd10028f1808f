"""What code builds on, by names: each case has statements that must be taken and others that must not."""

import pytest

from ltnotes import slices

CASES = {
    "the last value alone": ("print(a)", ["a = 1\n", "a = 2"], ["a = 2"]),
    "what a value is made of": ("a", ["b = 1", "c = 2", "a = b"], ["b = 1", "a = b"]),
    "a value that is made of its last": ("a", ["a = 1", "a = a + 1"], ["a = 1", "a = a + 1"]),
    "+= is a change": ("a", ["a = 1", "a += 1"], ["a = 1", "a += 1"]),
    "|= of a part": ("d", ["d = {}", "d['x'] |= {1}"], ["d = {}", "d['x'] |= {1}"]),
    "an item": ("d", ["d = {}", "e = {}", "d['x'] = 1", "e['x'] = 1"], ["d = {}", "d['x'] = 1"]),
    "an attribute": ("d", ["d = f()", "d.x = 1"], ["d = f()", "d.x = 1"]),
    "a method for its effect": ("d", ["d = []", "d.append(1)", "e = d.copy()"], ["d = []", "d.append(1)"]),
    "a chain of them": ("d", ["d = {}", "d.setdefault(1, []).append(2)"], ["d = {}", "d.setdefault(1, []).append(2)"]),
    "calls on modules are none": ("plots", ["from x import plots", "plots.use_style()"], ["from x import plots"]),
    "of an import what is used": ("b", ["from x import a, b as b"], ["from x import b as b"]),
    "a function's own names": ("f", ["x = 1", "def f(y):\n    x = y"], ["def f(y):\n    x = y"]),
    "a function's outer names": ("f", ["x = 1", "def f():\n    return x"], ["x = 1", "def f():\n    return x"]),
    "a function's defaults": ("f", ["n = 1", "f = lambda x=n: x"], ["n = 1", "f = lambda x=n: x"]),
    "decorators": ("f", ["import d", "@d.e\ndef f():\n    pass"], ["import d", "@d.e\ndef f():\n    pass"]),
    "a comprehension's variable": ("a", ["i = 1", "a = [i for i in range(3)]"], ["a = [i for i in range(3)]"]),
    "a loop's variable": ("a", ["i = 5", "for i in r:\n    a = i"], ["for i in r:\n    a = i"]),
    "a loop that may not run": ("a", ["a = 1", "for a in []:\n    pass"], ["a = 1", "for a in []:\n    pass"]),
    "a choice that may not be made": ("a", ["t = 0\na = 1", "if t:\n    a = 2"], ["t = 0\na = 1", "if t:\n    a = 2"]),
    "several names at once": ("b", ["a, b = 1, 2", "c = 3"], ["a, b = 1, 2"]),
    "comments stay with what they explain": ("b", ["a = 1  # not this\n# this\nb = 2"], ["# this\nb = 2"]),
    "a part that is named in a string": ("p", ["g = 1", "p = part('__main__:g')"], ["g = 1", "p = part('__main__:g')"]),
    "a choice in the code itself": ("if t:\n    a = 2\nprint(a)", ["a = 1", "t = 0"], ["a = 1", "t = 0"]),
    "what the code sets itself": ("a = 2\nprint(a)", ["a = 1"], []),
    "a default of the same name": ("f", ["x = 1", "f = lambda x=x: x"], ["x = 1", "f = lambda x=x: x"]),
    "two statements in a line": ("b", ["a = 1; b = 2"], ["b = 2"]),
    "nothing": ("1 + len([])", ["a = 1"], []),
}  # fmt: skip


@pytest.mark.parametrize("code, cells, expected", CASES.values(), ids=CASES)
def test_what_code_builds_on(code, cells, expected):
    assert slices.written(slices.builds_on(code, slices.read(cells)), code) == expected


def test_empty_lines_are_those_that_a_formatter_wants():
    cell = "import math\nx = 1\ndef f():\n    return x\ny = f()\nz = math.pi"
    (found,) = slices.written(slices.builds_on("y, z", slices.read([cell])), "y, z")
    assert found == "import math\n\nx = 1\n\n\ndef f():\n    return x\n\n\ny = f()\nz = math.pi"


def test_the_same_cells_read_twice_are_the_same_statements():
    cells = ["a = 1\nb = a", "def f():\n    return b"]
    assert slices.read(cells) == slices.read(cells)


def test_what_is_no_python_is_said():
    with pytest.raises(SyntaxError):
        slices.read(["%matplotlib inline"])
