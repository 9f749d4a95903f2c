"""Settings of `klguard demo` as they are typed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from klguard.lab.settings import described, parsed


def test_values_are_python_literals_and_may_be_several():
    typed = [
        "min_new_tokens=16",
        "suppress_tokens=[1]",
        "temperature = 0.7",
        "do_sample=false",
        "eos_token_id=None",
    ]
    assert parsed(typed) == {
        "min_new_tokens": 16,
        "suppress_tokens": [1],
        "temperature": 0.7,
        "do_sample": False,
        "eos_token_id": None,
    }


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("min_new_tokens", "not NAME=VALUE"),
        ("=16", "not NAME=VALUE"),
        ("topk=5", "did you mean `top_k`"),
        ("nonsense_altogether=5", "not a setting"),
        ("top_k=-1", "0 turns top-k off"),
        ("top_k=many", "Python literal"),
    ],
)
def test_what_cannot_be_meant_is_refused(typed, words):
    with pytest.raises(ValueError, match=words):
        parsed([typed])


def test_in_words():
    assert described({}) == "pure sampling"
    assert described({"top_k": 5, "suppress_tokens": [1]}) == "top_k=5, suppress_tokens=[1]"


def test_they_are_read_without_torch():
    code = "import sys; from klguard.lab.settings import parsed; parsed(['top_k=5']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
