"""The nodes against libcst, which reads the same text in its own way: kinds, parts, places, values and texts."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest

import klguard
from klguard.read.files import SourceText
from klguard.read.python import nodes
from klguard.read.python.source import Module, TooComplex, parse

ROOT = Path(klguard.__file__).parents[1]

ODD = {
    "tuples": """
a = ( 1, 2 )
a = (1, 2,), (1, 2, ), (), ((), )
a = 1,
a = (b), (c)
a = ((b), (c))
a = (((b), c)), [(d)]
a = ( # note )
    1,
    2, # (two
)
for a, (b, c) in ( (1, (2, 3)), ):
    pass
a[1, 2] = b[(1, 2)] = c[1:2, (d)] = e[(f),] = g[(h), (i)]
a = b[::2], c[d:], e[(1)]
""",
    "arguments": """
f(a, *b, c=(d), *e, **(g), h = i)
f(x for x in y)
f((x for x in y if (z)), (a))
f( ( (x) for x in y ) )
class A(B, metaclass=C): pass
f(**{**(a or b), **c , 'd': (1), **
   (e)})
a = {** b, ** # note
  (  (c)  ) , d: e}
""",
    "logic": """
a = (b) and (c) or not (d) and e
a = b or (c) or ( (d) ) or e
a = b and c and (d and e) and f
a = b if (c) else (d)
a = 1 < (b) <= c is not d not in e
a = -(b) ** ~c
k |= (a)
k //= 3
if (a := b): pass
""",
    "scopes": """
def f(a, b: int = (3), /, c=4, *args: int, d, e = ( 4 ), **kw: dict) -> None:
    return lambda x, *y, z=(1), ** w: (yield x)
def g(*, a): pass
@d
@(e.f)(1)
async def h():
    async with a as (b), c: pass
    async for x, y in (z): await (x)
    return [x async for x in y if a if b for z in x]
@d
class A(B, metaclass=M):
    x: int
    y: "str" = (1)
    def f(self): yield from (self.x)
""",
    "literals": """
a = 1, 2.5, 3j, 'a', "b" 'c', b'd', 0x1f, 1_000, ..., True, None, -1, 1e400
a = "\\x41\\N{BULLET}" r"\\d" '''
b'''
a = f"{b!r:>{c}} {{x}}" f'{d=}' "e"
a = [*b, *(c)], {*d, e}
del a, b, d[0]
global x, y
""",
    "text": """
é = 'ü' ; ß = f(ö, top_k=ä)  # ů
x = '日本', model.generate(名, ключ=( '値' ))
if é: ß = (é,
  'ß', ö)
""",
    "statements": """
if a: b
elif c:
    d; e = 1
elif f: pass
else:
    if g: h
for a in b: c
else: d
while a:
    break
else: continue
try:
    a
except (B, C) as d: e
except D: raise E(f) from g
else: h
finally:
    i
with (a): b
with (a as b, c): assert d, e
import a.b as c, d
from .. import e as f
""",
    "patterns": """
match (a), b:
    case [1, (x), *_] if (c): d
    case {'k': 1 | -2 as y, **rest}: e
    case A.b | None | "s" "t": f
    case Point(x=0): g
    case _: h
""",
}
"""Programs in which `ast` and libcst put parentheses, commas and stars in different places."""

UNCONVERTED = {
    "FunctionDef": {"returns"},
    "ClassDef": {"keywords"},
    "Raise": {"cause"},
    "Assert": {"msg"},
    "MatchClass": {"cls", "patterns", "kwds"},
    "Import": {"names"},
    "ImportFrom": {"module", "names"},
    "Global": {"names"},
    "Nonlocal": {"names"},
}
"""What nobody asks for, by libcst's kind and field."""


def module_of(text: str) -> Module:
    return Module(SourceText("a.py", text, text), "a", parse(text))


def parts(node: nodes.Node) -> list[nodes.Node]:
    """The nodes right below a node."""
    found: list[nodes.Node] = []
    for cls in type(node).__mro__:
        for name in getattr(cls, "__slots__", ()):
            value = getattr(node, name)
            for each in value if isinstance(value, tuple) else (value,):
                if isinstance(each, nodes.Node) and name not in ("origin", "module"):
                    found.append(each)
    return found


def converted(module: Module) -> list[nodes.Node]:
    """All nodes of a module, those within f-strings left out."""
    found = []
    stack: list[nodes.Node] = [module.unit(statement).statement for statement in module.tree.body]
    while stack:
        node = stack.pop()
        found.append(node)
        if not isinstance(node, nodes.FormattedString):
            stack += parts(node)
    return found


def kinds_of_ours(module: Module) -> dict[str, list]:
    found: dict[str, list] = {}
    for node in converted(module):
        kind = type(node).__name__
        if kind == "Arg" and node.keyword is None and node.star != "**":
            continue
        if isinstance(node, nodes.Literal):
            found.setdefault("value", []).append(repr(node.value))
        try:
            place = node.span()
        except KeyError:
            place = None
        found.setdefault(kind, []).append(place)
    return {kind: sorted(places, key=repr) for kind, places in found.items()}


def kinds_of_libcst(text: str) -> dict[str, list]:
    cst = pytest.importorskip("libcst")
    from libcst.metadata import MetadataWrapper, PositionProvider

    wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
    positions = wrapper.resolve(PositionProvider)
    found: dict[str, list] = {}
    literals = (cst.Integer, cst.Float, cst.Imaginary, cst.SimpleString, cst.Ellipsis)

    def renamed(node) -> str:
        if isinstance(node, cst.ConcatenatedString):
            return "Literal" if node.evaluated_value is not None else "FormattedString"
        if isinstance(node, literals):
            return "Literal"
        if isinstance(node, cst.Yield) and isinstance(node.value, cst.From):
            return "YieldFrom"
        return {
            "MatchSingleton": "MatchValue",
            "MatchTuple": "MatchSequence",
            "MatchList": "MatchSequence",
            "StarredElement": "Starred",
        }.get(type(node).__name__, type(node).__name__)

    stack = [wrapper.module]
    while stack:
        node = stack.pop()
        kind, left_out = renamed(node), set()
        for name in UNCONVERTED.get(type(node).__name__, ()):
            value = getattr(node, name)
            left_out |= {id(each) for each in (value if isinstance(value, (list, tuple)) else (value,))}
        if isinstance(node, cst.Del) and isinstance(node.target, cst.Tuple):  # no tuple to us
            left_out.add(id(node.target))
            stack += [element.value for element in node.target.elements]
        if isinstance(node, cst.ClassDef):
            left_out |= {id(base) for base in node.bases}
            stack += [base.value for base in node.bases]
        if kind == "Literal":
            value = ... if isinstance(node, cst.Ellipsis) else node.evaluated_value
            found.setdefault("value", []).append(repr(value))
        if kind != "Arg" or node.keyword is not None or node.star == "**":
            where = positions[node]
            place = (where.start.line, where.start.column, where.end.line, where.end.column)
            found.setdefault(kind, []).append(place)
        if kind not in ("FormattedString", "Literal"):
            stack += [child for child in node.children if id(child) not in left_out]
    return {kind: sorted(places, key=repr) for kind, places in found.items()}


PLACED = (
    "Attribute Call Subscript Starred Await Yield YieldFrom Tuple List Set Dict StarredDictElement ListComp SetComp"
    " GeneratorExp DictComp UnaryOperation BinaryOperation BooleanOperation Comparison IfExp NamedExpr Lambda Param"
    " Literal FormattedString Arg Assign AnnAssign AugAssign Return Raise Assert Del value"
).split()
"""Kinds whose places are the same in both (and the values of literals)."""

COUNTED = (
    "Break Continue Global Nonlocal Import ImportFrom Expr FunctionDef ClassDef For While If Try With WithItem"
    " ExceptHandler Match MatchCase MatchValue MatchSequence MatchOr MatchMapping MatchStar MatchClass MatchAs"
    " DictElement CompFor Parameters ComparisonTarget"
).split()
"""Kinds of which both have as many, and whose places nobody asks for."""


def agree(text: str) -> None:
    ours, theirs = kinds_of_ours(module_of(text)), kinds_of_libcst(text)
    for kind in PLACED:
        assert ours.get(kind, []) == theirs.get(kind, []), kind
    for kind in COUNTED:
        assert len(ours.get(kind, [])) == len(theirs.get(kind, [])), kind
    # libcst has names for what is plain text here: attributes, keywords, parameters.
    assert not set(ours.get("Name", [])) - set(theirs.get("Name", []))


@pytest.mark.parametrize("name", ODD)
def test_nodes_are_what_libcst_sees(name):
    agree(ODD[name])


@pytest.mark.parametrize("path", sorted((ROOT / "fixtures").rglob("*.py")), ids=lambda path: path.name)
def test_nodes_of_the_fixtures_are_what_libcst_sees(path):
    agree(path.read_text())


# -- what libcst has no part in ---------------------------------------------------------------------------------


def value_of(text: str) -> nodes.Node:
    """The expression that the last line of a text is."""
    module = module_of(text)
    return module.unit(module.tree.body[-1]).statement.value


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("f( a,b )", "f( a,b )"),
        ("(a + b)", "a + b"),
        ("(a, b)", "(a, b)"),
        ("x if (y) else 'ü'", "x if (y) else 'ü'"),
        ("(yield\n  a)", "yield\n  a"),
    ],
)
def test_a_text_is_what_is_written(source, written):
    assert value_of(source).text() == written


def test_the_text_of_a_splat_has_its_stars_and_parentheses():
    assert [arg.text() for arg in value_of("f(*(a or b), **(c or d), e=(1))").args] == [
        "*(a or b)",
        "**(c or d)",
        "e=(1)",
    ]
    assert value_of("{'é': 1, **(a or b)}").elements[1].text() == "**(a or b)"


def test_a_node_that_stands_nowhere_has_a_text_and_no_place():
    call = nodes.Call(
        func=value_of("a.b"), args=(nodes.Arg(value=nodes.Name(value="c"), keyword=None, star=""),)
    )
    assert call.text() == "a.b(c)"
    assert nodes.expression(ast.parse("f( x)").body[0].value, None).text() == "f(x)"
    with pytest.raises(KeyError):
        call.span()
    with pytest.raises(AttributeError, match="no elements"):
        _ = call.elements


def test_nodes_are_told_apart_by_identity_and_made_once():
    module = module_of("f(a, a)")
    call = module.unit(module.tree.body[0]).statement.value
    assert call.args[0].value is call.args[0].value
    assert len({call.args[0].value, call.args[1].value}) == 2


def test_only_what_is_read_is_converted():
    module = module_of("def f():\n" + "    a = b + c\n" * 10)
    function = module.unit(module.tree.body[0]).statement
    first, *others = function.body.body
    assert first.value.operator == "Add"
    for other in others:
        with pytest.raises(AttributeError):  # the slot is empty
            nodes.Assign.value.__get__(other)


def test_a_long_sum_is_converted_in_no_time_and_without_recursion():
    tree: ast.expr = ast.Name("a", ast.Load(), lineno=1, col_offset=0, end_lineno=1, end_col_offset=1)
    for _ in range(5000):
        tree = ast.BinOp(tree, ast.Add(), tree, lineno=1, col_offset=0, end_lineno=1, end_col_offset=1)
    start, count = time.process_time(), 0
    node = nodes.expression(tree, module_of("a"))
    while isinstance(node, nodes.BinaryOperation):
        node, count = node.left, count + 1
    assert count == 5000 and node.value == "a"
    assert time.process_time() - start < 1


@pytest.mark.parametrize("source", ["x = " + " + ".join(["a"] * 400), "x = " + " or ".join(["a"] * 400)])
def test_what_is_nested_too_deeply_to_be_executed_is_refused(source):
    module = module_of(source)
    with pytest.raises(TooComplex):
        module.unit(module.tree.body[0])


@pytest.mark.parametrize("quote", ["'''", '"""'])
def test_places_in_f_strings_lie_in_the_file_on_every_python(quote):
    """Up to Python 3.11 `ast` counts lines in a long f-string in its own way."""
    source = f"x = f{quote}\n\n a {{b}} é\n {{f(c,\n (d, e), g[h, i])}}\n{quote} 'z'\ny = (1,)\n"
    module = module_of(source)
    stack: list[nodes.Node] = [module.unit(module.tree.body[0]).statement]
    while stack:
        node = stack.pop()
        stack += parts(node)
        if hasattr(node.origin, "lineno"):
            line, column, end_line, end_column = node.span()
            assert (line, column) <= (end_line, end_column)
            assert isinstance(node.text(), str)
