"""Styles of importing: how one file of a program reaches a name defined in another."""

from __future__ import annotations

from ..scope import File, Scope, Styles

IMPORTS = Styles("import", nest=False)
_NAMES = ("defaults", "common", "sampling_values", "presets")
_FOLDERS = ("", "", "project", "project/inner")


def helper(scope: Scope) -> File:
    """A file that `scope`'s file may import: an existing one, or a new module or package member."""
    files = scope.program.files
    later = files[files.index(scope.file) + 1 :]
    modules = [file for file in later if not file.path.endswith("__init__.py")]
    if modules and (len(files) > 6 or scope.chance(50)):
        return scope.choices.pick(modules)
    folder = scope.choices.pick(_FOLDERS)
    module = File(f"{folder}/{_name(scope)}.py".lstrip("/"))
    files.append(module)
    while folder:
        if not any(file.path == f"{folder}/__init__.py" for file in files):
            files.append(File(f"{folder}/__init__.py"))
        folder = folder.rpartition("/")[0]
    return module


def _name(scope: Scope) -> str:
    return scope.unique(scope.choices.pick(_NAMES))


def reach(scope: Scope, file: File, name: str) -> str:
    """An expression, valid in `scope`, for the module-level `name` of `file`."""
    return name if file is scope.file else IMPORTS.choose(scope, 1, file, name)


@IMPORTS("from m import name")
def from_import(s: Scope, depth: int, file: File, name: str) -> str:
    s.uses(f"from {file.module} import {name}")
    return name


@IMPORTS("from m import name as other")
def from_import_as(s: Scope, depth: int, file: File, name: str) -> str:
    other = f"{name}_{s.unique('imported')}"
    s.uses(f"from {file.module} import {name} as {other}")
    return other


@IMPORTS("import m")
def plain_import(s: Scope, depth: int, file: File, name: str) -> str:
    s.uses(f"import {file.module}")
    return f"{file.module}.{name}"


@IMPORTS("import m as other")
def import_as(s: Scope, depth: int, file: File, name: str) -> str:
    other = s.unique("module")
    s.uses(f"import {file.module} as {other}")
    return f"{other}.{name}"


@IMPORTS("from package import m")
def from_package(s: Scope, depth: int, file: File, name: str) -> str:
    if not file.package:
        return plain_import(s, depth, file, name)
    module = file.module.rpartition(".")[2]
    s.uses(f"from {file.package} import {module}")
    return f"{module}.{name}"


@IMPORTS("relative")
def relative(s: Scope, depth: int, file: File, name: str) -> str:
    dots = _dots(s.file, file)
    if not dots:
        return from_import(s, depth, file, name)
    s.uses(f"from {dots} import {name}")
    return name


@IMPORTS("relative module")
def relative_module(s: Scope, depth: int, file: File, name: str) -> str:
    dots = _dots(s.file, file)
    if not dots:
        return import_as(s, depth, file, name)
    module = dots.rpartition(".")[2]
    package = dots.removesuffix(module)
    s.uses(f"from {package if not package.strip('.') else package.rstrip('.')} import {module}")
    return f"{module}.{name}"


def _dots(here: File, there: File) -> str:
    """The relative module path from one file to another of the same top package, "" when there is none."""
    if not here.package or here.package.split(".")[0] != there.package.split(".")[0]:
        return ""
    ours, theirs = here.package.split("."), there.module.split(".")
    while ours and theirs[: len(ours)] != ours:
        ours.pop()
    return "." * (len(here.package.split(".")) - len(ours) + 1) + ".".join(theirs[len(ours) :])


@IMPORTS("star")
def star(s: Scope, depth: int, file: File, name: str) -> str:
    s.uses(f"from {file.module} import *")
    return name


@IMPORTS("in place")
def in_place(s: Scope, depth: int, file: File, name: str) -> str:
    if not s.function:
        return from_import(s, depth, file, name)
    s.emit(f"from {file.module} import {name}")
    return name


@IMPORTS("importlib")
def dynamic(s: Scope, depth: int, file: File, name: str) -> str:
    s.uses("import importlib")
    return f'importlib.import_module("{file.module}").{name}'


@IMPORTS("re-export")
def re_export(s: Scope, depth: int, file: File, name: str) -> str:
    """Through a module or package made for it, placed so that imports never run in a circle."""
    files, line = s.program.files, f"from {file.module} import {s.pick(name, name, '*')}"
    facade = s.unique("facade")
    shape = s.pick("module", "package", "package and member")
    if shape == "module":
        new = [File(f"{facade}.py", imports=[line])]
    elif shape == "package":
        new = [File(f"{facade}/__init__.py", imports=[line])]
    else:
        member = s.unique("member")
        new = [
            File(f"{facade}/__init__.py", imports=[f"from .{member} import {name}"]),
            File(f"{facade}/{member}.py", imports=[line]),
        ]
    files[files.index(file) : files.index(file)] = new
    s.uses(f"from {facade} import {name}")
    return name


@IMPORTS("try import")
def guarded(s: Scope, depth: int, file: File, name: str) -> str:
    s.uses(f"try:\n    from {file.module} import {name}\nexcept ImportError:\n    {name} = None")
    return name
