"""Command lines, configuration files and library objects, as the program that uses them sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Generated = Callable[..., dict[str, Any]]

UNKNOWN = "unknown"

PARSER = "import argparse\np = argparse.ArgumentParser()\n"
CALL = "\nmodel.generate(ids, **kw)\n"


def parsed(generated: Generated, options: str, arguments: str) -> dict[str, Any]:
    return generated(f"{PARSER}{options}\nkw = vars(p.parse_args({arguments})){CALL}")


GIVEN = {
    "defaults": ("p.add_argument('--top_k', type=int, default=20)", "[]", {"top_k": 20}),
    "value": ("p.add_argument('--top_k', type=int, default=20)", "['--top_k', '3']", {"top_k": 3}),
    "equals sign": ("p.add_argument('--top-k', type=int)", "['--top-k=3']", {"top_k": 3}),
    "beginning of a name": ("p.add_argument('--top_k', type=int)", "['--to', '3']", {"top_k": 3}),
    "text without a type": ("p.add_argument('--top_k')", "['--top_k', '3']", {"top_k": "3"}),
    "short name and dest": ("p.add_argument('-k', dest='top_k', type=int)", "['-k3']", {"top_k": 3}),
    "type=bool is true for any text": (
        "p.add_argument('--do_sample', type=bool)",
        "['--do_sample', 'False']",
        {"do_sample": True},
    ),
    "type=lambda": (
        "p.add_argument('--do_sample', type=lambda s: s.lower() == 'true')",
        "['--do_sample', 'False']",
        {"do_sample": False},
    ),
    "type applies to a default that is a text": (
        "p.add_argument('--top_k', type=int, default='7')",
        "[]",
        {"top_k": 7},
    ),
    "store_true": (
        "p.add_argument('--do_sample', action='store_true')",
        "['--do_sample']",
        {"do_sample": True},
    ),
    "store_false": ("p.add_argument('--do_sample', action='store_false')", "[]", {"do_sample": True}),
    "store_const": (
        "p.add_argument('--greedy', dest='top_k', action='store_const', const=1, default=50)",
        "['--greedy']",
        {"top_k": 1},
    ),
    "BooleanOptionalAction": (
        "p.add_argument('--do_sample', action=argparse.BooleanOptionalAction, default=True)",
        "['--no-do_sample']",
        {"do_sample": False},
    ),
    "nargs": (
        "p.add_argument('--suppress_tokens', nargs='+', type=int)",
        "['--suppress_tokens', '1', '2']",
        {"suppress_tokens": [1, 2]},
    ),
    "append": (
        "p.add_argument('--suppress_tokens', action='append', type=int, default=[9])",
        "['--suppress_tokens', '1']",
        {"suppress_tokens": [9, 1]},
    ),
    "positional": ("p.add_argument('top_k', type=int)", "['4']", {"top_k": 4}),
    "set_defaults": ("p.add_argument('--top_k', default=1)\np.set_defaults(top_k=2)", "[]", {"top_k": 2}),
    "group": (
        "g = p.add_argument_group('x')\ng.add_argument('--top_k', type=int, default=1)",
        "['--top_k', '2']",
        {"top_k": 2},
    ),
    "two options of one name": (
        "p.add_argument('--yes', dest='do_sample', action='store_true')\n"
        "p.add_argument('--no', dest='do_sample', action='store_false')",
        "[]",
        {"do_sample": False},
    ),
    "parents": (
        "q = argparse.ArgumentParser(add_help=False)\nq.add_argument('--top_k', type=int, default=1)\n"
        "p = argparse.ArgumentParser(parents=[q])",
        "['--top_k', '2']",
        {"top_k": 2},
    ),
}


@pytest.mark.parametrize("name", GIVEN)
def test_arguments_that_the_code_gives(name: str, generated: Generated) -> None:
    options, arguments, expected = GIVEN[name]
    assert parsed(generated, options, arguments) == expected


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ("p.add_argument('--top_k', type=int, default=20)", "shlex.split(line)"),
        ("p.add_argument('--top_k', type=int, default=20)", "['--top_k', line]"),
        ("p.add_argument('--top_k', action=Custom, default=20)", "['--top_k', '1']"),
        ("p.add_argument('--top_k', default=20)", "[], namespace"),
        (
            "s = p.add_subparsers()\ns.add_parser('a').add_argument('--top_k', default=20)",
            "['a', '--top_k', '1']",
        ),
        (
            "for name in names:\n    p.add_argument(name)\np.add_argument('--top_k', default=20)",
            "['--top_k', '1']",
        ),
        ("add_options(p)\np.add_argument('--top_k', default=20)", "['--top_k', '1']"),
        ("import unseen\nunseen.add_options(p)\np.set_defaults(top_k=20)", "[]"),
        ("import unseen\nunseen.add_options(p)\np.add_argument('--top_k', default=20)", "[]"),
        (
            "import unseen\nunseen.add_options(p)\np = argparse.ArgumentParser(parents=[p])\n"
            "p.add_argument('--top_k', default=20)",
            "['--top_k', '1']",
        ),
        ("import unseen\ns = p.add_subparsers()\nunseen.add_options(p)\ns.add_parser('a')", "[]"),
    ],
)
def test_arguments_that_are_not_known(options: str, arguments: str, generated: Generated) -> None:
    assert parsed(generated, options, arguments).get("top_k", UNKNOWN) == UNKNOWN


@pytest.mark.parametrize("arguments", ["", "None", "sys.argv[1:]", "args=None"])
def test_the_command_line_keeps_defaults(arguments: str, generated: Generated) -> None:
    assert parsed(generated, "import sys\np.add_argument('--top_k', type=int, default=20)", arguments) == {
        "top_k": 20
    }


def test_known_arguments_decide_branches(generated: Generated) -> None:
    source = (
        f"{PARSER}p.add_argument('--fast', action='store_true')\na = p.parse_args(['--fast'])\nkw = {{}}\n"
    )
    assert generated(f"{source}if a.fast: kw['top_k'] = 1{CALL}") == {"top_k": 1}


def test_a_command_line_decides_no_branch(generated: Generated) -> None:
    source = f"{PARSER}p.add_argument('--fast', action='store_true')\na = p.parse_args()\nkw = {{}}\n"
    assert generated(f"{source}if a.fast: kw['top_k'] = 1{CALL}") == {"top_k": {"1", "'absent'"}}


def test_option_left_out_of_the_namespace(generated: Generated) -> None:
    found = parsed(
        generated,
        "p.add_argument('--top_k', default=argparse.SUPPRESS)\np.add_argument('--min_p', default=0)",
        "",
    )
    assert found == {"top_k": UNKNOWN, "min_p": 0}


DATACLASS = (
    "from dataclasses import dataclass\nfrom transformers import HfArgumentParser\n"
    "@dataclass\nclass A:\n    top_k: int = 5\n    top_p: float = 1.0\n"
)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("parse_args_into_dataclasses()", {"top_k": 5, "top_p": 1.0}),
        ("parse_args_into_dataclasses([])", {"top_k": 5, "top_p": 1.0}),
        ("parse_args_into_dataclasses(['--top_k', '3'])", {"top_k": UNKNOWN, "top_p": 1.0}),
        ("parse_args_into_dataclasses(words)", {"top_k": UNKNOWN, "top_p": UNKNOWN}),
        ("parse_dict({'top_k': 3})", {"top_k": 3, "top_p": 1.0}),
        ("parse_yaml_file('a.yaml')", {"top_k": 7, "top_p": 1.0}),
        ("parse_args_into_dataclasses(return_remaining_strings=True)", {"top_k": 5, "top_p": 1.0}),
    ],
)
def test_dataclass_parser(call: str, expected: dict[str, Any], generated: Generated) -> None:
    source = f"{DATACLASS}words = load()\na, *_ = HfArgumentParser(A).{call}\nkw = vars(a){CALL}"
    assert generated(source, {"a.yaml": "top_k: 7\n"}) == expected


DOCUMENTS = {
    "json number": (
        "import json\nkw = json.load(open('a.json'))",
        {"a.json": '{"temperature": 1e-5}'},
        {"temperature": 1e-5},
    ),
    "json with tabs": (
        "import json\nkw = json.load(open('a.json'))",
        {"a.json": '{\n\t"top_k": 5\n}'},
        {"top_k": 5},
    ),
    "json merge key is a key": (
        "import json\nkw = json.load(open('a.json'))",
        {"a.json": '{"<<": {"top_k": 1}}'},
        {"<<": {"top_k": 1}},
    ),
    "yaml number without a point": (
        "import yaml\nkw = yaml.safe_load(open('a.yaml'))",
        {"a.yaml": "temperature: 1e-5"},
        {"temperature": "1e-5"},
    ),
    "toml": (
        "import tomllib\nkw = tomllib.load(open('a.toml', 'rb'))['gen']",
        {"a.toml": "[gen]\ntop_k = 5\n"},
        {"top_k": 5},
    ),
    "OmegaConf merges levels": (
        "from omegaconf import OmegaConf\na = OmegaConf.create({'g': {'top_k': 1, 'top_p': 2}})\n"
        "kw = OmegaConf.to_container(OmegaConf.merge(a, {'g': {'top_k': 3}}))['g']",
        {},
        {"top_k": 3, "top_p": 2},
    ),
    "OmegaConf copies": (
        "from omegaconf import OmegaConf\nd = {'g': {'top_k': 1}}\nc = OmegaConf.create(d)\n"
        "c.g.top_k = 2\nkw = d['g']",
        {},
        {"top_k": 1},
    ),
    "item of a dict-like object": (
        "from easydict import EasyDict\nc = EasyDict(top_k=1)\nc['top_k'] = 2\nkw = {'top_k': c.top_k}",
        {},
        {"top_k": 2},
    ),
    "pydantic": (
        "from pydantic import BaseModel\nclass M(BaseModel):\n    top_k: int = 5\n"
        "kw = M(top_k=6).model_dump()",
        {},
        {"top_k": 6},
    ),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(name: str, generated: Generated) -> None:
    source, files, expected = DOCUMENTS[name]
    assert generated(source + CALL, files) == expected


def test_environment_settings_decide_no_branch(generated: Generated) -> None:
    source = (
        "from pydantic_settings import BaseSettings\nclass S(BaseSettings):\n"
        "    fast: bool = False\nkw = {}\n"
    )
    assert generated(f"{source}if S().fast: kw['top_k'] = 1{CALL}") == {"top_k": {"1", "'absent'"}}


@pytest.mark.parametrize(
    "source",
    [
        "import json\nkw = json.loads(open('a.json').read())",
        "import json\nfrom pathlib import Path\nkw = json.loads(Path('a.json').read_text())",
        "import json\nfrom pathlib import Path\nwith open(Path('a.json')) as f: kw = json.load(f)",
        "import yaml\nwith open('a.json') as f: kw = yaml.safe_load(f.read())",
    ],
)
def test_ways_to_read_a_file(source: str, generated: Generated) -> None:
    assert generated(source + CALL, {"a.json": '{"top_k": 5}'}) == {"top_k": 5}


CONFIG = "from transformers import GenerationConfig\nconfig = GenerationConfig(top_k=3, do_sample=True, top_p=1.0)\n"


@pytest.mark.parametrize("source", ["{}.items()", "{}"])
@pytest.mark.parametrize("name", ["to_dict", "to_diff_dict", "unknown"])
def test_a_filter_by_name_says_what_else_cannot_be_there(generated, name, source):
    made = {"to_dict": "config.to_dict()", "to_diff_dict": "config.to_diff_dict()", "unknown": "settings()"}[
        name
    ]
    pair = "k: v for k, v" if "items" in source else "k: source[k] for k"
    found = generated(
        f"from elsewhere import settings\n{CONFIG}source = {made}\n"
        f"kw = {{{pair} in {source.format('source')} if k in ('top_k', 'top_p')}}{CALL}"
    )
    assert "*" not in found
    assert (
        found
        == {
            "to_dict": {"top_k": 3, "top_p": 1.0},
            "to_diff_dict": {"top_k": 3, "top_p": {"1.0", "'absent'"}},
            "unknown": {"top_k": UNKNOWN, "top_p": UNKNOWN},
        }[name]
    )


def test_what_a_filter_may_let_through_is_changed_under_another_name(generated):
    source = (
        "import os\nkw = dict(top_k=3)\nif os.environ.get('PLAIN'):\n    kw.clear()\n"
        f"for given in filter(None, [kw]):\n    given['top_p'] = 0.9\n{CALL}"
    )
    assert generated(source)["*"] == UNKNOWN


def test_an_abstract_module_leaves_its_options_as_they_are(generated: Generated):
    source = (
        "import abc\nfrom torch import nn\nfrom recorder import model, ids\n"
        "class Policy(nn.Module, abc.ABC):\n"
        "    def __init__(self, options):\n        super().__init__()\n        self.options = options\n"
        "    def respond(self):\n        return model.generate(ids, **self.options)\n"
        "policy = Policy(dict(top_k=3))\npolicy.eval()\npolicy.respond()\n"
    )
    assert generated(source) == {"top_k": 3}


def test_an_option_that_is_not_seen_gives_nothing_else_away(generated: Generated):
    source = (
        "import argparse\nfrom elsewhere import unseen, settings\nfrom recorder import model, ids\n"
        "args = argparse.Namespace(top_k=3, **settings)\nunseen(args.other)\n"
        "model.generate(ids, top_k=args.top_k)\n"
    )
    assert generated(source) == {"top_k": 3}


def test_resolving_a_configuration_changes_its_interpolations_alone(generated: Generated):
    source = (
        "from omegaconf import OmegaConf\nfrom recorder import model, ids\n"
        "cfg = OmegaConf.create({'g': {'top_k': 3, 'top_p': '${p}'}, 'p': 0.5})\nOmegaConf.resolve(cfg)\n"
        "model.generate(ids, top_k=cfg.g.top_k, top_p=cfg.g.top_p)\n"
    )
    assert generated(source) == {"top_k": 3, "top_p": UNKNOWN}
