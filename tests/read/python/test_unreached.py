"""Sites that the interpreter does not get to."""

from pathlib import Path

import pytest

from klguard.read.python import read_sites
from klguard.read.python.project import Project
from klguard.settings import Known, members

HEAD = "from trl import PPOTrainer\nppo_trainer = PPOTrainer(config, model, ref_model, tokenizer)\n"
SITE = """
for batch in ppo_trainer.dataloader:
    response = ppo_trainer.generate(batch["q"], top_k=50, top_p=draw())
    ppo_trainer.step(batch["q"], response, rewards)
"""


def test_literals_on_a_call_are_known_where_the_program_is_too_long_to_follow():
    lines = "".join(f"x{index} = {index}\n" for index in range(20_000))
    path = "generated.py"
    project = Project(Path("."), {path: Path(path)}, {path: (HEAD + lines + SITE).encode()})
    site = read_sites(project, [path])[-1]
    assert [m.value for m in members(site.settings.values["top_k"])] == [50]
    assert not any(isinstance(m, Known) for m in members(site.settings.values["top_p"]))


@pytest.mark.parametrize(
    "policy", ["importlib.import_module('main').Policy", "__import__('main').Policy", "module.Policy"]
)
def test_a_class_of_a_module_that_is_imported_by_a_call(generated, policy):
    """Its instance is changed by code that names the class behind a call only."""
    source = (
        "from recorder import model, ids\n"
        "class Policy:\n    def __init__(self):\n        self.kw = dict()\n"
        "    def run(self):\n        return model.generate(ids, **self.kw)\n"
    )
    script = (
        "import importlib\nmodule = importlib.import_module('main')\n"
        f"policy = {policy}()\npolicy.kw['top_k'] = 3\npolicy.run()\n"
    )
    assert generated(source, {"script.py": script}) == {"top_k": 3}
