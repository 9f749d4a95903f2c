"""Facts about the code around a site: small programs, and one thing each that the reader concludes."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

import klguard
from klguard.read.python.project import Project
from klguard.read.python.wiring import facts, mitigations
from klguard.settings import FACTS, Known, OneOf, Opaque, SiteKind

MODELS = """
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, create_reference_model
model = AutoModelForCausalLMWithValueHead.from_pretrained("gpt2")
tokenizer = AutoTokenizer.from_pretrained("gpt2")
config = PPOConfig()
"""


def project_of(files: dict[str, str]) -> Project:
    content = {path: textwrap.dedent(text).encode() for path, text in files.items()}
    return Project(Path("."), {path: Path(path) for path in content}, content)


def of_call(text: str, name: str, kind: SiteKind, engine: str, files: dict[str, str] | None = None):
    """Facts and mitigations of the last call of `name` in main.py."""
    project = project_of({"main.py": text, **(files or {})})
    module = project.module("main.py")
    call = module.calls[name][-1]
    found = facts(project, module, call, kind, engine)
    assert set(found) <= set(FACTS)
    assert all(value.hops and value.hops[0].place is not None for value in found.values())
    return found, mitigations(project, module, call, kind, {})


def trainer(text: str, name: str = "PPOTrainer", engine: str = "trl", files: dict[str, str] | None = None):
    return of_call(MODELS + textwrap.dedent(text), name, SiteKind.TRAINER, engine, files)[0]


def generate(text: str, engine: str = "transformers", files: dict[str, str] | None = None):
    return of_call(MODELS + textwrap.dedent(text), "generate", SiteKind.GENERATE, engine, files)[0]


def undone(text: str, files: dict[str, str] | None = None, name: str = "generate", kind=SiteKind.GENERATE):
    return of_call(textwrap.dedent(text), name, kind, "transformers", files)[1]


def value(found, name):
    known = found[name]
    assert isinstance(known, Known), known
    return known.value


def test_tests_do_not_say_what_a_function_is_given() -> None:
    text = """
        def draw(policy, prompt):
            return policy.generate(prompt)

        draw(model, prompt)
        """
    test = "from main import draw\ndef test_draw(model):\n    draw(model, prompt)\n"
    assert value(generate(text, files={"tests/test_main.py": test}), "checkpoint") == "gpt2"
    assert "checkpoint" not in generate(text, files={"other.py": test})


def same_object(found) -> bool:
    policy, reference = value(found, "policy"), value(found, "reference")
    return isinstance(reference, Opaque) and policy.name == reference.name


# -- policy and reference ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "PPOTrainer(config, model, model, tokenizer)",
        "PPOTrainer(config=config, model=model, ref_model=model, tokenizer=tokenizer)",
        "ref_model = model\nPPOTrainer(config, model, ref_model, tokenizer)",
        "ref_model = model.eval()\nPPOTrainer(config, model.to('cuda'), ref_model, tokenizer)",
        "a = model\nref = a\nPPOTrainer(config, a, ref, tokenizer)",
        "PPOTrainer(args=config, processing_class=tokenizer, policy=model, ref_policy=model)",
        "PPOTrainer(config, tokenizer, model, model, reward_model)",
        "base = AutoModelForCausalLM.from_pretrained('gpt2')\n"
        "policy = AutoModelForCausalLMWithValueHead.from_pretrained(base)\n"
        "ref = AutoModelForCausalLMWithValueHead.from_pretrained(base)\n"
        "PPOTrainer(config, policy, ref, tokenizer)",
        "from peft import LoraConfig, get_peft_model\n"
        "base = AutoModelForCausalLM.from_pretrained('gpt2')\n"
        "policy = get_peft_model(base, LoraConfig(r=8))\n"
        "PPOTrainer(config, policy, base, tokenizer)",
        "if config.cold:\n    model = model.half()\nref = model\nPPOTrainer(config, model, ref, tokenizer)",
    ],
)
def test_two_names_of_one_object_are_the_same_object(code):
    assert same_object(trainer(code))


def test_the_first_releases_of_trl_took_no_configuration_object():
    """PPOTrainer(model, ref_model, tokenizer, **config), up to trl 0.1."""
    code = (
        "from trl.ppo import PPOTrainer\n"
        "frozen = AutoModelForCausalLM.from_pretrained('gpt2')\n"
        "settings = {'init_kl_coef': 0.2}\n"
        "PPOTrainer(model, frozen, tokenizer, **settings)"
    )
    found = trainer(code)
    assert not same_object(found) and value(found, "reference").name != "tokenizer"


def test_a_tokenizer_in_the_slot_of_the_reference_is_told():
    found = trainer("PPOTrainer(config, model, tokenizer)")
    assert value(found, "reference").name == "tokenizer"


@pytest.mark.parametrize(
    "code",
    [
        "ref_model = AutoModelForCausalLMWithValueHead.from_pretrained('gpt2')\n"
        "PPOTrainer(config, model, ref_model, tokenizer)",
        "import copy\nref_model = copy.deepcopy(model)\nPPOTrainer(config, model, ref_model, tokenizer)",
        "ref_model = create_reference_model(model)\nPPOTrainer(config, model, ref_model, tokenizer)",
        "ref_model = model\nmodel = AutoModelForCausalLMWithValueHead.from_pretrained('gpt2')\n"
        "PPOTrainer(config, model, ref_model, tokenizer)",
        "ref_model = model if config.share else create_reference_model(model)\n"
        "PPOTrainer(config, model, ref_model, tokenizer)",
        "if config.share:\n    ref_model = model\nelse:\n    ref_model = create_reference_model(model)\n"
        "PPOTrainer(config, model, ref_model, tokenizer)",
        "def load():\n    return AutoModelForCausalLM.from_pretrained('gpt2')\n"
        "PPOTrainer(config, load(), load(), tokenizer)",
        "model, ref_model = build()\nPPOTrainer(config, model, ref_model, tokenizer)",
        "while True:\n    old = model\n    model = AutoModelForCausalLM.from_pretrained('x')\n"
        "    PPOTrainer(config, model, old, tokenizer)",
    ],
)
def test_a_copy_or_a_second_model_or_a_choice_is_not_the_same_object(code):
    assert not same_object(trainer(code))


def test_one_checkpoint_name_in_two_slots_makes_two_models():
    found = trainer("name = 'gpt2'\nOnlineDPOTrainer(model=name, ref_model=name)", "OnlineDPOTrainer")
    assert not same_object(found)
    assert value(found, "checkpoint") == "gpt2"


def test_attributes_of_self_are_followed_across_methods():
    code = """
    class Run:
        def __init__(self):
            self.policy = AutoModelForCausalLM.from_pretrained("gpt2")
            self.reference = self.policy
        def build(self):
            return PPOTrainer(config, self.policy, self.reference, tokenizer)
    """
    assert same_object(trainer(code))


def test_parameters_are_followed_to_their_caller():
    code = """
    def build(policy, ref):
        return PPOTrainer(config, policy, ref, tokenizer)
    build(model, model)
    """
    assert same_object(trainer(code))


def test_two_parameters_nobody_visible_fills_are_not_the_same():
    code = """
    def build(policy, ref):
        return PPOTrainer(config, policy, ref, tokenizer)
    """
    assert not same_object(trainer(code))


def test_a_reference_passed_as_none_is_none():
    assert value(trainer("PPOTrainer(config, model, ref_model=None)"), "reference") is None


def test_an_omitted_reference_is_left_out():
    assert "reference" not in trainer("PPOTrainer(config, model, tokenizer=tokenizer)")


def test_a_tokenizer_in_the_slot_of_the_reference_is_no_reference():
    found = trainer("PPOTrainer(config, model, tokenizer)")
    assert value(found, "reference") == Opaque("tokenizer", "tokenizer")


def test_the_project_s_own_trainer_is_read_by_its_own_signature():
    code = """
    class Trainer:
        def __init__(self, tokenizer, ref_model, policy): ...
    Trainer(tokenizer, model, model)
    """
    assert same_object(trainer(code, "Trainer", "local"))


def test_a_subclass_without_constructor_has_the_library_s_signature():
    code = """
    class Mine(PPOTrainer):
        pass
    Mine(config, model, model, tokenizer)
    """
    assert same_object(trainer(code, "Mine"))


def test_the_first_hop_of_a_reference_is_the_argument():
    found = trainer("ref_model = model\nPPOTrainer(config, model, ref_model, tokenizer)")
    assert [hop.text for hop in found["reference"].hops][:2] == ["ref_model", "ref_model = model"]


# -- what a model carries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "PPOTrainer(config, model, peft_config=LoraConfig(r=8))",
        "lora = LoraConfig(r=8)\nPPOTrainer(config, model, peft_config=lora)",
        "m = get_peft_model(AutoModelForCausalLM.from_pretrained('x'), LoraConfig())\nPPOTrainer(config, m)",
        "b = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('gpt2'), 'adapter')\n"
        "PPOTrainer(config, AutoModelForCausalLMWithValueHead.from_pretrained(b))",
        "m = AutoModelForCausalLMWithValueHead.from_pretrained('gpt2', peft_config=LoraConfig())\n"
        "PPOTrainer(config, m)",
    ],
)
def test_an_adapter_is_seen(code):
    assert value(trainer("from peft import LoraConfig, PeftModel, get_peft_model\n" + code), "peft") is True


@pytest.mark.parametrize("adapter", ["None", "get_peft_config(args)", "lora if args.lora else None"])
def test_an_adapter_that_may_be_none_is_left_out(adapter):
    assert "peft" not in trainer(f"PPOTrainer(config, model, peft_config={adapter})")


def test_the_largest_dropout_written_is_given():
    code = """
    from peft import LoraConfig
    m = AutoModelForCausalLM.from_pretrained("gpt2", attn_pdrop=0.0, resid_pdrop=0.2)
    PPOTrainer(config, m, peft_config=LoraConfig(lora_dropout=0.05))
    """
    assert value(trainer(code), "dropout") == 0.2


@pytest.mark.parametrize(
    ("loading", "expected"),
    [
        ("AutoModelForSeq2SeqLM.from_pretrained('x')", True),
        ("T5ForConditionalGeneration.from_pretrained('x')", True),
        ("AutoModelForSeq2SeqLMWithValueHead.from_pretrained('x')", True),
        ("AutoModelForCausalLM.from_pretrained('x')", False),
        ("GPT2LMHeadModel.from_pretrained('x')", False),
    ],
)
def test_the_class_says_whether_there_is_an_encoder(loading, expected):
    assert value(generate(f"m = {loading}\nm.generate(ids)"), "encoder_decoder") is expected


def test_a_vision_language_model_is_not_taken_for_an_encoder_decoder():
    found = generate("m = Qwen2VLForConditionalGeneration.from_pretrained('x')\nm.generate(ids)")
    assert "encoder_decoder" not in found


@pytest.mark.parametrize(
    "code",
    [
        "m = AutoModelForCausalLM.from_pretrained('org/name')\nm.generate(ids)",
        "NAME = 'org/name'\nm = AutoModelForCausalLM.from_pretrained(NAME)\nm.generate(ids)",
        "m = AutoModel.from_pretrained(pretrained_model_name_or_path='org/name').cuda()\nm.generate(ids)",
        "m, tok = FastLanguageModel.from_pretrained(model_name='org/name')\nm.generate(ids)",
        "p.add_argument('--model', default='org/name')\nargs = p.parse_args()\n"
        "m = AutoModelForCausalLM.from_pretrained(args.model)\nm.generate(ids)",
        "class Args:\n    base: str = 'org/name'\n"
        "m = AutoModelForCausalLM.from_pretrained(args.base)\nm.generate(ids)",
        "b = AutoModelForCausalLM.from_pretrained('org/name')\n"
        "t = PPOTrainer(config, AutoModelForCausalLMWithValueHead.from_pretrained(b))\nt.generate(q)",
    ],
)
def test_the_checkpoint_of_the_policy_is_read_where_it_is_literal(code):
    assert value(generate(code), "checkpoint") == "org/name"


def test_the_checkpoint_of_an_engine_is_its_model():
    found = generate("llm = LLM(model='org/name')\nllm.generate(prompts, params)", "vllm")
    assert found.keys() == {"checkpoint"} and value(found, "checkpoint") == "org/name"


def test_a_checkpoint_that_is_computed_is_left_out():
    assert "checkpoint" not in generate("m = AutoModel.from_pretrained(root + '/last')\nm.generate(ids)")


def test_a_constant_of_another_file_is_followed():
    files = {"settings.py": "NAME = 'org/name'\n"}
    code = "from settings import NAME\nm = AutoModelForCausalLM.from_pretrained(NAME)\nm.generate(ids)"
    assert value(generate(code, files=files), "checkpoint") == "org/name"


# -- prompts -------------------------------------------------------------------------------------------------


def test_a_padded_list_is_a_batch_with_its_mask():
    code = """
    inputs = tokenizer(["a", "b"], padding=True, return_tensors="pt").to(device)
    model.generate(**inputs, do_sample=True)
    """
    found = generate(code)
    assert value(found, "batched") is True and value(found, "attention_mask") is True


@pytest.mark.parametrize(
    "code",
    [
        "inputs = tokenizer('one prompt', padding=True, return_tensors='pt')\nmodel.generate(**inputs)",
        "ids = tokenizer.apply_chat_template([{'role': 'user'}, {'role': 'system'}])\nmodel.generate(ids)",
        "model.generate(ids)",
    ],
)
def test_what_may_be_one_prompt_is_not_called_a_batch(code):
    assert "batched" not in generate(code)


@pytest.mark.parametrize(("size", "expected"), [("8", True), ("SIZE", True), ("1", False), ("args.n", False)])
def test_a_batch_of_a_loader_counts_when_it_holds_several(size, expected):
    code = f"""
    SIZE = 4
    loader = DataLoader(data, batch_size={size})
    for step, batch in enumerate(tqdm(loader)):
        ids = batch["input_ids"].to(device)
        model.generate(ids)
    """
    assert ("batched" in generate(code)) is expected


def test_input_ids_alone_are_visibly_without_a_mask():
    code = "enc = tokenizer(['a', 'b'], padding=True)\nmodel.generate(enc['input_ids'], top_k=0)"
    found = generate(code)
    assert value(found, "attention_mask") is False and value(found, "batched") is True


def test_input_ids_handed_from_function_to_function():
    code = """
    def draw(given):
        return model.generate(given, do_sample=True)

    def collect(prompts):
        return draw(prompts)

    batch = tokenizer(["a", "b c"], padding=True, return_tensors="pt").to("cuda")
    collect(batch.input_ids)
    """
    found = generate(code)
    assert [value(found, n) for n in ("batched", "attention_mask")] == [True, False]


def test_a_mask_passed_as_none_is_not_passed():
    assert value(generate("model.generate(ids, attention_mask=None)"), "attention_mask") is False


@pytest.mark.parametrize(
    "code",
    [
        "model.generate(ids, **unknown)",
        "kw = {'top_k': 0}\nkw.update(more)\nmodel.generate(ids, **kw)",
        "kw = {'top_k': 0}\nkw['attention_mask'] = m\nmodel.generate(ids, **kw)",
        "def roll(model, **kw):\n    return model.generate(ids, **kw)",
        "class Own:\n    def generate(self, ids): ...\nown = Own()\nown.generate(ids)",
    ],
)
def test_a_mask_that_may_be_there_is_not_denied(code):
    assert "attention_mask" not in generate(code)


def test_a_splat_with_visible_keys_hides_no_mask():
    assert value(generate("kw = {'top_k': 0}\nmodel.generate(ids, **kw)"), "attention_mask") is False


def test_a_splat_that_holds_the_mask_passes_it():
    assert value(generate("kw = dict(attention_mask=m)\nmodel.generate(ids, **kw)"), "attention_mask") is True


def test_classic_trl_pads_a_list_on_the_left_and_masks_it():
    code = """
    ppo = PPOTrainer(config, model, None, tokenizer)
    for batch in ppo.dataloader:
        queries = batch["input_ids"]
        ppo.generate(queries, return_prompt=False)
    """
    found = generate(code, "trl")
    assert [value(found, n) for n in ("batched", "attention_mask", "padding_side")] == [True, True, "left"]


def test_classic_trl_given_one_query_is_not_a_batch():
    code = "ppo = PPOTrainer(config, model, None, tokenizer)\nfor query in queries:\n    ppo.generate(query)"
    assert not {"batched", "attention_mask"} & generate(code, "trl").keys()


def test_the_padding_side_last_set_is_in_force():
    code = """
    def roll():
        tokenizer.padding_side = "right"
        train()
        tokenizer.padding_side = "left"
        inputs = tokenizer(prompts, padding=True)
        model.generate(**inputs)
    """
    assert value(generate(code), "padding_side") == "left"


@pytest.mark.parametrize(
    "code",
    [
        "tok = AutoTokenizer.from_pretrained('x', padding_side='right')\nmodel.generate(**tok(texts))",
        "tok = AutoTokenizer.from_pretrained('x')\ntok.padding_side = 'right'\n"
        "def roll(texts):\n    return model.generate(**tok(texts))",
        "model.generate(**tokenizer(texts, padding_side='right'))",
        "tok = AutoTokenizer.from_pretrained('x')\ntok.padding_side = 'right'\n"
        "def roll(t):\n    model.generate(**t(texts))\nroll(tok)",
    ],
)
def test_the_padding_side_is_that_of_the_tokenizer_of_the_prompts(code):
    assert value(generate(code), "padding_side") == "right"


@pytest.mark.parametrize(
    "code",
    [
        "reward_tok = AutoTokenizer.from_pretrained('r')\nreward_tok.padding_side = 'right'\n"
        "model.generate(**tokenizer(texts))",
        "if flag:\n    tokenizer.padding_side = 'left'\nelse:\n    tokenizer.padding_side = 'right'\n"
        "model.generate(**tokenizer(texts))",
        "model.generate(**tokenizer(texts))",
    ],
)
def test_a_padding_side_that_is_not_certain_is_left_out(code):
    assert "padding_side" not in generate(code)


# -- modes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("model.train()\nmodel.generate(ids)", True),
        ("model.train()\nmodel.eval()\nmodel.generate(ids)", False),
        ("model.train(False)\nmodel.generate(ids)", False),
        ("model.eval()\nfor i in x:\n    model.generate(ids)", False),
        ("for i in x:\n    model.eval()\n    model.generate(ids)\n    model.train()\n    update()", False),
        ("model.eval()\nwith torch.no_grad():\n    model.module.generate(ids)", False),
        ("model.train()\ndef roll():\n    return model.generate(ids)", True),
        ("t = PPOTrainer(config, model)\nt.model.train()\nt.model.generate(ids)", True),
    ],
)
def test_the_last_switch_before_sampling_decides(code, expected):
    assert value(generate(code), "train_mode") is expected


@pytest.mark.parametrize(
    "code",
    [
        "model.generate(ids)",
        "if flag:\n    model.eval()\nmodel.generate(ids)",
        "model.train(mode)\nmodel.generate(ids)",
        "model.eval()\nfor i in x:\n    model.generate(ids)\n    model.train()",
        "model.eval()\nfor i in x:\n    model.generate(ids)\n    ppo_trainer.step(q, r, s)",
        "def learn(m):\n    m.train()\nmodel.eval()\nfor i in x:\n    model.generate(ids)\n    learn(model)",
        "model.eval()\ndef learn():\n    model.train()\ndef roll():\n    model.generate(ids)",
        "value_model.eval()\nmodel.generate(ids)",
    ],
)
def test_a_mode_that_may_have_changed_is_left_out(code):
    assert "train_mode" not in generate(code)


def test_a_reference_in_the_optimizer_is_trainable():
    code = """
    ref_model = create_reference_model(model)
    opt = AdamW(list(model.parameters()) + list(ref_model.parameters()), lr=1e-5)
    PPOTrainer(config, model, ref_model, tokenizer, optimizer=opt)
    """
    assert value(trainer(code), "reference_trainable") == "in the optimizer"


def test_a_frozen_reference_is_not_trainable():
    code = """
    ref_model = create_reference_model(model)
    for parameter in ref_model.parameters():
        parameter.requires_grad = False
    opt = AdamW(model.parameters())
    PPOTrainer(config, model, ref_model, tokenizer, optimizer=opt)
    """
    assert "reference_trainable" not in trainer(code)


def test_the_reference_of_a_loop_may_be_in_train_mode():
    code = "ref_model.train()\nout = model.generate(ids)\nref_logits = ref_model(out).logits"
    assert value(generate(code), "reference_trainable") == "train mode"


# -- the loss ------------------------------------------------------------------------------------------------

LOOP = """
for batch in loader:
    out = model.generate(batch)
    logp = score(model, out)
    with torch.no_grad():
        ref_logp = score(ref_model, out)
    {term}
    loss.backward()
"""


def loop(term: str):
    return generate(LOOP.format(term=term.replace("\n", "\n    ")))


@pytest.mark.parametrize(
    "term",
    [
        "kl = logp - ref_logp\nloss = pg + 0.1 * kl.mean()",
        "kl = (logp - ref_logp).mean()\nloss = pg + beta * kl",
        "kl = ((logp - ref_logp) * mask).sum()\nkl_loss = beta * kl\nloss = pg + kl_loss",
        "log_ratio = logp - ref_logp\nkl = log_ratio.mean()\nloss = pg\nloss += beta * kl",
    ],
)
def test_a_log_ratio_differentiated_as_a_loss_is_k1_in_the_loss(term):
    assert value(loop(term), "kl_estimator") == "k1-loss"


@pytest.mark.parametrize(
    "term",
    [
        "log_ratio = ref_logp - logp\nkl = torch.exp(log_ratio) - log_ratio - 1\nloss = pg + beta * kl",
        "kl = 0.5 * (logp - ref_logp) ** 2\nloss = pg + beta * kl",
        "kl = (logp.detach() - ref_logp).mean()\nreward = reward - beta * kl\nloss = f(reward, logp)",
        "kl = (old_logp - ref_logp).mean()\nloss = pg + beta * kl",
        "kl = (logp - ref_logp).mean().item()\nloss = pg",
        "kl = (logp - ref_logp).mean()\nmetrics['kl'] = kl.item()\nloss = pg",
        "with torch.no_grad():\n    kl = (logp - ref_logp).mean()\nloss = pg + beta * kl",
        "ratio = torch.exp(logp - old_logp)\nloss = ratio.mean()",
        "if kind == 'k1':\n    kl = logp - ref_logp\nelse:\n    kl = k3(logp, ref_logp)\nloss = pg + kl",
    ],
)
def test_other_terms_are_not_taken_for_k1_in_the_loss(term):
    assert "kl_estimator" not in loop(term)


@pytest.mark.parametrize(
    ("term", "form"),
    [
        ("kl = (logp - ref_logp).abs()\nrewards = scores - beta * kl", "abs"),
        ("kl = torch.abs(logp - ref_logp)\nrewards = scores - beta * kl", "abs"),
        ("kl = torch.clamp(logp - ref_logp, min=0.0)\nshaped_rewards = -beta * kl", "clamp"),
        ("d = logp - ref_logp\nkl = d.clamp(min=0)\nrewards = scores - beta * kl", "clamp"),
    ],
)
def test_a_cut_or_folded_log_ratio_is_named(term, form):
    assert value(loop(term + "\nloss = policy_loss(rewards)"), "kl_estimator") == form


def test_an_estimator_in_a_function_that_returns_the_loss_is_found():
    code = """
    def compute_loss(logp_inputs, ref_logp):
        logp = score(model, logp_inputs)
        kl = (logp - ref_logp).mean()
        return pg + beta * kl
    def train():
        out = model.generate(ids)
        loss = compute_loss(out, score(ref_model, out))
        loss.backward()
    """
    assert value(generate(code), "kl_estimator") == "k1-loss"


def test_reinforce_without_reference_has_no_kl_term():
    code = """
    out = model.generate(ids)
    logp = score(model, out)
    loss = -(logp * advantage).mean()
    loss.backward()
    """
    found = of_call(code.replace("\n    ", "\n"), "generate", SiteKind.GENERATE, "transformers")[0]
    assert value(found, "kl_term") is False


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("kl = f(logp, ref_logp)\nloss = pg + 0.0 * kl", None),
        ("kl_coef = 0.0\nkl = f(logp, ref_logp)\nloss = pg + kl_coef * kl", False),
        ("kl_coef = 0.1\nkl = f(logp, ref_logp)\nloss = pg + kl_coef * kl", None),
    ],
)
def test_a_coefficient_of_zero_is_no_kl_term(term, expected):
    found = loop(term)
    assert (value(found, "kl_term") if "kl_term" in found else None) is expected


@pytest.mark.parametrize(
    ("setting", "sampled"),
    [
        (
            "options = GenerationConfig(top_k=50, do_sample=True, max_new_tokens=8)",
            "model.generate(ids, options)",
        ),
        ("options = SamplingParams(top_k=50, max_tokens=8)", "llm.generate(ids, options)"),
    ],
)
@pytest.mark.parametrize("term", ["", " + beta * (0.5 * (logp - ref_logp) ** 2).mean()"])
def test_the_object_that_holds_the_settings_knows_the_loop_it_is_made_for(setting, sampled, term):
    """Otherwise the same value is told twice: for the object in other words than for the call."""
    code = f"""
import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from vllm import LLM, SamplingParams

llm = LLM("gpt2")
model = AutoModelForCausalLM.from_pretrained("gpt2")
optimizer = torch.optim.AdamW(model.parameters())
{setting}
for ids in batches:
    out = tokens_of({sampled})
    logp = score(model, out).log_softmax(-1).gather(-1, out)
    loss = -(logp * advantage(out)).mean(){term}
    loss.backward()
    optimizer.step()
"""
    found = klguard.check_source(code)
    assert {f.code for f in found} == {"KLG101"} and len(found) == 2
    assert {f.severity.value for f in found} == {"error" if term else "warning"}


def test_a_loss_in_another_file_may_hold_the_kl_term():
    files = {"objective.py": "def objective(logp, ref):\n    return logp - ref\n"}
    code = "from objective import objective\nloss = objective(model.generate(ids))\nloss.backward()\n"
    assert "kl_term" not in of_call(code, "generate", SiteKind.GENERATE, "transformers", files)[0]


MASKED = """
{setting}
out = model.generate(ids, do_sample=True)
response = out[:, n:]
{name} = (response != tokenizer.pad_token_id).float()
loss = (pg * {name}).sum()
loss.backward()
"""


def test_a_mask_by_pad_hides_the_end_when_pad_is_the_end():
    found = generate(MASKED.format(setting="tokenizer.pad_token = tokenizer.eos_token", name="mask"))
    assert value(found, "pad_is_eos_mask") is True


@pytest.mark.parametrize(("ids", "told"), [("response", True), ("prompts", False)])
def test_a_mask_that_a_function_makes(ids, told):
    code = f"""
    tokenizer.pad_token = tokenizer.eos_token

    class Helper:
        pad_id = 0

        def mask_of(self, given):
            return (given != self.pad_id).long()

    helper = Helper()
    out = model.generate(ids, do_sample=True)
    response = out[:, n:]
    mask = helper.mask_of({ids})
    loss = (pg * mask).sum()
    loss.backward()
    """
    assert ("pad_is_eos_mask" in generate(code)) is told


def test_a_pad_set_only_when_missing_depends_on_the_tokenizer():
    setting = "if tokenizer.pad_token is None:\n    tokenizer.pad_token = tokenizer.eos_token"
    found = generate(MASKED.format(setting=setting, name="mask"))["pad_is_eos_mask"]
    assert isinstance(found, OneOf) and found.values[0].value is True


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("tokenizer.pad_token = '<pad>'", "mask"),
        ("tokenizer.pad_token = tokenizer.eos_token", "attention_mask"),
    ],
)
def test_another_pad_or_an_attention_mask_hides_nothing(setting, name):
    assert "pad_is_eos_mask" not in generate(MASKED.format(setting=setting, name=name))


# -- mitigations ---------------------------------------------------------------------------------------------

SCORED = """
def learn(args):
    out = model.generate(ids, do_sample=True, temperature={given})
    logits = model(out).logits[:, :-1]
    {division}
    logp = logits.log_softmax(-1).gather(-1, out[:, 1:, None])
    loss = -logp.mean()
    loss.backward()
"""


@pytest.mark.parametrize(
    ("given", "division"),
    [
        ("args.temperature", "logits = logits / args.temperature"),
        ("args.temperature", "logits /= args.temperature + 1e-7"),
        ("args.temperature", "logits.div_(args.temperature)"),
        ("args.temperature", "logits = logits * (1.0 / args.temperature)"),
        ("args.temperature", "logits *= 1 / args.temperature"),
        ("args.temperature", "logits = torch.div(logits, max(args.temperature, 1e-6))"),
        ("float(args.temperature)", "t = args.temperature\n    logits = logits / t"),
        ("0.7", "logits = logits / 0.7"),
        ("args.temperature", "if args.temperature != 1:\n        logits = logits / args.temperature"),
        ("getattr(args, 'temperature', 1.0)", "logits = logits / self.args.temperature"),
    ],
)
def test_logits_divided_by_the_sampler_s_temperature_are_no_mismatch(given, division):
    assert "temperature" in undone(SCORED.format(given=given, division=division))


@pytest.mark.parametrize(
    ("given", "division"),
    [
        ("args.temperature", "pass"),
        ("args.temperature", "logits = logits / args.scale"),
        ("args.temperature", "probs = hidden / args.temperature"),
        ("0.7", "logits = logits / 0.8"),
        ("0.7", "logits = logits * (1 / 0.8)"),
        ("0.7", "logits = logits * 0.7"),
        ("1.0", "logits = logits / 1.0"),
        ("args.temperature", "ref_logits = ref(out).logits\n    logits = logits / args.temperature"),
        ("args.temperature", "ref_logits = ref(out).logits / args.temperature"),
        ("args.temperature", "logits = logits / args.temperature\n    nxt = torch.multinomial(p, 1)"),
        ("args.temperature", "nxt = logits[:, -1, :] / args.temperature"),
    ],
)
def test_another_divisor_or_a_division_elsewhere_undoes_nothing(given, division):
    assert not undone(SCORED.format(given=given, division=division))


BUILT = """
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

T, OTHER = 0.7, 0.9
model = AutoModelForCausalLM.from_pretrained("gpt2")
optimizer = torch.optim.AdamW(model.parameters())
options = {{"do_sample": True, "top_k": 0, "max_new_tokens": 8}}
{built}
for ids in batches:
    out = model.generate(ids, {given})
    logits = model(out).logits[:, :-1] / {divisor}
    logp = logits.log_softmax(-1).gather(-1, out[:, 1:, None]).squeeze(-1)
    loss = -(logp * advantage(out)).mean()
    loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("built", "given"),
    [
        ("options['temperature'] = T", "**options"),
        ("options |= {'temperature': T}", "**options"),
        ("options = dict(options, temperature=T)", "**options"),
        ("options['temperature'] = T\nconfig = GenerationConfig(**options)", "generation_config=config"),
        ("options['temperature'] = T\nconfig = GenerationConfig.from_dict(options)", "config"),
        ("config = GenerationConfig(**options)\nconfig.temperature = T", "config"),
    ],
)
@pytest.mark.parametrize("divisor", ["T", "OTHER"])
def test_a_temperature_that_a_dict_brings_is_known_by_what_it_is(built, given, divisor):
    text = BUILT.format(built=built, given=given, divisor=divisor)
    found = {f.code for f in klguard.check_source(text)}
    assert found == (set() if divisor == "T" else {"KLG106"})


def test_the_reference_s_logits_divided_as_well_are_fine():
    division = "ref_logits = ref(out).logits / args.temperature\n    logits = logits / args.temperature"
    assert "temperature" in undone(SCORED.format(given="args.temperature", division=division))


def test_a_helper_that_divides_by_its_parameter_is_followed_to_its_caller():
    files = {
        "scoring.py": """
        import torch
        def token_logps(model, ids, temperature):
            logits = model(ids).logits / temperature
            return torch.log_softmax(logits, -1).gather(-1, ids)
        """
    }
    code = """
    from scoring import token_logps
    def train(cfg):
        out = llm.generate(ids, **{"temperature": cfg.temperature})
        loss = -token_logps(model, out, cfg.temperature).mean()
        loss.backward()
    """
    assert "scoring.py" in undone(code, files)["temperature"]


def test_a_helper_left_at_its_default_divides_by_one():
    code = """
    def token_logps(model, ids, temperature=1.0):
        logits = model(ids).logits / temperature
        return torch.log_softmax(logits, -1).gather(-1, ids)
    def train(cfg):
        out = model.generate(ids, temperature=cfg.temperature)
        loss = -token_logps(model, out).mean()
        loss.backward()
    """
    assert not undone(code)


def test_a_reference_scored_at_another_temperature_is_a_mismatch():
    code = """
    def token_logps(model, ids, temperature=1.0):
        logits = model(ids).logits / temperature
        return torch.log_softmax(logits, -1).gather(-1, ids)
    def train(cfg):
        out = model.generate(ids, temperature=cfg.temperature)
        ref_logp = token_logps(ref_model, out)
        loss = -token_logps(model, out, cfg.temperature).mean()
        loss.backward()
    """
    assert not undone(code)


def test_a_temperature_kept_in_an_object_is_the_same_field_everywhere():
    code = """
    from vllm import SamplingParams
    class Trainer:
        def __init__(self, t):
            self.sampling_params = SamplingParams(temperature=t, top_p=1.0)
        def update(self, ids):
            logits = self.model(ids).logits
            logits /= self.sampling_params.temperature
            loss = -torch.log_softmax(logits, -1).gather(-1, ids).mean()
            loss.backward()
    """
    found = undone(code, name="SamplingParams", kind=SiteKind.SAMPLING_PARAMS)
    assert "temperature" in found


def test_a_log_prob_function_of_a_library_that_is_given_the_temperature_divides():
    code = """
    from verl.utils.torch_functional import logprobs_from_logits
    def update_policy(cfg):
        out = model.generate(ids, temperature=cfg.temperature)
        loss = -logprobs_from_logits(model(out).logits, out, temperature=cfg.temperature).mean()
        loss.backward()
    """
    assert "temperature" in undone(code)


def test_scoring_that_is_not_trained_on_mitigates_nothing():
    code = """
    def evaluate(cfg):
        out = model.generate(ids, temperature=cfg.temperature)
        logits = model(out).logits / cfg.temperature
        return torch.log_softmax(logits, -1).gather(-1, out).mean()
    """
    assert not undone(code)


def test_a_file_that_is_not_part_of_the_program_does_not_count():
    files = {"other.py": SCORED.format(given="args.temperature", division="logits /= args.temperature")}
    assert not undone("def learn(args):\n    model.generate(ids, temperature=args.temperature)", files)


def test_a_filter_applied_again_before_scoring_is_replayed():
    division = "logits = top_k_top_p_filter(logits, top_k=args.top_k, top_p=0.5)"
    code = SCORED.format(given="1.0, top_k=args.top_k, top_p=args.top_p", division=division)
    assert undone(code).keys() == {"top_k"}


TWO_SCORERS = """
class Scorer:
    def policy_logprobs(self, ids):
        logits = self.actor(ids).logits / self.args.temperature
        return logits.log_softmax(-1).gather(-1, ids)

    def reference_logprobs(self, ids):
        logits = self.reference(ids).logits{division}
        return logits.log_softmax(-1).gather(-1, ids)

    def train(self, ids):
        tokens = self.actor.generate(ids, do_sample=True, temperature=self.args.temperature)
        kl = self.policy_logprobs(tokens) - self.reference_logprobs(tokens)
        kl.sum().backward()
"""


@pytest.mark.parametrize(("division", "found"), [(" / self.args.temperature", True), ("", False)])
def test_a_reference_that_is_scored_at_another_temperature(division, found):
    assert ("temperature" in undone(TWO_SCORERS.format(division=division))) is found


@pytest.mark.parametrize(
    ("policy", "found"),
    [
        ("PeftModel.from_pretrained(base, 'sft', is_trainable=True)", True),
        ("AutoPeftModelForCausalLM.from_pretrained('sft', is_trainable=True)", True),
        ("PeftModel.from_pretrained(base, 'sft')", False),
        ("PeftModel.from_pretrained(base, 'sft', is_trainable=True).merge_and_unload()", False),
        ("get_peft_model(base, LoraConfig())", False),
    ],
)
def test_an_adapter_that_was_trained_before(policy, found):
    code = f"""
    base = AutoModelForCausalLM.from_pretrained("gpt2")
    tuned = {policy}
    PPOTrainer(config, AutoModelForCausalLMWithValueHead.from_pretrained(tuned), None, tokenizer)
    """
    assert ("adapter_loaded" in trainer(code)) is found


HANDED = """
{options}
def kl_of(a_logp, ref_logp, kind):
    if kind == "k1":
        return a_logp - ref_logp
    if kind in ("k2", "mse"):
        return 0.5 * (a_logp - ref_logp).square()
    d = ref_logp - a_logp
    return d.exp() - 1 - d

class PolicyLoss:
    def __call__(self, logp, ref_logp, advantage):
        {term}
        return (kl * beta - logp * advantage).mean()

policy_loss = PolicyLoss()
for batch in loader:
    out = model.generate(batch)
    {policy}
    with torch.no_grad():
        ref_logp = score(ref_model, out)
    loss = policy_loss(logp, ref_logp, advantages(out))
    loss.backward()
"""
AS_SCORED = "logp = score(model, out)"
KIND_OPTION = (
    "parser = argparse.ArgumentParser()\nparser.add_argument('--kl-kind', default='{}')\n"
    "args = parser.parse_args()"
)
KIND_FIELD = "@dataclass\nclass Options:\n    kl_kind: str = '{}'\nargs = Options({})"


def handed(term: str, options: str = "", policy: str = AS_SCORED):
    return generate(HANDED.format(term=term, options=options, policy=policy))


@pytest.mark.parametrize(
    ("term", "options"),
    [
        ("kl = logp - ref_logp", ""),
        ("kl = kl_of(logp, ref_logp, 'k1')", ""),
        ("kl = kl_of(logp, ref_logp, kind='k1')", ""),
        ("kl = kl_of(logp, ref_logp, args.kl_kind)", KIND_OPTION.format("k1")),
        ("kl = kl_of(logp, ref_logp, args.kl_kind)", KIND_FIELD.format("k1", "")),
        (
            "if args.kl_kind == 'k1':\n            kl = logp - ref_logp\n        else:\n            kl = 0",
            KIND_OPTION.format("k1"),
        ),
        (
            "if args.kl_kind != 'k3':\n            kl = logp - ref_logp\n        else:\n            kl = 0",
            KIND_FIELD.format("k1", ""),
        ),
    ],
)
def test_k1_in_a_loss_that_is_handed_its_log_probs_and_an_option(term, options):
    assert value(handed(term, options), "kl_estimator") == "k1-loss"


@pytest.mark.parametrize(
    ("term", "options", "policy"),
    [
        ("kl = logp - ref_logp", "", "logp = score(model, out).detach()"),
        ("kl = logp - ref_logp", "", "with torch.no_grad():\n        logp = score(model, out)"),
        ("kl = kl_of(logp, ref_logp, 'k2')", "", AS_SCORED),
        ("kl = kl_of(logp, ref_logp, 'k3')", "", AS_SCORED),
        ("kl = kl_of(logp, ref_logp, kind)", "", AS_SCORED),
        ("kl = kl_of(logp, ref_logp, args.kl_kind)", KIND_OPTION.format("mse"), AS_SCORED),
        ("kl = kl_of(logp, ref_logp, args.kl_kind)", KIND_FIELD.format("k1", "kl_kind='k3'"), AS_SCORED),
        (
            "kl = kl_of(logp, ref_logp, args.kl_kind)",
            KIND_FIELD.format("k1", "") + "\nargs.kl_kind = pick()",
            AS_SCORED,
        ),
        (
            "if args.kl_kind == 'k1':\n            kl = logp - ref_logp\n        else:\n            kl = 0",
            KIND_OPTION.format("k3"),
            AS_SCORED,
        ),
    ],
)
def test_another_estimator_in_a_loss_that_is_handed_its_log_probs(term, options, policy):
    assert "kl_estimator" not in handed(term, options, policy)


GATHERED = """
def log_probs_of(net, ids, attention_mask):
    {body}
for batch in loader:
    out = model.generate(batch)
    logp = log_probs_of(model, out, mask)
    loss = -(logp * advantages(out)).mean()
    loss.backward()
"""


@pytest.mark.parametrize(
    "body",
    [
        "return net(ids).logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)",
        "out = net(input_ids=ids, attention_mask=attention_mask)\n    logits = out.logits.float()\n"
        "    lp = torch.log_softmax(logits, dim=-1)\n    return torch.gather(lp, 2, ids[:, :, None])",
        "logits = net(ids).logits\n    lp = F.log_softmax(logits, dim=-1)\n    labels = ids.long()\n"
        "    return lp.gather(dim=-1, index=labels[..., None])",
    ],
)
def test_log_probs_at_their_own_positions(body):
    assert value(generate(GATHERED.format(body=body)), "unshifted") is True


@pytest.mark.parametrize(
    "body",
    [
        "return net(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)",
        "logits = net(ids).logits[:, :-1]\n    lp = logits.log_softmax(-1)\n"
        "    return lp.gather(-1, ids[:, 1:, None])",
        "labels = ids[:, 1:]\n    lp = net(ids).logits[:, :-1].log_softmax(-1)\n"
        "    return lp.gather(-1, labels[..., None])",
        "labels = torch.roll(ids, -1, 1)\n    lp = net(ids).logits.log_softmax(-1)\n"
        "    return lp.gather(-1, labels[..., None])",
        "x = ids[:, :-1]\n    y = ids[:, 1:]\n    return net(x).logits.log_softmax(-1).gather(-1, y[..., None])",
        "return net(ids, labels=ids).logits.log_softmax(-1).gather(-1, ids[..., None])",
        "lp = net(noised(ids)).logits.log_softmax(-1)\n    return lp.gather(-1, ids[..., None])",
        "lp = net(ids).logits.log_softmax(-1)\n    lp = lp[:, :-1]\n    ids = ids[:, 1:]\n"
        "    return lp.gather(-1, ids[..., None])",
        "ids, target = ids[:, :-1], ids[:, 1:]\n"
        "    return net(ids).logits.log_softmax(-1).gather(-1, target[..., None])",
        "lp = net(ids).logits.log_softmax(-1)\n    ids = shift(ids)\n    return lp.gather(-1, ids[..., None])",
    ],
)
def test_log_probs_at_the_position_before_or_who_knows_where(body):
    assert "unshifted" not in generate(GATHERED.format(body=body))
