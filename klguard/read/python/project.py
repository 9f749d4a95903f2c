"""The files of a project, loaded when somebody asks, and how names lead from one to another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from functools import cached_property
from itertools import islice
from pathlib import Path

from klguard.read.files import DEFAULT_LIMIT, Failure, SourceText, discover, read, read_bytes, reported
from klguard.read.python.dialects import parse_script
from klguard.read.python.source import ClassInfo, FunctionInfo, Module
from klguard.read.python.texts import Texts

LIBRARIES = frozenset(
    {"transformers", "trl", "trlx", "vllm", "sglang", "torch", "peft", "accelerate", "datasets"}
)
"""Packages whose names mean the library even where a copy of it lies in the project."""

COMMON = 30
"""Files that may hold a word before it counts as common."""


class Use(Enum):
    """What a file may do with a name, as far as its bytes show. Comments and texts look the same at times: that
    costs a parse, no more."""

    MENTIONED = auto()
    CALLED = auto()
    """Called, or handed to a call."""
    READ = auto()
    """Read as an attribute."""
    DEFINED = auto()
    """The name of a function or method that is defined."""
    INHERITED = auto()
    """Among the bases of a class, or renamed by an import."""

    def shows(self, content: bytes, word: bytes) -> bool:
        """Whether a file that holds `word` may use it so."""
        match self:
            case Use.CALLED:
                calls = content.count(word + b"(") - content.count(b"def " + word + b"(")
                return calls > 0 or any(word + end in content for end in _AFTER_A_NAME)
            case Use.READ:
                return b"." + word in content
            case Use.DEFINED:
                return b"def " + word in content
            case Use.INHERITED:
                return re.search(word + rb"(?:[ \t]+as\b|[^:]*\)\s*:)", content) is not None
        return True


_AFTER_A_NAME = (b".", b",", b")", b"]", b"[", b" (", b" ,", b" )", b"\n", b"\r", b" #")
"""What follows a name that is handed to a call, or called in an unusual layout."""


class Project:
    """A directory tree of Python files. Nothing is read until it is needed.

    Besides finding modules by dotted name it answers "who mentions this word", the cheap question
    (bytes, no parsing) from which callers are found.
    """

    def __init__(
        self,
        root: Path,
        files: Mapping[str, Path] | None = None,
        text: Mapping[str, bytes] | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> None:
        """`files` are the project's files by reported path (default: all below `root`); `text` holds the content of
        those that are not read from disk; `limit` is the size in bytes above which a file is not read.
        """
        found = {reported(file): file for file in discover([root]).files} if files is None else files
        self._begin(Path(root), Texts(found, text or {}), limit)

    def _begin(self, root: Path, texts: Texts, limit: int) -> None:
        self.root = root
        self.texts = texts
        self.limit = limit
        self._modules: dict[str, Module | None] = {}
        self.failures: dict[str, tuple[Failure, ...]] = {}
        self.read_paths: set[str] = set()
        self.words: set[str] = set()
        self._near: dict[tuple[str, str, Use, str], list[str]] = {}
        self._binds: dict[tuple[str, str], bool] = {}
        self._stars: dict[str, list[str]] = {}
        self._found: dict[tuple[str, str], str | None] = {}
        self._meant: dict[tuple[str, str], FunctionInfo | ClassInfo | Module | str] = {}

    @classmethod
    def of_text(cls, text: str, path: str) -> Project:
        """A project of one piece of source (stdin, a rule's example)."""
        return cls(Path("."), {path: Path(path)}, {path: text.encode()})

    def fresh(self) -> Project:
        """A project of the same files, of which nothing is parsed yet; what was found in their bytes is kept."""
        other = Project.__new__(Project)
        other._begin(self.root, self.texts, self.limit)
        return other

    @property
    def paths(self) -> Mapping[str, Path]:
        """Reported path -> where it lies, for every Python file and notebook of the project."""
        return self.texts.paths

    def module(self, path: str) -> Module | None:
        """The module at a reported path, or None when it cannot be read or parsed (see `failures`)."""
        if path not in self._modules:
            self._modules[path] = None
            self.read_paths.add(path)
            content = self.texts.given.get(path)
            place = self.paths.get(path, Path(path))
            source = read(place, limit=self.limit) if content is None else read_bytes(content, path)
            self._modules[path] = self._parsed(path, source)
        return self._modules[path]

    def _parsed(self, path: str, source: SourceText | Failure) -> Module | None:
        if isinstance(source, Failure):
            self.failures[path] = (source,)
            return None
        self.failures[path] = source.failures
        try:
            source, tree = parse_script(source)
        except SyntaxError as error:
            cell, line = source.locate(error.lineno or 1)
            failure = Failure("KLG001", error.msg or "invalid syntax", path, cell, line, error.offset or 1)
            self.failures[path] = (*source.failures, failure)
            return None
        return Module(source, _module_name(path), tree)

    def near(self, module: Module, word: str, use: Use, hint: str = "") -> Iterator[Module]:
        """`module` and other files in which `word` may have this `use`, those with `hint` first, then in path order.

        A word that more than COMMON files hold says nothing about who means what: of those only the ones in the
        folder of `module` count, and the ones with `hint`.
        """
        yield module
        for path in self._neighbours(module.path, word, use, hint):
            if (other := self.module(path)) is not None:
                yield other

    def _neighbours(self, path: str, word: str, use: Use, hint: str) -> list[str]:
        """The files beside `path` that `near` gives. Told by the bytes: parsing one costs a thousand times as much."""
        folder = path.rpartition("/")[0]
        key = folder, word, use, hint
        if key not in self._near:
            holding = set(self._holding(word)) if hint else set()
            hinted = [each for each in self._spread(hint, folder) if each in holding] if hint else []
            called = word.encode()
            self._near[key] = [
                each
                for each in dict.fromkeys((*hinted, *self._spread(word, folder)))
                if each.endswith(".ipynb") or use.shows(self.texts.content(each), called)
            ]
        return [each for each in self._near[key] if each != path]

    def mentioning(self, pattern: str, word: str) -> Iterator[Module]:
        """Modules whose bytes match a regular expression that holds `word`, in path order."""
        looked_for = re.compile(pattern.encode())
        for path in self._holding(word):
            if looked_for.search(self.texts.content(path)) and (module := self.module(path)) is not None:
                yield module

    def _spread(self, word: str, folder: str) -> list[str]:
        """The paths that hold `word`: all of them, or where it is common those in `folder`."""
        paths = self._holding(word)
        if len(paths) <= COMMON:
            return paths
        self.read_paths.update(paths[: COMMON + 1])  # what makes the word common
        return list(islice((path for path in paths if path.rpartition("/")[0] == folder), COMMON))

    def _holding(self, word: str) -> list[str]:
        """Paths whose text holds `word` as a whole word, in order."""
        self.words.add(word)
        return self.texts.holding(word)

    # -- names -------------------------------------------------------------------------------------------------

    @cached_property
    def _by_last_name(self) -> dict[str, list[tuple[tuple[str, ...], str]]]:
        """Last component -> (all components of the file's dotted path, reported path)."""
        index: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for path in self.paths.keys() | self._modules.keys():
            if not path.endswith(".py"):
                continue
            parts = tuple(part for part in path[:-3].split("/") if part not in ("", "."))
            if parts and parts[-1] == "__init__":
                parts = parts[:-1]
            if parts:
                index.setdefault(parts[-1], []).append((parts, path))
        return index

    def find_module(self, name: str, importer: Module) -> Module | None:
        """The module that `import name` means in `importer`; None when it is not a file of this project."""
        path = self._path_of(name, importer.path)
        return None if path is None else self.module(path)

    def _path_of(self, name: str, importer: str) -> str | None:
        """The reported path of what `import name` means in the file `importer`; None outside the project."""
        key = name, importer.rpartition("/")[0]
        if key not in self._found:
            self._found[key] = self._find_path(name, importer)
        return self._found[key]

    def _find_path(self, name: str, path: str) -> str | None:
        here = tuple(part for part in path.split("/")[:-1] if part not in ("", "."))
        if name.startswith("."):
            level = len(name) - len(name.lstrip("."))
            base = here[: len(here) - (level - 1)] if level > 1 else here
            rest = tuple(part for part in name.lstrip(".").split(".") if part)
            return self._exact(base + rest)
        parts = tuple(name.split("."))
        if parts[0] in LIBRARIES:
            return None
        return self._absolute(parts, here) or (
            self._absolute(parts[1:], here) if len(parts) > 1 and self._is_root(parts[0]) else None
        )

    def _is_root(self, name: str) -> bool:
        """Whether the project's own directory has this name: its files are imported from beside it."""
        return re.fullmatch(rf"(.*\W)?{re.escape(name.lower())}(_main|_master)?", self._folder) is not None

    @cached_property
    def _folder(self) -> str:
        return self.root.resolve().name.lower().replace("-", "_")

    def _absolute(self, parts: tuple[str, ...], here: tuple[str, ...]) -> str | None:
        candidates = [
            (full, path)
            for full, path in self._by_last_name.get(parts[-1], ())
            if full[-len(parts) :] == parts
        ]
        on_the_way = [
            c for c in candidates if here[: len(c[0]) - len(parts)] == c[0][: len(c[0]) - len(parts)]
        ]
        if on_the_way:
            return max(on_the_way, key=lambda c: (len(c[0]), c[1]))[1]
        rooted = [c for c in candidates if len(c[0]) - len(parts) <= 2]
        return rooted[0][1] if len(rooted) == 1 else None

    def _exact(self, parts: tuple[str, ...]) -> str | None:
        for full, path in self._by_last_name.get(parts[-1], ()) if parts else ():
            if full == parts:
                return path
        return None

    def resolve(
        self, name: str, module: Module, seen: frozenset = frozenset()
    ) -> FunctionInfo | ClassInfo | Module | str:
        """What dotted `name` means at the top level of `module`: a function, class or module of the project,
        else the dotted name outside it (`transformers.GenerationConfig`); the name itself where it is not an import."""
        if seen:
            return self._resolve(name, module, seen)
        key = name, module.path
        if key not in self._meant:
            self._meant[key] = self._resolve(name, module, seen)
        return self._meant[key]

    def _resolve(self, name: str, module: Module, seen: frozenset) -> FunctionInfo | ClassInfo | Module | str:
        head, _, rest = name.partition(".")
        if head in module.functions and not rest:
            return module.functions[head]
        if name in module.classes:
            return module.classes[name]
        if name in module.functions:
            return module.functions[name]
        if head in module.imports:
            target = module.imports[head] + (f".{rest}" if rest else "")
            return self._follow(target, module, seen | {(module.path, name)})
        for star in module.star_imports:
            path = self._path_of(star, module.path)
            if path is None or not self._may_give(path, head):
                continue
            if (found := self.find_module(star, module)) is not None and (found.path, name) not in seen:
                result = self.resolve(name, found, seen | {(module.path, name)})
                if not isinstance(result, str) or result != name:
                    return result
        return name

    def _may_give(self, path: str, name: str) -> bool:
        """Whether `import *` of the file at `path` may give `resolve` a `name`: it defines or imports something so
        called, or passes on the names of a file that does. Asked of the bytes: packages import hundreds of files so."""
        holding = set(self._holding(name))
        return any(each in holding and self._may_bind(each, name) for each in self._passed_on(path))

    def _may_bind(self, path: str, name: str) -> bool:
        key = path, name
        if key not in self._binds:
            binding = _BINDING.replace(b"NAME", re.escape(name.encode()))
            self._binds[key] = re.search(binding, self.texts.content(path)) is not None
        return self._binds[key]

    def _passed_on(self, path: str) -> list[str]:
        """The file at `path` and those of which it imports everything, one through the other."""
        if path not in self._stars:
            found, known = [path], {path}
            for each in found:  # grows while it is gone through
                content = self.texts.content(each)
                for match in _STAR.finditer(content) if b"import *" in content else ():
                    other = self._path_of(match[1].decode("ascii"), each)
                    if other is not None and other not in known:
                        known.add(other)
                        found.append(other)
            self._stars[path] = found
            self.read_paths.update(found)
        return self._stars[path]

    def _follow(
        self, target: str, module: Module, seen: frozenset
    ) -> FunctionInfo | ClassInfo | Module | str:
        lead = len(target) - len(target.lstrip("."))
        parts = target[lead:].split(".")
        for cut in range(len(parts), 0, -1):
            found = self.find_module("." * lead + ".".join(parts[:cut]), module)
            if found is None:
                continue
            if cut == len(parts):
                return found
            inner = ".".join(parts[cut:])
            if (found.path, inner) in seen:
                return target
            result = self.resolve(inner, found, seen)
            return target if result == inner else result
        if (
            lead
            and (package := self.find_module("." * lead, module)) is not None
            and (package.path, parts[0]) not in seen
        ):
            result = self.resolve(".".join(parts), package, seen)
            return target if result == ".".join(parts) else result
        return target


_STAR = re.compile(rb"\bfrom\s+([\w.]+)\s+import \*", re.ASCII)

_BINDING = rb"""(?xm) (?:def|class) \s+ NAME \b
    | \b import \b (?:[^()\n] | \\\r?\n)* \b NAME \b
    | \b import \s* \( [^)]* \b NAME \b
    | ^\s* NAME \s* (?:,|as\b|\)|[#]|$)"""
"""Where a definition or an import statement holds NAME; the last line is for lists with comments between the names."""


def _module_name(path: str) -> str:
    parts = [part for part in path.rsplit(".", 1)[0].split("/") if part not in ("", ".", "..")]
    return ".".join(parts[:-1] if parts and parts[-1] == "__init__" else parts)
