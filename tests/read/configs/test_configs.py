"""Configurations of training frameworks: each planted fault gives its code and no other, the neutral one nothing."""

import pytest

from klguard.check import check_paths, check_source
from klguard.findings import Severity
from klguard.gate import CONFIG_MARKERS
from klguard.read.configs.frameworks import FRAMEWORKS

VERL = """\
actor_rollout_ref:
  actor: {{use_kl_loss: {in_loss}, kl_loss_type: {form}, kl_loss_coef: 0.001}}
  rollout: {{name: {engine}, temperature: 0.7, top_p: {top_p}, top_k: {top_k}, n: {n}, val_kwargs: {{top_p: 0.7}}}}
algorithm: {{adv_estimator: {estimator}, use_kl_in_reward: {in_reward}, kl_penalty: {penalty}}}
"""


def verl(**changed):
    neutral = {
        "in_loss": "true", "form": "low_var_kl", "engine": "vllm", "top_p": 1.0, "top_k": -1, "n": 8,
        "estimator": "grpo", "in_reward": "false", "penalty": "kl",
    }  # fmt: skip
    return VERL.format(**{**neutral, **changed})


MAIN_PPO = "python3 -m verl.trainer.main_ppo \\\n  algorithm.adv_estimator=gae {} \\\n  trainer.nnodes=1 $@\n"
OPENRLHF = "deepspeed --module openrlhf.cli.train_ppo --pretrain my/model --micro_train_batch_size 2 {}\n"
SLIME = """\
ROLLOUT_ARGS=(
   --rollout-batch-size 32
   --n-samples-per-prompt 8
   --num-rollout 3000
   # --rollout-top-k 20
   --rollout-temperature {temperature}
   --attention-dropout 0.0 --hidden-dropout 0.0
   {more}
)
ray job submit -- python3 train.py ${{ROLLOUT_ARGS[@]}} --advantage-estimator grpo
"""
LLAMA_FACTORY = "stage: ppo\nmodel_name_or_path: my/model\nreward_model: my/judge\n{}\n"
PLAIN = "temperature: 1.0\ntop_p: 1.0\ntop_k: 0"
SWIFT = "swift rlhf --rlhf_type {kind} --model my/model --temperature 0.9 {more}\n"
HYDRA = """\
_target_: trl.GRPOTrainer
args:
  _target_: trl.{name}
  beta: 0.04
  {setting}
"""
NEMO = """\
grpo: {{num_generations_per_prompt: 16}}
loss_fn: {{reference_policy_kl_penalty: 0.01, reference_policy_kl_type: {form}}}
policy: {{generation: {{backend: vllm, temperature: 0.8, top_p: {top_p}, top_k: {top_k}}}}}
"""
PRIME = "[orchestrator.sampling]\ntemperature = 0.8\n{}\n"
AREAL = """\
actor: {{temperature: {scored}, kl_ctl: 0.1}}
gconfig: {{temperature: 0.8, top_p: {top_p}, top_k: 100000000}}
"""
ROLL = "actor_infer: {{generating_args: {{temperature: 0.99, top_p: {top_p}, top_k: {top_k}}}}}\n"
SKYRL = "uv run -m skyrl_train.main_base trainer.algorithm.use_kl_loss=true {} generator.eval_sampling_params.top_k=5\n"
EASYR1 = """\
worker:
  rollout: {{temperature: 0.9, top_p: {top_p}, n: 5}}
algorithm: {{adv_estimator: grpo, use_kl_loss: true, kl_penalty: {form}}}
"""
TRLX = """\
method:
  name: ppoconfig
  init_kl_coef: 0.05
  gen_kwargs: {{max_new_tokens: 40, top_k: {top_k}, top_p: 1.0, do_sample: {sampled}}}
"""
RL4LMS = """\
alg:
  kl_div: {{coeff: 0.1}}
  policy:
    args: {{generation_kwargs: {{do_sample: true, top_k: 0, max_new_tokens: 48{more}}}}}
"""
TORCHTUNE = "kl_coeff: 0.01\nppo_epochs: 2\ntemperature: 0.7\ntop_k: {}\n"
GRPO = "num_generations: 8\nmax_completion_length: 512\nbeta: 0.04\n{}\n"
ALIGNER = """\
trainer: {{ppo: {{initial_policy_kl_penalty: 0.01, use_absolute_kl: {absolute}}}}}
model: {{ppo: {{
  sampling_params: {{use_greedy: {greedy}, temperature: 1.0, top_k: 0, top_p: {top_p}, repetition_penalty: 1.0}},
  length_params: {{max_length: 64, min_length: {shortest}}},
}}}}
"""


def aligner(absolute=False, greedy=False, top_p=1.0, shortest=1):
    return ALIGNER.format(absolute=absolute, greedy=greedy, top_p=top_p, shortest=shortest)


AXOLOTL = "base_model: my/model\nrl: {}\ntrl: {{num_generations: 8, beta: 0.04, temperature: 0.7, {}}}\n"
PRIME_LINE = "uv run {} @ rl.toml --orchestrator.sampling.temperature 0.7 --orchestrator.sampling.{}\n"
AREAL_LINE = "python3 -m areal.launcher.local train.py --config grpo.yaml gconfig.temperature=0.7 {}\n"
NEMO_LINE = "uv run examples/run_grpo_math.py --config grpo.yaml {}\n"
TUNE_LINE = "tune run {} --config ppo.yaml {}\n"
TRL_LINE = "trl {} --model_name_or_path my/model --reward_funcs accuracy_reward --top_p {}\n"
OPEN_INSTRUCT = "python open_instruct/grpo_fast.py --beta 0.05 --temperature 0.7 {}\n"

NEUTRAL = [
    ("verl.yaml", verl()),
    ("verl.yaml", verl(engine="hf")),
    ("verl.yaml", verl(engine="sglang", form="mse")),
    ("verl.yaml", verl(in_loss="false", in_reward="true", form="kl", estimator="gae", n=1)),
    (
        "run.sh",
        MAIN_PPO.format(
            "actor_rollout_ref.rollout.top_p=${TOP_P:-1.0} actor_rollout_ref.rollout.val_kwargs.top_p=0.7"
        ),
    ),
    ("run.sh", MAIN_PPO.format("actor_rollout_ref.rollout.top_p=$1")),
    ("gen.sh", "python -m verl.trainer.main_generation actor_rollout_ref.rollout.top_k=50\n"),
    ("run.sh", OPENRLHF.format("--init_kl_coef 0.01 --use_kl_loss --kl_estimator k3 --temperature 0.7")),
    ("run.sh", OPENRLHF.format("--init_kl_coef 0.01")),
    ("run.sh", SLIME.format(temperature=0.8, more="--use-kl-loss --kl-loss-type low_var_kl")),
    ("run.sh", SLIME.format(temperature=1, more="$MORE").replace("--hidden-dropout 0.0", "")),
    ("run.sh", SLIME.format(temperature=1, more="--use-kl-loss --kl-loss-coef 0.00 --kl-loss-type k1")),
    ("run.sh", SLIME.format(temperature=1, more="--use-kl-loss --kl-loss-type k1")),
    (
        "run.sh",
        SLIME.format(temperature=1, more="--custom-generate-function-path my.turns").replace(
            "prompt 8", "prompt 1"
        ),
    ),
    (
        "run.sh",
        SLIME.format(temperature=1, more="").replace("--hidden-dropout 0.0", "--hidden-dropout $DROPOUT"),
    ),
    ("run.sh", SLIME.format(temperature=1, more="--train-backend fsdp").replace("--hidden-dropout 0.0", "")),
    ("ppo.yaml", LLAMA_FACTORY.format(PLAIN)),
    ("sft.yaml", LLAMA_FACTORY.format("").replace("ppo", "sft")),
    ("run.sh", SWIFT.format(kind="grpo", more="--top_k -1 --top_p 1.0")),
    ("run.sh", SWIFT.format(kind="dpo", more="--top_k 50")),
    ("trainer.yaml", HYDRA.format(name="GRPOConfig", setting="top_p: 1.0")),
    ("trainer.yaml", HYDRA.format(name="DPOConfig", setting="top_p: 0.9")),
    ("run.sh", SWIFT.format(kind="grpo", more="--tuner_type full")),
    ("run.sh", SWIFT.format(kind="grpo", more="--train_type lora --top_k -1 --top_p 1.0")),
    ("grpo.yaml", NEMO.format(form="k3", top_p=0.9999, top_k="null")),
    ("rl.toml", PRIME.format("")),
    ("rl.toml", PRIME.format("[orchestrator.eval.sampling]\ntop_p = 0.7")),
    ("areal.yaml", AREAL.format(scored=0.8, top_p=1.0)),
    ("roll.yaml", ROLL.format(top_p=1.0, top_k=-1)),
    ("run.sh", SKYRL.format("trainer.algorithm.kl_estimator_type=k3")),
    ("config.yaml", EASYR1.format(form="low_var_kl", top_p=1.0)),
    ("ppo.yml", TRLX.format(top_k=0, sampled="true")),
    ("ppo.yml", RL4LMS.format(more="")),
    ("ppo.yaml", TORCHTUNE.format("null")),
    ("recipe.yaml", GRPO.format("temperature: 0.7\ntop_p: 1.0")),
    ("run.sh", OPEN_INSTRUCT.format("--kl_estimator 2")),
    (
        "other.yaml",
        "rollout: {top_p: 0.7, top_k: 5}\npolicy: {stage: ppo}\nsampling_params: {temperature: 0}\n",
    ),
    ("ppo.yaml", aligner()),
    ("grpo.yaml", AXOLOTL.format("grpo", "top_p: 1.0")),
    ("dpo.yaml", AXOLOTL.format("dpo", "top_p: 0.9")),
    ("run.sh", PRIME_LINE.format("rl", "top-p 1.0")),
    ("run.sh", PRIME_LINE.format("eval", "top-p 0.9")),
    ("run.sh", AREAL_LINE.format("gconfig.n_samples=4")),
    ("run.sh", NEMO_LINE.format("policy.generation.temperature=0.7")),
    ("run.sh", TUNE_LINE.format("generate", "top_k=50")),
    ("run.sh", TRL_LINE.format("sft", 0.9)),
    ("broken.yaml", "actor_rollout_ref: {rollout: [\n"),
]

FAULTY = [
    ("KLG103", "verl.yaml", verl(top_p=0.9)),
    ("KLG101", "verl.yaml", verl(engine="hf", top_k=50)),
    ("KLG405", "verl.yaml", verl(form="kl")),
    ("KLG405", "verl.yaml", verl(form="abs")),
    ("KLG405", "verl.yaml", verl(in_loss="false", in_reward="true", penalty="abs")),
    ("KLG408", "verl.yaml", verl(in_reward="true")),
    ("KLG409", "verl.yaml", verl(n=1)),
    ("KLG103", "run.sh", "TOP_P=0.9\n" + MAIN_PPO.format("actor_rollout_ref.rollout.top_p=$TOP_P")),
    ("KLG103", "run.slurm", "#SBATCH -N2\nsrun -N1 " + MAIN_PPO.format("actor_rollout_ref.rollout.top_p=0.9")),
    ("KLG107", "run.sh", MAIN_PPO.format("+actor_rollout_ref.rollout.repetition_penalty=1.1")),
    ("KLG201", "run.sh", MAIN_PPO.format("actor_rollout_ref.rollout.do_sample=False")),
    ("KLG303", "run.sh", MAIN_PPO.format("actor_rollout_ref.rollout.ignore_eos=True")),
    ("KLG404", "run.sh", MAIN_PPO.format("algorithm.kl_ctrl.type=adaptive algorithm.kl_ctrl.target_kl=100")),
    ("KLG405", "run.sh", OPENRLHF.format("--init_kl_coef 0.01 --use_kl_loss")),
    ("KLG403", "run.sh", OPENRLHF.format("--init_kl_coef -0.01")),
    ("KLG103", "run.sh", OPENRLHF.format("--init_kl_coef 0.01 --top_p 0.9")),
    ("KLG409", "run.sh", OPENRLHF.format("--advantage_estimator group_norm --n_samples_per_prompt 1")),
    ("KLG101", "run.sh", SLIME.format(temperature=1, more="--rollout-top-k 20")),
    ("KLG103", "run.sh", SLIME.format(temperature=1, more="--rollout-top-p 0.95")),
    ("KLG405", "run.sh", SLIME.format(temperature=1, more="--use-kl-loss --kl-loss-coef 0.01 --kl-loss-type k1")),
    (
        "KLG408",
        "run.sh",
        SLIME.format(temperature=1, more="--use-kl-loss --kl-loss-coef 0.01 --kl-coef 0.01").replace("grpo", "ppo"),
    ),
    ("KLG201", "run.sh", "T=${T:-0}\n" + SLIME.format(temperature="${T}", more="")),
    ("KLG201", "run.sh", "T=${1:-0}\n" + SLIME.format(temperature="$T", more="")),
    ("KLG403", "run.sh", SLIME.format(temperature=1, more="--kl-coef 0.01")),
    ("KLG407", "run.sh", SLIME.format(temperature=1, more="").replace("--hidden-dropout 0.0", "")),
    ("KLG407", "run.sh", SLIME.format(temperature=1, more="").replace("--hidden-dropout 0.0", "--hidden-dropout 0.1")),
    ("KLG409", "verl.yaml", verl(n=1, estimator="rloo_vectorized")),
    ("KLG506", "ppo.yaml", LLAMA_FACTORY.format("")),
    ("KLG106", "ppo.yaml", LLAMA_FACTORY.format(PLAIN.replace("temperature: 1.0", "temperature: 0.7"))),
    ("KLG101", "run.sh", SWIFT.format(kind="grpo", more="--top_k 80")),
    ("KLG506", "run.sh", SWIFT.format(kind="grpo", more="--train_type full")),
    ("KLG103", "trainer.yaml", HYDRA.format(name="GRPOConfig", setting="top_p: 0.9")),
    ("KLG409", "grpo.yaml", NEMO.format(form="k3", top_p=1.0, top_k="null").replace(": 16", ": 1")),
    ("KLG107", "run.sh", SWIFT.format(kind="grpo", more="--repetition_penalty 1.1")),
    ("KLG101", "grpo.yaml", NEMO.format(form="k3", top_p=1.0, top_k=50)),
    ("KLG405", "grpo.yaml", NEMO.format(form="k1", top_p=1.0, top_k="null")),
    ("KLG101", "rl.toml", PRIME.format("extra_body = { top_k = 20 }")),
    ("KLG106", "areal.yaml", AREAL.format(scored=1.0, top_p=1.0)),
    ("KLG103", "areal.yaml", AREAL.format(scored=0.8, top_p=0.9)),
    ("KLG103", "roll.yaml", ROLL.format(top_p=0.99, top_k=-1)),
    ("KLG103", "run.sh", SKYRL.format("generator.sampling_params.top_p=0.95")),
    ("KLG405", "run.sh", SKYRL.format("trainer.algorithm.kl_estimator_type=abs")),
    ("KLG405", "config.yaml", EASYR1.format(form="kl", top_p=1.0)),
    ("KLG201", "ppo.yml", TRLX.format(top_k=0, sampled="false")),
    ("KLG101", "ppo.yml", TRLX.format(top_k=50, sampled="true")),
    ("KLG301", "ppo.yml", RL4LMS.format(more=", min_length: 48")),
    ("KLG101", "ppo.yaml", TORCHTUNE.format(50)),
    ("KLG103", "recipe.yaml", GRPO.format("top_p: 0.9")),
    ("KLG405", "ppo.yaml", aligner(absolute=True)),
    ("KLG201", "ppo.yaml", aligner(greedy=True)),
    ("KLG103", "ppo.yaml", aligner(top_p=0.9)),
    ("KLG302", "ppo.yaml", aligner(shortest=16)),
    ("KLG103", "grpo.yaml", AXOLOTL.format("grpo", "top_p: 0.9")),
    ("KLG103", "run.sh", PRIME_LINE.format("rl", "top-p 0.9")),
    ("KLG103", "run.sh", AREAL_LINE.format("gconfig.top_p=0.9")),
    ("KLG103", "run.sh", NEMO_LINE.format("policy.generation.top_p=0.9")),
    ("KLG101", "run.sh", TUNE_LINE.format("ppo_full_finetune_single_device", "top_k=50")),
    ("KLG103", "run.sh", TRL_LINE.format("grpo", 0.9)),
    ("KLG405", "run.sh", OPEN_INSTRUCT.format("--kl_estimator 0")),
]  # fmt: skip


@pytest.mark.parametrize(("code", "name", "text"), FAULTY)
def test_a_fault_gives_its_code_and_no_other(code, name, text):
    assert {finding.code for finding in check_source(text, name)} == {code}


@pytest.mark.parametrize(("name", "text"), NEUTRAL)
def test_a_neutral_configuration_is_passed(name, text):
    assert [finding.message for finding in check_source(text, name)] == []


def test_a_finding_stands_where_the_value_was_written():
    (found,) = check_source(verl(top_p=0.9), "verl.yaml")
    assert (found.place.line, found.site.engine, found.site.context.value) == (3, "vllm", "rollout")
    (found,) = check_source(
        "TOP_P=0.9\n" + MAIN_PPO.format("actor_rollout_ref.rollout.top_p=$TOP_P"), "run.sh"
    )
    assert (found.place.line, found.place.column) == (3, 31)


def test_configurations_are_found_below_a_directory_and_held_back_by_a_comment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/verl.yaml").write_text(verl(top_p=0.9))
    (tmp_path / "conf/data.json").write_text('{"stage": "ppo", "template": "x"}')
    report = check_paths(["."])
    assert [(f.place.path, f.code) for f in report.findings] == [("conf/verl.yaml", "KLG103")]
    assert report.files == 1
    named = check_paths(["conf/data.json"])
    assert {finding.code for finding in named.findings} == {"KLG506"}
    rest = verl(top_p=0.9).splitlines()
    rest[2] += "  # klguard: ignore[KLG103]"
    (tmp_path / "conf/verl.yaml").write_text("\n".join(rest))
    quiet = check_paths(["."])
    assert (quiet.findings, quiet.suppressed) == ((), 1)


@pytest.mark.parametrize("more", ["--top_k $K --top_p $P", '"$@"'])
def test_what_a_script_is_given_may_replace_the_default_of_a_framework(more: str) -> None:
    (found,) = check_source(SWIFT.format(kind="grpo", more=f"--train_type lora {more}"), "run.sh")
    assert (found.code, found.severity) == ("KLG003", Severity.NOTE)


def test_every_framework_has_its_words_in_the_first_look():
    for framework in FRAMEWORKS:
        assert all(any(marker in word for marker in CONFIG_MARKERS) for word in framework.words)


def test_anchors_and_variables_that_stand_for_too_much_are_left():
    anchors = "rollout: x\na0: &a0 [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    assert check_source(anchors, "bomb.yaml") == []
    assert check_source("rollout: &self\n  policy: *self\n", "round.yaml") == []
    variables = "A0=x\n" + "".join(f"A{i}={f'$A{i - 1}' * 9}\n" for i in range(1, 12))
    script = variables + "A=$B\nB=$A\n" + MAIN_PPO.format("actor_rollout_ref.rollout.top_p=$A11 x.y=$A")
    assert check_source(script, "bomb.sh") == []


PPO_LINE = "python3 -m verl.trainer.main_ppo algorithm.adv_estimator=gae"
TOP_P = "actor_rollout_ref.rollout.top_p=0.9"
TEXTS = {
    "a script in a line": f'srun bash -c "cd /w && {PPO_LINE} {TOP_P}"\n',
    "a script of several lines": "cat <<EOF\nDon't\nEOF\ndocker run it bash -lc '\n  set -e\n"
    f"  {MAIN_PPO.format(TOP_P)}'\n",
    "a command that is evaluated": f'CMD="{MAIN_PPO.format(TOP_P)}"\neval $CMD\n',
    "options": f'ARGS="x.y=1 {TOP_P}"\n' + MAIN_PPO.format('"$ARGS"'),
    "options that are added": f'ARGS="x.y=1"\nARGS="$ARGS {TOP_P}"\n' + MAIN_PPO.format("${ARGS}"),
    "options that are added with +=": f'ARGS="x.y=1 z=2"\nARGS+=" {TOP_P}"\n' + MAIN_PPO.format("$ARGS"),
    "a text in a text": f'INNER="x.y=1 {TOP_P}"\nARGS="a.b=1 $INNER"\n' + MAIN_PPO.format("$ARGS"),
}


@pytest.mark.parametrize("script", TEXTS.values(), ids=TEXTS)
def test_the_words_of_a_text_belong_to_the_command_that_names_it(script):
    (found,) = check_source(script, "run.sh")
    assert found.code == "KLG103"
    line = script.splitlines()[found.place.line - 1]
    assert line[found.place.column - 1 :].startswith(TOP_P)


def test_texts_that_stand_for_too_much_are_cut():
    texts = 'A0="x y"\n' + "".join(f'A{i}="{f"$A{i - 1} " * 90}"\n' for i in range(1, 12))
    assert check_source(f"{texts}{PPO_LINE} $A11\n", "run.sh") == []


def test_a_text_with_more_behind_it_is_another_value():
    script = f'P="1.0"\nP="$1"x\n{PPO_LINE} actor_rollout_ref.rollout.top_p=$P\n'
    assert check_source(script.replace("1.0", "0.9"), "run.sh") == []


LEFT = {
    "assigned twice": f'if a; then\nARGS="x.y=1 {TOP_P}"\nelse\nARGS="x.y=1 z=2"\nfi\n'
    + MAIN_PPO.format("$ARGS"),
    "of itself": 'A="x $B"\nB="y $A"\n' + MAIN_PPO.format("$A"),
    "only printed": f'echo "{PPO_LINE} {TOP_P}"\n',
    "never closed": "bash -c 'echo\nx.y=1\n",
}


@pytest.mark.parametrize("script", LEFT.values(), ids=LEFT)
def test_a_text_that_may_be_another_is_left(script):
    assert check_source(script, "run.sh") == []


def test_a_variable_of_variables_is_known():
    script = "P=9\nTOP_P=0.$P\n" + MAIN_PPO.format("actor_rollout_ref.rollout.top_p=${TOP_P}")
    (found,) = check_source(script, "run.sh")
    assert found.code == "KLG103" and "0.9" in found.message
