"""Sites that the interpreter does not get to."""

from pathlib import Path

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
