"""What Python starts a framework with: what is read must be what would run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from klguard import check_source
from klguard.gate import Gate
from klguard.read.configs.launches import launches
from klguard.read.configs.shell import commands
from klguard.read.configs.written import Written
from klguard.read.files import SourceText, read_bytes

HEAD = "import argparse, os, shlex, subprocess, sys, textwrap\nMODEL = 'my/model'\n"
VERL = "'-m', 'verl.trainer.main_ppo', 'algorithm.adv_estimator=grpo'"

PROGRAMS = {
    "a list": f"run([sys.executable, {VERL}, 'actor_rollout_ref.rollout.top_k=50'])",
    "a name": f"cmd = ['python3', {VERL}, 'actor_rollout_ref.rollout.top_p=0.9']\nrun(cmd, check=True)",
    "an f-string": f"p = 0.9\nrun(['python', {VERL}, f'rollout.top_p={{p}}', f'x={{MODEL}}/a'])",
    "a constant of the module": (
        f"K = -1\ndef main():\n    run(['python', {VERL}, f'actor_rollout_ref.rollout.top_k={{K}}'])\nmain()"
    ),
    "a sum": f"extra = ['a.b=1']\nrun(['python', {VERL}] + extra + ['c.d=2.5'])",
    "a star": f"extra = ('a.b=1', 'c.d=x')\nrun(['python', {VERL}, *extra, 'a.b=2'])",
    "what is appended": (
        f"cmd = ['python', {VERL}]\ncmd += ['a.b=1']\ncmd.append('a.c=2')\ncmd.extend(['a.d=3', 'a.b=4'])\nrun(cmd)"
    ),
    "a name that grows by assignment": f"cmd = ['python', {VERL}]\ncmd = cmd + ['a.b=1']\nrun(cmd)",
    "on one path": f"cmd = ['python', {VERL}, 'a.b=1']\nif len(MODEL) > 3:\n    cmd.append('a.b=2')\nrun(cmd)",
    "on the other path": f"cmd = ['python', {VERL}, 'a.b=1']\nif not MODEL:\n    cmd += ['a.b=2']\nrun(cmd)",
    "in a loop": (
        f"cmd = ['python', {VERL}]\nfor k, v in {{'a.b': 1}}.items():\n    cmd.append(f'{{k}}={{v}}')\nrun(cmd)"
    ),
    "given twice": (
        f"p = '0.9'\nif MODEL:\n    p = '0.8'\nrun(['python', {VERL}, f'actor_rollout_ref.rollout.top_p={{p}}'])"
    ),
    "a function that returns it": f"def build():\n    return ['python', {VERL}, 'a.b=1']\nrun(build() + ['c.d=2'])",
    "a parameter": f"def start(p):\n    run(['python', {VERL}, f'a.b={{p}}', 'c.d=1'])\nstart(0.5)",
    "a default of the command line": (
        "p = argparse.ArgumentParser()\np.add_argument('--top-p', type=float, default=0.9)\n"
        f"a = p.parse_args([])\nrun(['python', {VERL}, f'actor_rollout_ref.rollout.top_p={{a.top_p}}'])"
    ),
    "a default of the environment": (
        f"run(['python', {VERL}, 'a.b=' + os.environ.get('NOBODY', '7'), f\"a.c={{os.getenv('NOR', 3)}}\"])"
    ),
    "options and their values": (
        "run(['swift', 'rlhf', '--rlhf_type', 'grpo', '--beta', str(0.04), '--top_k', f'{50}', '--use_vllm'])"
    ),
    "a text": "os.system('python3 -m openrlhf.cli.train_ppo_ray --top_p 0.8 --init_kl_coef 0.01')",
    "a text of several lines": (
        "os.system('''\n python3 -m openrlhf.cli.train_ppo_ray \\\\\n    --top_p 0.8 \\\\\n    --init_kl_coef 0.01\n''')"
    ),
    "texts side by side": (
        "ckpt = '--hf-checkpoint /a '\nroll = (\n    '--num-rollout 9 --rollout-batch-size 32 '\n"
        "    '--rollout-top-p 0.9 '\n)\nos.system(f'python3 train.py {ckpt} {roll} --n-samples-per-prompt 8')"
    ),
    "a text that grows": (
        "cmd = 'python3 -m openrlhf.cli.train_ppo_ray --top_p 0.8'\ncmd += ' --init_kl_coef 0.01'\n"
        "if not MODEL:\n    cmd += ' --top_p 0.5'\nos.system(cmd)"
    ),
    "words that are joined": (
        "parts = ['python3 -m openrlhf.cli.train_ppo_ray', '--top_p 0.8', f'--pretrain {MODEL}']\n"
        "os.system(' '.join(parts))"
    ),
    "a text that is split": "run(shlex.split('python3 -m openrlhf.cli.train_ppo_ray --top_p 0.8'))",
    "an f-string that is split": "run(f'python3 -m openrlhf.cli.train_ppo_ray --top_p 0.8 --pretrain {MODEL}'.split())",
    "options of another object": (
        "p = argparse.ArgumentParser()\np.add_argument('--top-p', type=float, default=0.9)\n"
        "class Config:\n    top_p = 0.7\nconfig = Config()\n"
        f"run(['python', {VERL}, f'actor_rollout_ref.rollout.top_p={{config.top_p}}'])"
    ),
    "a parameter that is filled in": (
        f"def start(words=None):\n    if words is None:\n        words = ['a.b=1']\n"
        f"    run(['python', {VERL}, *words])\nstart(['a.b=2'])"
    ),
    "quoted and dedented": (
        "os.system(textwrap.dedent(f'''\n    python3 -m openrlhf.cli.train_ppo_ray --top_p 1.0"
        " --pretrain {shlex.quote(MODEL)}\n''').strip())"
    ),
    "a function with its own name": (
        f"cmd = ['nothing']\ndef main():\n    cmd = ['python', {VERL}, 'a.b=1']\n    run(cmd)\nmain()"
    ),
    "a global that another function fills": (
        f"cmd = ['python', {VERL}, 'a.b=1']\ndef more():\n    cmd.append('a.b=2')\nmore()\nrun(cmd)"
    ),
}


def executed(program: str) -> Written:
    """What the program really starts."""
    ran: list[str] = []

    def run(words: Any, **options: Any) -> None:
        ran.append(shlex.join(map(str, words)) if not isinstance(words, str) else words)

    class _System:
        environ: dict[str, str] = {}
        getenv = staticmethod(environ.get)
        system = staticmethod(run)

    source = HEAD.replace("os, ", "") + program
    exec(source, {"run": run, "os": _System, "__name__": "program"})  # noqa: S102
    (line,) = ran
    (found,) = commands(line, "")
    return found


def read(program: str, name: str = "launch.py") -> list[Written]:
    source = read_bytes((HEAD + program).encode(), name)
    assert isinstance(source, SourceText)
    return list(launches(source))


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_read_is_what_runs(name: str) -> None:
    real = executed(PROGRAMS[name])
    (found,) = read(PROGRAMS[name])
    for option, value in found.values.items():
        assert real.get(option) == value.value, option
    missing = real.values.keys() - found.values.keys()
    assert missing <= found.unknown or found.open, missing


@pytest.mark.parametrize(
    "program", [*PROGRAMS.values(), "run('trl grpo --beta 0')", "run('python grpo_fast.py --beta 0')"]
)
def test_the_first_look_sees_it(program: str) -> None:
    assert Gate(()).has_launch(program.encode()) and read(program)


KNOWN = PROGRAMS.keys() - {
    "on one path", "on the other path", "in a loop", "given twice", "a parameter", "a text that grows",
    "a global that another function fills", "options of another object", "a parameter that is filled in",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_all_of_it_is_known(name: str) -> None:
    (found,) = read(PROGRAMS[name])
    real = executed(PROGRAMS[name]).values
    assert {k: v.value for k, v in found.values.items()} == {k: v.value for k, v in real.items()}


def test_a_value_on_one_path_is_not_known() -> None:
    (found,) = read(PROGRAMS["on one path"])
    assert "a.b" in found.unknown and "a.b" not in found.values


@pytest.mark.parametrize(
    ("program", "places"),
    [
        (
            PROGRAMS["a name"],
            {"actor_rollout_ref.rollout.top_p": (3, 83, "actor_rollout_ref.rollout.top_p=0.9")},
        ),
        (PROGRAMS["a text of several lines"], {"top_p": (5, 5, "--top_p")}),
        (PROGRAMS["texts side by side"], {"rollout_top_p": (6, 6, "--rollout-top-p")}),
    ],
)
def test_places(program: str, places: dict[str, tuple[int, int, str]]) -> None:
    (found,) = read(program)
    lines = (HEAD + program).split("\n")
    for option, (line, column, text) in places.items():
        place = found.values[option].hops[0].place
        assert place is not None and (place.line, place.column) == (line, column)
        assert lines[line - 1][column - 1 :].startswith(text)


NESTED = """\
TOP_P = 0.9
config = {
    "algorithm": {"adv_estimator": "grpo", "use_kl_in_reward": False},
    "actor_rollout_ref": {
        "rollout": {"n": 4, "name": "vllm", "temperature": 1.0, "top_p": TOP_P, "top_k": choose()},
        "actor": {"use_kl_loss": True, "kl_loss_type": "low_var_kl"},
    },
}
config["actor_rollout_ref"]["rollout"]["temperature"] = 0.5
"""


def test_a_nested_dict() -> None:
    (found,) = read(NESTED)
    assert found.get("actor_rollout_ref.rollout.top_p") == 0.9
    assert found.get("actor_rollout_ref.actor.kl_loss_type") == "low_var_kl"
    assert found.unknown == {"actor_rollout_ref.rollout.temperature", "actor_rollout_ref.rollout.top_k"}


def test_dotted_names_in_a_dict_that_a_command_is_made_of() -> None:
    program = (
        "overrides = {'actor_rollout_ref.rollout.top_p': 0.9, 'algorithm.adv_estimator': 'grpo'}\n"
        "run(['python', '-m', 'verl.trainer.main_ppo'] + [f'{k}={v}' for k, v in overrides.items()])\n"
    )
    found = check_source(program, "launch.py")
    assert [(f.code, f.place.line) for f in found] == [("KLG103", 1)]


@pytest.mark.parametrize(
    "program",
    [
        "import verl.trainer.main_ppo as main_ppo\nmain_ppo.main()",
        "path = 'verl/trainer/main_ppo.py'\nprint(path)",
        "'''python -m verl.trainer.main_ppo actor_rollout_ref.rollout.top_p=0.9'''",
        "# python -m verl.trainer.main_ppo actor_rollout_ref.rollout.top_p=0.9",
        "def main(config):\n    config.actor_rollout_ref.rollout.top_p = config['actor_rollout_ref']['x']",
        "subprocess.run(['pkill', '-f', 'main_ppo'])",
    ],
)
def test_nothing_is_started(program: str) -> None:
    assert check_source(HEAD + program, "launch.py") == []


def test_what_is_made_of_itself_or_of_very_much_is_left() -> None:
    assert read("config = {'actor_rollout_ref': config}\nrun(config)")
    assert read("def f(c):\n    c = {'actor_rollout_ref': {'rollout': c}}\n    return c")
    doubled = "".join(f"a{i} = a{i - 1} + a{i - 1}\n" for i in range(1, 40))
    assert read(f"a0 = ['main_ppo', 'x=1']\n{doubled}run(a39)")
    assert read(f"a0 = 'main_ppo --x 1'\n{doubled}run(a39)")
    chain = " + ".join(["'main_ppo '"] * 3000)
    assert list(read(f"run({chain})")) == []


def notebook(*cells: str) -> bytes:
    made = [{"cell_type": "code", "metadata": {}, "outputs": [], "source": cell} for cell in cells]
    return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        ("x = 1\n!python -m openrlhf.cli.train_ppo_ray --top_p 0.8 --pretrain {MODEL}\n", 2),
        ("!python -m openrlhf.cli.train_ppo_ray \\\n    --pretrain {MODEL} \\\n    --top_p 0.8\n", 3),
        ("%%bash\npython -m openrlhf.cli.train_ppo_ray --top_p 0.8\n", 2),
    ],
)
def test_notebooks(cell: str, line: int, tmp_path: Path) -> None:
    from klguard import check_paths

    file = tmp_path / "train.ipynb"
    file.write_bytes(notebook("x = 0", cell))
    (found,) = check_paths([file]).findings
    assert (found.code, found.place.cell, found.place.line) == ("KLG103", 1, line)


def test_a_comment_holds_it_back() -> None:
    program = f"run(['python', {VERL}, 'actor_rollout_ref.rollout.top_p=0.9'])  # klguard: ignore[KLG103]\n"
    assert check_source(HEAD + program, "launch.py") == []
