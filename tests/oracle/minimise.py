"""Make a failing program small: drop statements and parts of expressions while it still fails."""

from __future__ import annotations

import ast
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from .programs import Source
from .runner import TooSlow, without_magics

Fails = Callable[[Source], bool]


def minimise(source: Source, fails: Fails, seconds: float = 60.0) -> Source:
    """A smaller program for which `fails` still holds, found within about `seconds`."""
    deadline = time.monotonic() + seconds
    source = _as_script(source, fails)
    changed = True
    while changed and time.monotonic() < deadline:
        changed = False
        for path in sorted(source.files, key=lambda path: path != source.main):
            smaller = _shrink_file(source, path, fails, deadline)
            changed = changed or smaller.files != source.files
            source = smaller
    return source


def _as_script(source: Source, fails: Fails) -> Source:
    if not source.main.endswith(".ipynb"):
        return source
    cells = [each for each in json.loads(source.files[source.main])["cells"] if each["cell_type"] == "code"]
    text = "\n".join(without_magics("".join(each["source"])) for each in cells)
    files = {path: content for path, content in source.files.items() if path != source.main}
    script = replace(source, files={**files, "main.py": text}, main="main.py")
    return script if _holds(script, fails) else source


def _holds(source: Source, fails: Fails) -> bool:
    with contextlib.suppress(Exception, TooSlow):
        return fails(source)
    return False


def _shrink_file(source: Source, path: str, fails: Fails, deadline: float) -> Source:
    if path.endswith(".ipynb"):
        return source
    if path != source.main:
        without = replace(source, files={each: text for each, text in source.files.items() if each != path})
        if _holds(without, fails):
            return without
    position = 0
    while time.monotonic() < deadline:
        variants = list(_variants(source.files[path]))
        if position >= len(variants):
            break
        text = variants[position]()
        smaller = replace(source, files={**source.files, path: text})
        if text != source.files[path] and len(text) <= len(source.files[path]) and _holds(smaller, fails):
            source = smaller
        else:
            position += 1
    return source


def _variants(text: str) -> Iterator[Callable[[], str]]:
    """Every program that is one step smaller; largest steps first."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except SyntaxError:
        return
    for index, node in enumerate(nodes):
        for name, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.AST):
                size = len(value) // 2
                while size > 1 and isinstance(value[0], ast.stmt):
                    for start in range(0, len(value), size):
                        yield lambda index=index, name=name, start=start, size=size: _without(
                            text, index, name, start, size
                        )
                    size //= 2
                for start in range(len(value)):
                    yield lambda index=index, name=name, start=start: _without(text, index, name, start, 1)
                    if isinstance(value[start], ast.stmt):
                        yield lambda index=index, name=name, start=start: _unwrapped(text, index, name, start)
            elif isinstance(value, ast.expr) and name not in ("annotation", "func"):
                yield lambda index=index, name=name: _hoisted(text, index, name, None)
                for child in range(sum(isinstance(each, ast.expr) for each in ast.iter_child_nodes(value))):
                    yield lambda index=index, name=name, child=child: _hoisted(text, index, name, child)


def _tree(text: str, index: int) -> tuple[ast.Module, ast.AST]:
    tree = ast.parse(text)
    return tree, list(ast.walk(tree))[index]


def _unparsed(tree: ast.Module) -> str:
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def _without(text: str, index: int, name: str, start: int, count: int) -> str:
    tree, node = _tree(text, index)
    values = getattr(node, name)
    statements = isinstance(values[0], ast.stmt)
    if isinstance(node, ast.Dict):
        del node.keys[start : start + count], node.values[start : start + count]
    else:
        del values[start : start + count]
    if statements and not values and name == "body" and not isinstance(node, ast.Module):
        values.append(ast.Pass())
    return _unparsed(tree)


def _unwrapped(text: str, index: int, name: str, start: int) -> str:
    tree, node = _tree(text, index)
    values = getattr(node, name)
    inner = [*getattr(values[start], "body", []), *getattr(values[start], "finalbody", [])]
    if inner and not isinstance(values[start], (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
        values[start : start + 1] = inner
    return _unparsed(tree)


def _hoisted(text: str, index: int, name: str, child: int | None) -> str:
    tree, node = _tree(text, index)
    value = getattr(node, name)
    if child is None:
        new: ast.expr = ast.Constant(1)
    else:
        new = [each for each in ast.iter_child_nodes(value) if isinstance(each, ast.expr)][child]
    setattr(node, name, new)
    return _unparsed(tree)
