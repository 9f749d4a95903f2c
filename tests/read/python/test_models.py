"""What built-in functions and methods do to settings, in pairs: what is followed, and what must become
unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Generated = Callable[..., dict[str, Any]]

UNKNOWN = "unknown"
ABSENT = "absent"

KNOWN = {
    # dicts
    "setitem by name": ("kw = {}; kw.__setitem__('top_k', 2)", {"top_k": 2}),
    "delitem by name": ("kw = {'top_k': 1, 'top_p': 2}; kw.__delitem__('top_k')", {"top_p": 2}),
    "exec with variables of its own": (
        "kw = {'top_k': 1}\nexec(open('x').read(), {'__builtins__': None})",
        {"top_k": 1},
    ),
    "eval assigns to no name": ("top_k = 1\neval(open('x').read())\nkw = {'top_k': top_k}", {"top_k": 1}),
    "fromkeys": ("kw = dict.fromkeys(['top_k', 'min_p'], 0)", {"top_k": 0, "min_p": 0}),
    "method through the class": ("kw = {'top_k': 1}; dict.update(kw, top_k=5)", {"top_k": 5}),
    "popitem": ("kw = {'top_k': 1, 'top_p': 2}; kw.popitem()", {"top_k": 1}),
    "move_to_end": (
        "from collections import OrderedDict\n"
        "kw = OrderedDict(top_k=1, top_p=2); kw.move_to_end('top_k'); kw.popitem()",
        {"top_p": 2},
    ),
    "in place or": ("kw = {'top_k': 1}; other = kw; other |= {'top_p': 1}", {"top_k": 1, "top_p": 1}),
    "operator.setitem": ("import operator\nkw = {}; operator.setitem(kw, 'top_k', 3)", {"top_k": 3}),
    "keys minus a set": (
        "base = {'top_k': 1, 'x': 2}\nkw = {k: base[k] for k in base.keys() - {'x'}}",
        {"top_k": 1},
    ),
    "a view is live": ("d = {}\nv = d.items()\nd['top_k'] = 4\nkw = dict(v)", {"top_k": 4}),
    "defaultdict fills in": (
        "from collections import defaultdict\nkw = defaultdict(lambda: 5)\nkw['top_k']",
        {"top_k": 5},
    ),
    "ChainMap": (
        "from collections import ChainMap\nfirst = {'top_k': 1}\n"
        "many = ChainMap(first, {'top_k': 2, 'top_p': 3})\n"
        "first['top_p'] = 4\nkw = dict(many)",
        {"top_k": 1, "top_p": 4},
    ),
    "MappingProxyType": (
        "import types\nd = {'top_k': 1}\nkw = dict(types.MappingProxyType(d))",
        {"top_k": 1},
    ),
    "filter by key": (
        "d = {'top_k': 1, 'x': 2}\nkw = {k: v for k, v in d.items() if k in {'top_k'}}",
        {"top_k": 1},
    ),
    "maybe missing entries": (
        "import os\nd = {'top_k': 1}\nif os.getenv('X'): d['top_p'] = 2\nkw = {k: v for k, v in d.items()}",
        {"top_k": 1, "top_p": {"2", "'absent'"}},
    ),
    "condition not known": (
        "import os\nkw = {k: v for k, v in {'top_k': 1}.items() if os.getenv(k)}",
        {"top_k": {"1", "'absent'"}},
    ),
    "one of several by an unknown key": (
        "import os\nkw = {'a': {'top_k': 1}, 'b': {'top_k': 2}}[os.environ['X']]",
        {"top_k": {"1", "2"}},
    ),
    # lists
    "insert": ("l = [2]; l.insert(0, 1)\nkw = {'top_k': l[0]}", {"top_k": 1}),
    "remove": ("l = [1, 2]; l.remove(1)\nkw = {'top_k': l[0]}", {"top_k": 2}),
    "sort": ("l = [3, 1, 2]; l.sort(reverse=True)\nkw = {'top_k': l[0]}", {"top_k": 3}),
    "sort by key": ("l = [3, 1, 2]; l.sort(key=lambda x: -x)\nkw = {'top_k': l[0]}", {"top_k": 3}),
    "reverse": ("l = [1, 2]; l.reverse()\nkw = {'top_k': l[0]}", {"top_k": 2}),
    "clear": ("l = [1]; l.clear(); l.append(2)\nkw = {'top_k': l[0]}", {"top_k": 2}),
    "index": ("kw = {'top_k': [5, 7].index(7)}", {"top_k": 1}),
    "delete an item": ("l = [1, 2]; del l[0]\nkw = {'top_k': l[0]}", {"top_k": 2}),
    "slice": ("kw = {'top_k': [1, 2, 3][1:][0]}", {"top_k": 2}),
    "shuffle": ("import random\nl = [1, 2]; random.shuffle(l)\nkw = {'top_k': l[0]}", {"top_k": {"1", "2"}}),
    # texts
    "slice of a text": ("kw = {'gen_top_k'[4:]: 1}", {"top_k": 1}),
    "format": ("kw = {'top_{}'.format('k'): 1}", {"top_k": 1}),
    "percent": ("kw = {'%s_%s' % ('top', 'k'): 1}", {"top_k": 1}),
    "f-string of alternatives": (
        "import os\nw = 'k' if os.getenv('X') else 'p'\nkw = {f'top_{w}': 1}",
        {"top_k": {"1", "'absent'"}, "top_p": {"1", "'absent'"}},
    ),
    # iteration
    "next": ("it = iter([1, 2]); next(it)\nkw = {'top_k': next(it)}", {"top_k": 2}),
    "next with a default": ("kw = {'top_k': next((x for x in [1] if x > 3), 9)}", {"top_k": 9}),
    "filter": (
        "kw = dict(filter(lambda p: p[1] is not None, {'top_k': 1, 'top_p': None}.items()))",
        {"top_k": 1},
    ),
    "map": ("kw = dict(map(lambda p: (p[0], p[1] + 1), {'top_k': 1}.items()))", {"top_k": 2}),
    "reduce": (
        "import functools\nkw = functools.reduce(lambda a, b: a | b, [{'top_k': 1}, {'top_p': 2}])",
        {"top_k": 1, "top_p": 2},
    ),
    "chain": (
        "import itertools\nkw = dict(itertools.chain({'top_k': 1}.items(), {'top_p': 2}.items()))",
        {"top_k": 1, "top_p": 2},
    ),
    "zip_longest": (
        "import itertools\nkw = dict(itertools.zip_longest(['top_k', 'top_p'], [1], fillvalue=0))",
        {"top_k": 1, "top_p": 0},
    ),
    "itemgetter": ("import operator\nkw = {'top_k': operator.itemgetter('a')({'a': 7})}", {"top_k": 7}),
    "max by key": ("kw = {'top_k': max([1, 3, 2], key=lambda x: -x)}", {"top_k": 1}),
    "a function that changes what it maps runs late": (
        "d = {'top_k': 1}\nm = map(lambda v: d.update(top_k=v), [2, 3])\nlist(m)\nkw = d",
        {"top_k": {"1", "3"}},
    ),
    # objects
    "enum by name": (
        "import enum\nclass C(enum.Enum):\n    A = 3\nkw = {'top_k': C['A'].value}",
        {"top_k": 3},
    ),
    "typed named tuple": (
        "from typing import NamedTuple\nclass R(NamedTuple):\n    top_k: int = 1\n    top_p: float = 1.0\n"
        "kw = R()._replace(top_p=0.5)._asdict()",
        {"top_k": 1, "top_p": 0.5},
    ),
    "named tuple": (
        "from collections import namedtuple\nR = namedtuple('R', 'top_k top_p', defaults=[2])\n"
        "kw = R(1)._asdict()",
        {"top_k": 1, "top_p": 2},
    ),
    "fields of a named tuple": (
        "from collections import namedtuple\nR = namedtuple('R', ['top_k'])\nr = R(top_k=4)\n"
        "kw = dict(zip(r._fields, r))",
        {"top_k": 4},
    ),
    "fields of a dataclass": (
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    top_k: int = 5\na = A()\na.top_k = 6\n"
        "kw = {f.name: getattr(a, f.name) for f in dataclasses.fields(a)}",
        {"top_k": 6},
    ),
    "astuple": (
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    top_k: int = 5\n"
        "kw = {'top_k': dataclasses.astuple(A())[0]}",
        {"top_k": 5},
    ),
    "replace": (
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    top_k: int = 5\n"
        "kw = dataclasses.asdict(dataclasses.replace(A(), top_k=6))",
        {"top_k": 6},
    ),
    "vars of a class": ("class C:\n    top_k = 5\nkw = {'top_k': vars(C)['top_k']}", {"top_k": 5}),
    "isinstance of a class of the project": (
        "class A: pass\nclass B(A): pass\nkw = {'top_k': 1 if isinstance(B(), A) else 2}",
        {"top_k": 1},
    ),
    "type of a value": ("kw = type({})(top_k=1)", {"top_k": 1}),
    "delattr": (
        "import types\nn = types.SimpleNamespace(top_k=1, top_p=2)\ndelattr(n, 'top_k')\nkw = vars(n)",
        {"top_p": 2},
    ),
    "globals": ("TOP_K = 1\nglobals()['TOP_K'] = 5\nkw = {'top_k': TOP_K}", {"top_k": 5}),
    # data in texts
    "json.loads": ("import json\nkw = json.loads('{\"temperature\": 1e-5}')", {"temperature": 1e-5}),
    "json round trip": ("import json\nkw = json.loads(json.dumps({'top_k': 1}))", {"top_k": 1}),
    "json round trip of what is partly unknown": (
        "import json, os\nkw = json.loads(json.dumps({'top_k': 1, 'top_p': os.environ['X']}))",
        {"top_k": 1, "top_p": UNKNOWN},
    ),
    "literal_eval": ("import ast\nkw = ast.literal_eval(\"{'top_k': 1}\")", {"top_k": 1}),
    "yaml.safe_load": ("import yaml\nkw = yaml.safe_load('top_k: 3')", {"top_k": 3}),
    # sets
    "an empty difference decides": (
        "kw = {'top_k': 1}\nif kw.keys() - {'top_k'}: kw['top_p'] = 2",
        {"top_k": 1},
    ),
    "subset decides": ("kw = {'top_k': 1 if {'a'} <= {'a', 'b'} else 2}", {"top_k": 1}),
    "set methods": ("s = set(); s.add('top_k'); s.discard('x')\nkw = {k: 1 for k in s}", {"top_k": 1}),
    "over a set": ("kw = {name: 0.5 for name in {'top_p', 'min_p'}}", {"top_p": 0.5, "min_p": 0.5}),
    "nullcontext": ("import contextlib\nwith contextlib.nullcontext({'top_k': 1}) as kw: pass", {"top_k": 1}),
    "arithmetic": (
        "import math\nkw = {'top_k': math.floor(2.7), 'top_p': round(0.456, 1)}",
        {"top_k": 2, "top_p": 0.5},
    ),
}

UNKNOWABLE = {
    "a method of dicts that is not known": "kw = {'top_k': 1}; kw.frobnicate()",
    "dict.__init__": "kw = {'top_k': 1}; kw.__init__(top_k=2)",
    "exec among the variables of a module": "kw = {'top_k': 1}\nexec(open('x').read(), globals())",
    "eval": "kw = {'top_k': 1}\neval(open('x').read())",
    "exec": "kw = {'top_k': 1}\nexec(open('x').read())",
    "setitem with an unknown key": "import os\nkw = {'top_k': 1}; kw.__setitem__(os.environ['X'], 2)",
    "order of a set": "kw = {'top_k': list({'a', 'b', 'c'})[0]}",
    "lists: unknown position": (
        "import os\nl = [1, 2]; l.insert(int(os.environ['X']), 9)\nkw = {'top_k': l[0]}"
    ),
    "lists: unknown method": "l = [1]; l.__imul__(2)\nkw = {'top_k': l[0]}",
    "lists: unknown element removed": (
        "import os\nl = [1, 2]; l.remove(int(os.environ['X']))\nkw = {'top_k': l[0]}"
    ),
    "an iterator that was used": "it = iter([1, 2])\nfor x in it: break\nkw = {'top_k': next(it)}",
    "a generator that was used": (
        "def g():\n    yield 1\n    yield 2\nit = g()\nlist(it)\nkw = {'top_k': next(it, os)}"
    ),
    "zip of one iterator with itself": "it = iter(['top_k', 1])\nkw = dict(zip(it, it))",
    "setattr with an unknown name": (
        "import os, types\nn = types.SimpleNamespace(top_k=1)\nsetattr(n, os.environ['X'], 2)\n"
        "kw = {'top_k': n.top_k}"
    ),
    "a set that is not known": "import os\nkw = {'top_k': 1 if 'a' in set(os.environ) else os.environ['X']}",
    "interpolation": (
        "from omegaconf import OmegaConf\nkw = {'top_k': OmegaConf.create({'top_k': '${k}'}).top_k}"
    ),
    "item of an object of an unknown library": (
        "from lib import Config\nc = Config(top_k=1)\nc['top_k'] = 2\nkw = {'top_k': c.top_k}"
    ),
    "method of an object of an unknown library": (
        "from lib import Config\nc = Config(top_k=1)\nc.refresh()\nkw = {'top_k': c.top_k}"
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_followed(name: str, generated: Generated) -> None:
    source, expected = KNOWN[name]
    assert generated(f"{source}\nmodel.generate(ids, **kw)\n") == expected


@pytest.mark.parametrize("name", UNKNOWABLE)
def test_unknown(name: str, generated: Generated) -> None:
    found = generated(f"{UNKNOWABLE[name]}\nmodel.generate(ids, **kw)\n")
    assert found.get("top_k", found.get("*")) == UNKNOWN


@pytest.mark.parametrize(
    "change",
    [
        "kw.clear()",
        "del kw['top_k']",
        "kw.pop('top_k')",
        "kw.popitem()",
        "kw.setdefault('top_k', 2)",
        "kw.frobnicate()",
        "kw.__setitem__('top_k', 2)",
        "change(kw)",
    ],
)
def test_unknown_dict(change: str, generated: Generated) -> None:
    """What was set on a dict that is not known does not outlive what may remove or replace it."""
    source = (
        f"from lib import load, change\nkw = load()\nkw['top_k'] = 1\n{change}\nmodel.generate(ids, **kw)\n"
    )
    found = generated(source)
    assert found.get("top_k") != 1 or change.startswith("kw.setdefault")
    assert found["*"] == UNKNOWN


@pytest.mark.parametrize("method", sorted(set(dir(list)) - set(dir(object)) - {"__class_getitem__"}))
def test_every_method_of_lists(method: str, generated: Generated) -> None:
    """No method of lists is overlooked: what it leaves is what Python leaves, or unknown."""
    calls = {
        "append": "(9)",
        "extend": "([9])",
        "insert": "(0, 9)",
        "remove": "(5)",
        "pop": "()",
        "index": "(5)",
        "count": "(5)",
        "__getitem__": "(0)",
        "__setitem__": "(0, 9)",
        "__delitem__": "(0)",
        "__contains__": "(5)",
        "__add__": "([9])",
        "__iadd__": "([9])",
        "__mul__": "(2)",
        "__rmul__": "(2)",
        "__imul__": "(2)",
    }
    call = f"l.{method}{calls.get(method, '()')}"
    items = [5, 6, 7]
    exec(call, {"l": items})
    source = f"l = [5, 6, 7]\n{call}\nmodel.generate(ids, top_k=l[0] if l else 0, suppress_tokens=l)\n"
    found = generated(source)
    assert found["top_k"] in (items[0] if items else 0, UNKNOWN)
    assert found["suppress_tokens"] == items or not isinstance(found["suppress_tokens"], list)


@pytest.mark.parametrize("method", sorted(set(dir(dict)) - set(dir(object)) - {"__class_getitem__"}))
def test_every_method_of_dicts(method: str, generated: Generated) -> None:
    """No method of dicts is overlooked either."""
    calls = {
        "get": "('top_k')",
        "pop": "('top_k')",
        "setdefault": "('top_p', 3)",
        "update": "(top_k=3)",
        "fromkeys": "(['x'])",
        "__getitem__": "('top_k')",
        "__setitem__": "('top_k', 4)",
        "__delitem__": "('top_k')",
        "__contains__": "('top_k')",
        "__or__": "({'top_k': 2})",
        "__ior__": "({'top_k': 2})",
        "__ror__": "({'top_k': 2})",
    }
    call = f"kw.{method}{calls.get(method, '()')}"
    contents = {"top_k": 1, "min_p": 0}
    exec(call, {"kw": contents})
    found = generated(f"kw = {{'top_k': 1, 'min_p': 0}}\n{call}\nmodel.generate(ids, **kw)\n")
    for name in ("top_k", "min_p", "top_p"):
        assert found.get(name, found.get("*", ABSENT)) in (contents.get(name, ABSENT), UNKNOWN)


def test_a_large_constant_costs_nothing(generated: Generated) -> None:
    source = (
        "s = 'x'\nfor _ in range(30):\n    s += s\n"
        "kw = {'a': '%99999999d' % 1, 'b': 'x'.zfill(10 ** 9), 'c': s}\n"
    )
    found = generated(f"{source}model.generate(ids, **kw)\n")
    assert found == {"a": UNKNOWN, "b": UNKNOWN, "c": UNKNOWN}
