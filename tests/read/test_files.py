"""Which files are checked, and how bytes become text."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klguard.read.files import Failure, SourceText, discover, read, read_bytes, read_text, reported
from klguard.read.notebook import CellSpan


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Makes files below an empty current directory."""
    monkeypatch.chdir(tmp_path)

    def make(*files: str) -> Path:
        for name in files:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def found(*paths: str, **options) -> list[str]:
    return [reported(file) for file in discover(paths or (".",), **options).files]


# --- discovery --------------------------------------------------------------------------------------------


def test_a_directory_stands_for_its_python_and_its_notebooks_in_a_fixed_order(tree):
    tree("b.py", "a/z.py", "a/n.ipynb", "a/stub.pyi", "a/notes.txt", "a.py")
    assert found() == ["a.py", "a/n.ipynb", "a/z.py", "b.py"]


def test_a_file_that_is_named_is_taken_whatever_its_ending(tree):
    tree("train", "build/x.py")
    assert found("train", "build/x.py") == ["build/x.py", "train"]


def test_each_file_is_taken_once(tree):
    tree("src/a.py")
    assert found("src", "src/a.py", ".", "./src/") == ["src/a.py"]


def test_a_missing_path_is_an_error_and_the_others_are_still_taken(tree):
    tree("a.py")
    discovery = discover(["gone.py", "a.py"])
    assert discovery.errors == ["gone.py: no such file or directory"]
    assert discovery.files == [Path("a.py")]


LEFT_OUT = ".git .venv venv node_modules __pycache__ build dist site-packages .ipynb_checkpoints .tox .nox"


@pytest.mark.parametrize("name", LEFT_OUT.split())
def test_caches_environments_and_builds_are_not_entered_unless_named(tree, name):
    tree(f"{name}/a.py", f"src/{name}/b.py")
    assert found() == []
    assert found(name) == [f"{name}/a.py"]
    assert set(found(exclude=[f"!{name}/"])) == {f"{name}/a.py", f"src/{name}/b.py"}


def test_a_virtual_environment_is_known_by_its_configuration(tree):
    tree("env/pyvenv.cfg", "env/lib/x.py", "other/env/x.py")
    assert found() == ["other/env/x.py"]
    assert found("env") == ["env/lib/x.py"]


def test_excluded_files_are_left_out_by_patterns_relative_to_the_root(tree):
    tree("a.py", "gen/b_pb2.py", "gen/c.py", "old/d.py", "src/old/e.py")
    assert found(exclude=["*_pb2.py", "/old/"]) == ["a.py", "gen/c.py", "src/old/e.py"]
    assert found("src", exclude=["/src/old/"]) == []
    assert found("src", exclude=["/old/"], root="src") == []


def test_to_name_a_directory_overrules_the_pattern_that_excludes_it_and_no_other(tree):
    tree("old/a.py", "old/b_pb2.py")
    assert found("old", exclude=["old/", "*_pb2.py"]) == ["old/a.py"]


def test_force_exclude_holds_for_named_paths_too_and_counts_them(tree):
    tree("old/a.py", "new/b.py", "build/c.py")
    discovery = discover(["old/a.py", "old", "new/b.py", "build/c.py"], exclude=["old/"], force_exclude=True)
    assert (discovery.files, discovery.excluded) == ([Path("new/b.py")], 3)


# --- gitignore --------------------------------------------------------------------------------------------


def test_the_innermost_gitignore_that_mentions_a_file_decides(tree):
    tree(".git/HEAD", "a.gen.py", "out/d.py")
    tree("sub/b.gen.py", "sub/keep.gen.py", "sub/deep/c.gen.py")
    write(".gitignore", "*.gen.py\nout/\n")
    write("sub/.gitignore", "!keep.gen.py\n")
    write("sub/deep/.gitignore", "!*.py\n")
    assert found() == ["sub/deep/c.gen.py", "sub/keep.gen.py"]
    assert len(found(respect_gitignore=False)) == 5


def test_the_ignore_files_above_a_named_directory_count(tree):
    tree(".git/HEAD", "pkg/sub/a.py", "pkg/sub/b.py", "pkg/sub/c.py")
    write(".gitignore", "/pkg/sub/a.py\n")
    write("pkg/.gitignore", "b.py\n")
    write(".git/info/exclude", "c.py\n")
    assert found("pkg/sub") == []
    assert found("pkg/sub", respect_gitignore=False) == ["pkg/sub/a.py", "pkg/sub/b.py", "pkg/sub/c.py"]


def test_outside_a_repository_nothing_above_a_named_directory_counts(tree):
    tree("pkg/a.py")
    write(".gitignore", "a.py\n")
    assert found("pkg") == ["pkg/a.py"]


def test_a_directory_that_git_ignores_is_checked_when_it_is_named(tree):
    tree(".git/HEAD", "out/a.py", "out/b.py")
    write(".gitignore", "out/\nb.py\n")
    assert found("out") == ["out/a.py"]


def test_a_worktree_reads_the_excludes_of_its_repository(tree):
    tree("main/.git/worktrees/w/HEAD", "w/a.py", "w/b.py")
    write("main/.git/worktrees/w/commondir", "../..\n")
    write("main/.git/info/exclude", "b.py\n")
    write("w/.git", f"gitdir: {Path('main/.git/worktrees/w').absolute()}\n")
    assert found("w") == ["w/a.py"]


@pytest.mark.parametrize(
    "text", ["!\n/\na.py\n", "\ufeffa.py\n", "a.py\r\n", "**/[\na.py\n", "\udce9\na.py", "b[n-f]\na.py"]
)
def test_an_odd_gitignore_is_read_as_far_as_it_makes_sense(tree, text):
    tree("a.py", "b.py")
    Path(".gitignore").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert found() == ["b.py"]


def test_ignored_files_are_those_that_git_ignores(tree):
    files = ["a.py", "x/a.py", "x/y/a.py", "x/y/b.py", "logs/c.py", "x/logs/c.py", "d/e/f.py", "d/g.py"]
    tree(*files, "k.py")
    write(".gitignore", "/a.py\nlogs/\nd/*\n!d/g.py\n*.tmp.py\n**/y/b.py\n\\#k.py\n# k.py\n")
    if subprocess.run(["git", "init", "-q"], capture_output=True).returncode:
        pytest.skip("no git")
    listed = ["git", "ls-files", "--others", "--exclude-standard", "--", "*.py"]
    assert found() == sorted(subprocess.run(listed, capture_output=True, text=True).stdout.split())


# --- links and speed --------------------------------------------------------------------------------------


def test_links_to_directories_are_not_followed_so_loops_do_no_harm(tree):
    tree("a/b/x.py")
    os.symlink("..", "a/b/up")
    os.symlink("a", "again")
    assert found() == ["a/b/x.py"]
    assert found("again") == ["again/b/x.py"]


def test_a_link_to_a_file_counts_unless_the_file_is_there_itself(tree):
    tree("pkg/x.py", "elsewhere/y.py")
    os.symlink("x.py", "pkg/same.py")
    os.symlink("../elsewhere/y.py", "pkg/other.py")
    assert found("pkg") == ["pkg/other.py", "pkg/x.py"]


def test_a_link_to_nothing_is_unreadable_and_an_editors_lock_is_nothing(tree):
    tree("x.py")
    os.symlink("gone.py", "dangling.py")
    os.symlink("user@host.1234", ".#x.py")
    assert found() == ["dangling.py", "x.py"]
    failure = read("dangling.py")
    assert isinstance(failure, Failure)
    assert (failure.code, failure.message) == ("KLG002", "is a link to nothing")


def refuse(function, name):
    """`function` without permission for whatever ends in `name`; also binds root, whom modes do not."""

    def refusing(path, *args, **kwargs):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied")
        return function(path, *args, **kwargs)

    return refusing


def test_a_directory_that_cannot_be_entered_is_a_failure(tree, monkeypatch):
    tree("a.py", "closed/b.py")
    monkeypatch.setattr(os, "scandir", refuse(os.scandir, "closed"))
    discovery = discover(["."])
    assert [failure.message for failure in discovery.failures] == ["cannot be entered: Permission denied"]
    assert [failure.path for failure in discovery.failures] == ["closed"]
    assert discovery.files == [Path("a.py")]


def test_three_thousand_files_take_a_blink(tree):
    tree(*(f"pkg{i % 7}/sub{i % 90}/m{i}.py" for i in range(3000)))
    write(".gitignore", "\n".join(f"*.x{i}" for i in range(20)))
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        assert len(discover(["."]).files) == 3000
        best = min(best, time.process_time() - start)
    assert best < 0.3  # measured: 0.05; the rest is for slow machines


# --- text -------------------------------------------------------------------------------------------------


def text_of(data: bytes, path: str = "a.py") -> str:
    source = read_bytes(data, path)
    assert isinstance(source, SourceText), source
    return source.text


def failure_of(data: bytes, path: str = "a.py") -> Failure:
    failure = read_bytes(data, path)
    assert isinstance(failure, Failure)
    return failure


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param("é\n".encode(), "é\n", id="UTF-8"),
        pytest.param(codecs.BOM_UTF8 + b"x\n", "x\n", id="byte order mark"),
        pytest.param(b"# coding: latin-1\n\xe9\n", "# coding: latin-1\né\n", id="declared"),
        pytest.param(b"\n# vim: fileencoding=cp1252\n\x80", "\n# vim: fileencoding=cp1252\n€", id="vim"),
        pytest.param(b"#\r# coding: latin-1-unix\r\xe9", "#\n# coding: latin-1-unix\né", id="emacs, CR"),
        pytest.param(b"a\r\nb\rc\n", "a\nb\nc\n", id="line endings"),
        pytest.param(b"a\x0cb\n\x0c\nc\x1d\n", "a\x0cb\n\x0c\nc\x1d\n", id="form feeds stay"),
        pytest.param(b"x = 1", "x = 1", id="no newline at the end"),
        pytest.param(b"", "", id="empty"),
    ],
)
def test_source_is_decoded_as_python_does(data, text):
    assert text_of(data) == text


@pytest.mark.parametrize(
    ("data", "line", "column", "words"),
    [
        pytest.param(b"a = 1\nb = '\xe9'\n", 2, 6, "byte 0xe9 at offset 11", id="not UTF-8"),
        pytest.param("é".encode() + b"\r\n\xff", 2, 1, "byte 0xff at offset 4", id="place in characters"),
        pytest.param(b"# coding: ascii\n\xe9", 2, 1, "is not ascii", id="not what it declares"),
        pytest.param(b"# coding: klingon\n", 1, 1, "klingon", id="unknown encoding"),
        pytest.param(b"# coding: rot13\n", 1, 1, "rot13", id="not an encoding of text"),
        pytest.param(b"# coding: undefined\n", 1, 1, "undefined", id="an encoding that always fails"),
        pytest.param(codecs.BOM_UTF8 + b"# coding: latin-1\n", 1, 1, "utf-8", id="two declarations"),
        pytest.param("x = 1\n".encode("utf-16"), 1, 1, "UTF-16", id="UTF-16"),
        pytest.param(b"x = 1\ny = \0\n", 2, 5, "NUL", id="NUL"),
        pytest.param(b"# coding: unicode_escape\nx = '\\ud800'\n", 2, 6, "surrogate", id="half a character"),
    ],
)
def test_bytes_that_are_not_text_are_unreadable_with_their_place(data, line, column, words):
    failure = failure_of(data)
    assert (failure.code, failure.line, failure.column) == ("KLG002", line, column)
    assert words in failure.message


ENCODINGS = st.sampled_from(b"latin-1 utf-7 utf-16 idna punycode cp932 hex undefined unicode_escape".split())
DECLARED = st.builds(lambda name, rest: b"# coding: " + name + b"\n" + rest, ENCODINGS, st.binary())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(deadline=None)
@given(st.binary() | DECLARED)
def test_any_bytes_are_text_or_a_failure(data):
    for path in ("a.py", "a.ipynb"):
        source = read_bytes(data, path)
        assert isinstance(source, Failure) or "\r" not in source.text


def test_text_from_an_editor_is_treated_alike():
    source = read_text("\ufeffa\r\nb", "x.py")
    assert isinstance(source, SourceText)
    assert (source.text, source.cells, source.locate(2), source.row(None, 2)) == ("a\nb", None, (None, 2), 2)


def test_places_of_a_notebook_are_found_both_ways():
    texts = {"a\nb": "code", "c": "markdown", "!ls\nd": "code"}
    cells = [{"cell_type": kind, "source": text} for text, kind in texts.items()]
    source = read_text(json.dumps({"cells": cells}), "x.ipynb")
    assert isinstance(source, SourceText)
    assert source.cells == (CellSpan(0, 1, 2), CellSpan(2, 3, 2))
    assert [source.locate(line) for line in range(1, 5)] == [(0, 1), (0, 2), (2, 1), (2, 2)]
    assert [source.row(*source.locate(line)) for line in range(1, 5)] == [1, 2, 3, 4]
    assert source.lines[2] == "!ls"
    assert source.text.split("\n")[2] == "pass"


def test_a_broken_cell_is_a_syntax_error_with_its_cell():
    source = read_text(json.dumps({"cells": [{"cell_type": "code", "source": "a = 1\nb = = 2"}]}), "x.ipynb")
    assert isinstance(source, SourceText)
    [failure] = source.failures
    assert (failure.code, failure.cell, failure.line, failure.column) == ("KLG001", 0, 2, 5)
    finding = failure.finding()
    assert (finding.code, finding.name, finding.place.cell) == ("KLG001", "syntax-error", 0)


def test_what_is_not_a_notebook_is_unreadable():
    assert "not a notebook" in failure_of(b"x = 1", "x.ipynb").message


def test_a_notebook_without_code_has_no_places_to_look_up():
    source = read_text('{"cells": []}', "x.ipynb")
    assert isinstance(source, SourceText)
    assert (source.text, source.cells) == ("", ())


# --- files ------------------------------------------------------------------------------------------------


def test_files_over_the_limit_are_not_read(tree):
    tree()
    write("big.py", "x" * 2_000_001)
    failure = read("big.py", limit=2_000_000)
    assert isinstance(failure, Failure)
    assert failure.message == "is 2.0 MB, over the limit of 2 MB (max-file-size)"


def test_what_is_not_a_file_is_unreadable(tree):
    tree("pkg/a.py")
    os.mkfifo("pipe.py")
    messages = {"pkg": "is a directory", "pipe.py": "is not a regular file", "gone.py": "does not exist"}
    for path, message in messages.items():
        failure = read(path)
        assert isinstance(failure, Failure)
        assert (failure.code, failure.message) == ("KLG002", message)


def test_a_file_without_permission_is_unreadable(tree, monkeypatch):
    tree("a.py")
    monkeypatch.setattr(os, "stat", refuse(os.stat, "a.py"))
    failure = read("a.py")
    assert isinstance(failure, Failure)
    assert "Permission denied" in failure.message


def test_paths_are_reported_relative_to_the_current_directory_where_they_lie_below_it(tree):
    root = tree("pkg/a.py")
    assert reported(root / "pkg" / "a.py") == reported("./pkg/../pkg/a.py") == "pkg/a.py"
    assert reported("..") == root.parent.as_posix()
    assert reported(".") == "."


def test_a_name_that_is_not_text_is_reported_in_text(tree):
    tree()
    os.close(os.open(b"\xff.py", os.O_CREAT))
    [file] = discover(["."]).files
    assert reported(file) == "\\udcff.py"
    assert isinstance(read(file), SourceText)
