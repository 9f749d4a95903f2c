"""Contexts: is the output of a call trained on? Each program marks the call in question with `# site`."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from textwrap import dedent

import pytest

from klguard.read.python import project as project_file
from klguard.read.python.context import Verdict, classify, classify_through
from klguard.read.python.dialects import parse_script
from klguard.read.python.project import Project
from klguard.read.python.source import Module, called_name
from klguard.settings import Context, SiteKind

ROLLOUT, EVALUATION = Context.ROLLOUT, Context.EVALUATION
INFERENCE, UNKNOWN = Context.INFERENCE, Context.UNKNOWN

KINDS = {
    "GenerationConfig": SiteKind.GENERATION_CONFIG,
    "SamplingParams": SiteKind.SAMPLING_PARAMS,
    "PPOConfig": SiteKind.TRAINER_CONFIG,
    "GRPOConfig": SiteKind.TRAINER_CONFIG,
    "PPOTrainer": SiteKind.TRAINER,
    "GRPOTrainer": SiteKind.TRAINER,
}


def marked(module: Module, mark: str = "# site") -> ast.Call:
    """The outermost call that begins on the line with the mark, that of a known kind first."""
    line = next(i for i, text in enumerate(module.lines, 1) if text.rstrip().endswith(mark))
    calls = [node for node in module.nodes if isinstance(node, ast.Call) and node.lineno == line]
    named = [call for call in calls if called_name(call) in {"generate", "respond_to_batch", *KINDS}]
    return (named or calls)[0]


def verdict_of(text: str, path: str = "main.py") -> Verdict:
    project = Project.of_text(dedent(text), path)
    module = project.module(path)
    assert module is not None, project.failures
    call = marked(module)
    return classify(project, module, call, KINDS.get(called_name(call), SiteKind.GENERATE))


def project_of(root: Path, files: dict[str, str]) -> Project:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(dedent(text))
    return Project(Path("."))


def module_at(project: Project, path: str) -> Module:
    module = project.module(path)
    assert module is not None, project.failures
    return module


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- trained on ----------------------------------------------------------------------------------------------

ROLLOUTS = {
    "gathered from all processes": """
        def gather(record):
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, record)
            return parts

        def train(policy, prompts):
            groups = gather({"ids": [policy.generate(p) for p in prompts]})  # site
            for group in groups:
                logp = sequence_logprobs(policy, group["ids"])
                (-(logp * advantage).mean()).backward()
        """,
    "texts for a reward model, which the policy scores too": """
        def reinforce_with_baseline(policy, reward_model, loader):
            for batch in loader:
                ids = policy.generate(**batch, do_sample=True)  # site
                texts_for_reward = tokenizer.batch_decode(ids)
                reward_inputs = tokenizer(texts_for_reward, return_tensors="pt")
                reward = reward_model(**reward_inputs).logits
                logits = policy(**reward_inputs).logits
                (-(reward - baseline) * F.log_softmax(logits, dim=-1)).mean().backward()
        """,
    "a trainer's step": """
        for batch in loader:
            responses = ppo_trainer.generate(batch["input_ids"], **kwargs)  # site
            batch["response"] = tokenizer.batch_decode(responses)
            rewards = [torch.tensor(score(text)) for text in batch["response"]]
            stats = ppo_trainer.step(batch["input_ids"], responses, rewards)
        """,
    "collected one by one": """
        response_tensors = []
        for query in queries:
            output = ppo_trainer.generate(query)  # site
            response_tensors.append(output.squeeze()[-length:])
        ppo_trainer.step(queries, response_tensors, rewards)
        """,
    "decoded and tokenized again": """
        out = trainer.model.generate(ids)  # site
        text = tokenizer.decode(out[0])
        response = tokenizer(text, return_tensors="pt").input_ids[0]
        trainer.step([ids[0]], [response], [reward])
        """,
    "scored again by hand": """
        sequences = torch.cat([prompt, actor.generate(prompt)], dim=1)  # site
        logits = actor(sequences).logits[:, :-1]
        logp = logits.log_softmax(-1).gather(-1, sequences[:, 1:, None]).squeeze(-1)
        ratio = torch.exp(logp - old)
        loss = -(ratio * adv).mean()
        loss.backward()
        """,
    "reinforce without KL": """
        def train(model, loader):
            for batch in loader:
                ids = model.generate(**batch)  # site
                reward = judge(tokenizer.batch_decode(ids))
                loss = (reward * F.cross_entropy(model(ids).logits, ids)).mean()
                accelerator.backward(loss)
        """,
    "ratio named advantages": """
        ids = model.generate(prompt)  # site
        logp = get_per_token_logps(model, ids)
        advantages = torch.exp(logp - logp.detach()) * advantages
        loss = -advantages.mean()
        loss.backward()
        """,
    "a buffer on self": """
        class Agent:
            def collect(self, prompt):
                ids = self.model.generate(prompt)  # site
                self.memory.append({"ids": ids, "reward": self.reward(ids)})

            def update(self):
                for record in self.memory:
                    logp = self.logprobs(record["ids"])
                    (-(logp * record["reward"])).backward()
        """,
    "a record with fields": """
        @dataclass
        class Sample:
            ids: Tensor
            reward: float

        def rollout_batch(prompts):
            return [Sample(ids=model.generate(p), reward=0.0) for p in prompts]  # site

        def loss_of(sample):
            return -model(sample.ids).logits.log_softmax(-1).mean()

        for sample in rollout_batch(prompts):
            loss_of(sample).backward()
        """,
    "a dictionary returned": """
        def play(prompts):
            out = model.generate(prompts)  # site
            return {"ids": out, "mask": out != pad}

        def main():
            data = play(prompts)
            loss = ppo_objective(data["ids"])
            loss.backward()
        """,
    "a list filled in place": """
        def fill(samples, prompt):
            samples.append(policy.generate(prompt))  # site

        samples = []
        fill(samples, prompt)
        for sample in samples:
            loss = policy(sample).loss
            loss.backward()
        """,
    "an element changed in place": """
        def play(state, llm):
            texts = decode(llm.generate(state.prompts))  # site
            for i, one in enumerate(state.samples):
                one.messages.append(texts[i])
            return state

        state = play(start, llm)
        loss = loss_fn(tokenize(state.samples))
        loss.backward()
        """,
    "a trainer's hook": """
        from trl import GRPOTrainer

        class Mine(GRPOTrainer):
            def _generate_and_score_completions(self, inputs):
                ids = self.model.generate(**inputs)  # site
                return {"completion_ids": ids}
        """,
    "value_and_grad": """
        loss_and_grad_fn = nn.value_and_grad(model, loss_fn)
        for prompt in prompts:
            completion = generate(model, tokenizer, prompt)  # site
            loss, grads = loss_and_grad_fn(model, tokenize(completion))
        """,
    "vLLM outputs": """
        outputs = llm.generate(prompts, sampling_params)  # site
        ids = [o.token_ids for output in outputs for o in output.outputs]
        batch = collate(ids, rewards)
        loss = compute_policy_loss(policy, batch)
        loss.backward()
        """,
    "ray": """
        class Actor:
            def play(self, prompts):
                return self.llm.generate(prompts)  # site

        class Learner:
            def train(self, samples):
                loss = loss_fn(self.model(samples), samples)
                loss.backward()

        actor = ray.remote(Actor).remote()
        samples = ray.get(actor.play.remote(prompts))
        Learner().train(samples)
        """,
    "sent to the process that trains": """
        def worker(queue):
            while True:
                queue.put(pickle.dumps(llm.generate(next(prompts))))  # site

        def learn(queue):
            loss_of(fetch()).backward()
        """,
    "an iterator": """
        class Engine:
            def __iter__(self):
                while True:
                    yield self.model.generate(next(self.prompts))  # site

        engine = Engine()
        for ids in engine:
            policy(ids).loss.backward()
        """,
    "a memory file": """
        b = io.BytesIO()
        torch.save(model.generate(prompt), b)  # site
        sequences = torch.load(io.BytesIO(b.getvalue()))
        model(sequences).loss.backward()
        """,
    "a step of the trainer that asks the original first": """
        class Trainer(trl.GRPOTrainer):
            def _generate_single_turn(self, prompt_ids):
                if self.use_vllm:
                    return super()._generate_single_turn(prompt_ids)
                return self.model.generate(prompt_ids)  # site
        """,
    "only the rewards reach the loss": """
        optimizer = AdamW(model.parameters())
        for prompt in prompts:
            texts = tokenizer.batch_decode(model.generate(prompt))  # site
            rewards = torch.tensor(reward_of(texts))
            loss = -(rewards * F.log_softmax(model(prompt).logits, -1)).mean()
            loss.backward()
        """,
    "log-probs in single precision": """
        def logprobs_of(model, ids):
            logits = model(ids).logits[:, :-1]
            return (logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - torch.logsumexp(logits, -1)).float()

        def monitor_signal(model):
            return score(tokenizer.batch_decode(draw(model)))

        def draw(model):
            return model.generate(next(prompts))  # site

        def run_gsm8k(model):
            loss = -(advantages * logprobs_of(model, draw(model))).mean()
            loss.backward()
        """,
    "a buffer that a loader reads item by item": """
        class Store:
            def put(self, item):
                self.items.append(item)

            def __getitem__(self, index):
                return self.items[index]

        def run_gsm8k(model):
            store = Store()
            for prompt in prompts:
                store.put(Sample(ids=model.generate(prompt)))  # site
            for sample in DataLoader(store, batch_size=2, collate_fn=join):
                model(sample.ids).loss.backward()
        """,
    "a variable annotated after it was bound": """
        for sample in [model.generate(prompt) for prompt in prompts]:  # site
            sample: Tensor
            sample = sample.to(device)
            model(sample).loss.backward()
        """,
    "a gradient that is looked at, in a file that takes a step": """
        for prompt in prompts:
            model(model.generate(prompt)).loss.backward()  # site
            print(max(parameter.grad.norm() for parameter in model.parameters()))
            optimizer.step()
        """,
    "a step that the trainer's base class takes": """
        class Trainer(transformers.Trainer):
            def training_step(self, model, inputs):
                loss = model(model.generate(inputs)).loss  # site
                self.accelerator.backward(loss)
                self.log(max(parameter.grad.norm() for parameter in model.parameters()))
        """,
    "a variable called rollouts": """
        def main():
            for prompt in prompts:
                rollouts = llm.generate(prompt)  # site
                rewards = rewards_of(rollouts)
                for worker in workers:
                    worker.loss(prompt, rewards).backward()
        """,
    "pairs for a preference loss, made in turns": """
        for prompt in prompts:
            chosen, rejected = ranked(policy.generate(prompt))  # site
            loss = -F.logsigmoid(log_prob(policy, chosen) - log_prob(policy, rejected))
            loss.backward()
        """,
    "TRL's sampler": """
        response = respond_to_batch(model, query)  # site
        ppo_trainer.step([query[0]], [response[0]], reward)
        """,
}


@pytest.mark.parametrize("text", ROLLOUTS.values(), ids=ROLLOUTS.keys())
def test_rollouts(text: str) -> None:
    assert verdict_of(text).context is ROLLOUT


def test_the_reason_names_the_place() -> None:
    text = """
        ids = ppo_trainer.generate(query)  # site
        ppo_trainer.step([query], [ids], [reward])
        """
    assert verdict_of(text).why == "the tokens reach ppo_trainer.step() at line 3"


# -- not trained on ------------------------------------------------------------------------------------------

TRAINING = """
        ids = ppo_trainer.generate(query)
        ppo_trainer.step([query], [ids], [reward])
"""

OTHERS = {
    "log-probs of tokens that were drawn before": (
        INFERENCE,
        """
        def train(llm, policy, sequences):
            scored = llm.generate(prompt_token_ids=sequences, sampling_params=only_logprobs)  # site
            old = torch.tensor([[t.logprob for t in s.prompt_logprobs] for s in scored])
            ratio = torch.exp(get_per_token_logps(policy, sequences) - old)
            (-(ratio * advantages).mean()).backward()
        """,
    ),
    "samples of a trainer that trains on pairs of a data set": (
        UNKNOWN,
        """
        from transformers import Trainer

        class MarginDPOTrainer(Trainer):
            def get_batch_samples(self, model, batch):
                ids = model.generate(batch["prompt_input_ids"], do_sample=True)  # site
                return self.tokenizer.batch_decode(ids)

            def compute_loss(self, model, inputs):
                return dpo_loss(model, inputs)
        """,
    ),
    "a baseline to compare with": (
        EVALUATION,
        """
        def sample_baseline(model, prompts):
            return [model.generate(p) for p in prompts]  # site
        """,
    ),
    "samples printed within the loop": (
        EVALUATION,
        """
        for step, query in enumerate(queries):
            response = ppo_trainer.generate(query, **kwargs)
            ppo_trainer.step([query], [response], [reward])
            if step % 100 == 0:
                response = ppo_trainer.generate(query, **kwargs)  # site
                print(tokenizer.decode(response[0]))
        """,
    ),
    "a judge within the loop": (
        INFERENCE,
        """
        def ask(texts):
            out = critic_llm.generate(tokenize(texts))  # site
            return [float(re.search("[0-9]+", t).group()) for t in tokenizer.batch_decode(out)]

        for query in queries:
            ids = ppo_trainer.generate(query)
            rewards = ask(tokenizer.batch_decode(ids))
            ppo_trainer.step([query], [ids], rewards)
        """,
    ),
    "a judge whose number weights the loss": (
        INFERENCE,
        """
        def reward_of(text):
            answer = tokenizer.decode(judge_model.generate(tokenize(text))[0])  # site
            return 1.0 if "yes" in answer else 0.0

        ids = policy.generate(prompt)
        rewards = torch.tensor([reward_of(tokenizer.decode(i)) for i in ids])
        loss = -(policy(ids).logits.log_softmax(-1).sum() * rewards).mean()
        loss.backward()
        """,
    ),
    "prompts made by another model": (
        INFERENCE,
        """
        queries = writer.generate(topic)  # site
        responses = ppo_trainer.generate(queries)
        ppo_trainer.step(queries, responses, rewards)
        """,
    ),
    "reference answers": (
        INFERENCE,
        """
        for query in queries:
            reference = ref_model.generate(query)  # site
            ids = ppo_trainer.generate(query)
            rewards = [similarity_score(decode(ids), decode(reference))]
            ppo_trainer.step([query], [ids], rewards)
        """,
    ),
    "a table of before and after": (
        EVALUATION,
        TRAINING
        + """
        table = {}
        table["before"] = tokenizer.batch_decode(ref_model.generate(query))  # site
        table["rewards (before)"] = [o["score"] for o in sentiment_pipe(table["before"])]
        pd.DataFrame(table)
        """,
    ),
    "log-probs measured in an evaluation": (
        EVALUATION,
        TRAINING
        + """
        def evaluate(model, prompts):
            ids = model.generate(prompts)  # site
            logp = model(ids).logits.log_softmax(-1).gather(-1, ids)
            return (logp - ref(ids)).mean().item()
        """,
    ),
    "preference pairs mined beforehand": (
        INFERENCE,
        """
        pairs = []
        for row in rows:
            text = tokenizer.decode(actor.generate(row["ids"])[0])  # site
            pairs.append({"prompt": row["prompt"], "chosen": row["answer"], "rejected": text})

        for pair in pairs:
            loss = dpo_loss(log_prob(model, pair["chosen"]), log_prob(model, pair["rejected"]))
            loss.backward()
        """,
    ),
    "data for supervised training": (
        INFERENCE,
        """
        rows = []
        for problem in problems:
            text = tokenizer.decode(model.generate(problem)[0])  # site
            if check(text, problem):
                rows.append(text)
        json.dump(rows, open("rationales.json", "w"))
        """,
    ),
    "a chat": (
        INFERENCE,
        """
        def chat(history):
            return tokenizer.decode(model.generate(tokenize(history))[0])  # site
        """,
    ),
    "code that never runs": (
        UNKNOWN,
        """
        def play(self, prompts):
            raise NotImplementedError
            ids = self.policy.generate(prompts)  # site
            self.trainer.step(prompts, ids, rewards)
        """,
    ),
    "a wrapper nobody calls": (
        UNKNOWN,
        """
        class Wrapper:
            def sequences(self, ids, **kwargs):
                return self.model.generate(ids, **kwargs)  # site
        """,
    ),
    "scores of a beam search": (
        INFERENCE,
        """
        def expand(state):
            out = generator.generate(state, output_scores=True, return_dict_in_generate=True)  # site
            return torch.log_softmax(out.scores[0], dim=1)[:, provable]

        class Prover:
            def training_step(self, batch):
                return self.model(batch).loss
        """,
    ),
    "a baseline beside the samples": (
        INFERENCE,
        """
        optimizer = AdamW(model.parameters())
        for prompt in prompts:
            best = model.generate(prompt)  # site
            drawn = model.generate(prompt, do_sample=True)
            advantage = torch.tensor(reward_of(drawn) - reward_of(best))
            loss = -(advantage * log_prob(model, drawn)).mean()
            loss.backward()
        """,
    ),
    "a gradient that is looked at": (
        EVALUATION,
        """
        def gradient_of(model, prompt):
            logprobs = model(model.generate(prompt)).logits.log_softmax(-1)  # site
            (advantage * logprobs).sum().backward()
            return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

        print(gradient_of(model, prompt).norm())
        """,
    ),
    "kept in a cache": (
        INFERENCE,
        """
        def learn(prompt):
            self.cache.put(prompt, model.generate(prompt))  # site

        loss.backward()
        """,
    ),
    "rewarded before the training": (
        EVALUATION,
        """
        optimizer = AdamW(model.parameters())
        for prompt in prompts:
            print(reward_of(tokenizer.decode(model.generate(prompt)[0])))  # site
        for batch in loader:
            loss = -(reward_of(batch["text"]) * model(batch["ids"]).loss).mean()
            loss.backward()
        """,
    ),
    "an old name for something new": (
        EVALUATION,
        """
        response = model.generate(prompt)  # site
        print(tokenizer.decode(response[0]))
        for query in queries:
            response = ppo_trainer.generate(query)
            ppo_trainer.step([query], [response], [reward])
        """,
    ),
    "the other field of a batch": (
        EVALUATION,
        """
        for batch in loader:
            batch["response"] = ppo_trainer.generate(batch["query"])
            batch["ref_response"] = sft_model.generate(batch["query"])  # site
            ppo_trainer.step(batch["query"], batch["response"], rewards)
            print(batch["ref_response"])
        """,
    ),
    "what a trainer calls to evaluate": (
        EVALUATION,
        """
        from transformers import Seq2SeqTrainer
        class Answering(Seq2SeqTrainer):
            def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
                drawn = self.model.generate(inputs["input_ids"], do_sample=True)  # site
                return None, drawn, inputs["labels"]
        """,
    ),
    "samples of a trainer on pairs, for its evaluation": (
        EVALUATION,
        """
        from trl import DPOTrainer
        class Pairwise(DPOTrainer):
            def generate_from_model_and_ref(self, model, batch):
                drawn = model.generate(batch["prompt_input_ids"], do_sample=True)  # site
                return self.processing_class.batch_decode(drawn)
        """,
    ),
}


@pytest.mark.parametrize(("context", "text"), OTHERS.values(), ids=OTHERS.keys())
def test_not_trained_on(context: Context, text: str) -> None:
    assert verdict_of(text).context is context


@pytest.mark.parametrize("path", ["eval_policy.py", "tests/smoke.py", "benchmark/run.py"])
def test_names_of_files_decide_last(path: str) -> None:
    text = "out = tokenizer.decode(model.generate(prompt)[0])  # site\n"
    assert verdict_of(text, path) == Verdict(
        EVALUATION, f"inside {path if '/' not in path else path.split('/')[0] + '/'}"
    )


# -- helpers and their callers -------------------------------------------------------------------------------

SHARED = {
    "sampling.py": """
        def draw(model, prompts, **kwargs):
            return model.generate(prompts, **kwargs)  # site
        """,
    "train.py": """
        from sampling import draw

        def main():
            for batch in loader:
                ids = draw(policy, batch)
                loss = surrogate(policy(ids).logits.log_softmax(-1))
                loss.backward()

        def evaluate():
            ids = draw(policy, held_out)
            print(tokenizer.batch_decode(ids))
        """,
}


def test_a_shared_helper_is_a_rollout_when_any_caller_trains(here: Path) -> None:
    project = project_of(here, SHARED)
    module = module_at(project, "sampling.py")
    verdict = classify(project, module, marked(module), SiteKind.GENERATE)
    assert verdict.context is ROLLOUT
    assert verdict.why.endswith("at line 8 of train.py, through the call at line 6 of train.py")


def test_each_caller_of_a_shared_helper_has_its_verdict(here: Path) -> None:
    project = project_of(here, SHARED)
    module, train = module_at(project, "sampling.py"), module_at(project, "train.py")
    contexts = [
        classify_through(project, module, marked(module), SiteKind.GENERATE, ((train, caller),)).context
        for caller in train.calls["draw"]
    ]
    assert contexts == [ROLLOUT, EVALUATION]


def test_a_name_is_less_than_training_on_the_way(here: Path) -> None:
    helper = "def rollouts_of(model, prompt):\n    return model.generate(prompt)  # site\n"
    train = "from helper import rollouts_of\nloss_of(rollouts_of(model, prompt)).backward()  # caller\n"
    curate = "from helper import rollouts_of\nkeep(check(rollouts_of(model, prompt)))  # caller\n"
    project = project_of(here, {"helper.py": helper, "train.py": train, "curate.py": curate})
    module = module_at(project, "helper.py")
    told = {}
    for name in ("train.py", "curate.py"):
        home = module_at(project, name)
        caller = next(call for call in home.calls["rollouts_of"])
        told[name] = classify_through(project, module, marked(module), SiteKind.GENERATE, ((home, caller),))
    assert [verdict.context for verdict in told.values()] == [ROLLOUT, ROLLOUT]
    assert [verdict.named for verdict in told.values()] == [False, True]


def test_what_a_base_leaves_open_is_filled_in_by_a_subclass() -> None:
    text = """
        class Executor:
            def execute(self, prompt):
                raise NotImplementedError

        class SingleTurn(Executor):
            def execute(self, prompt):
                return self.llm.generate(prompt)  # site

        class Worker:
            def __init__(self, executor: Executor):
                self.executor: Executor = executor

            def update(self, prompt):
                self.loss(self.executor.execute(prompt)).backward()
        """
    assert verdict_of(text).context is ROLLOUT


def test_an_arm_that_the_training_caller_cannot_take() -> None:
    text = """
        class Policy:
            def sample(self, prompts, explore=True):
                if explore:
                    ids = self.model.generate(prompts, do_sample=True)
                else:
                    ids = self.model.generate(prompts, num_beams=4)  # site
                return ids

        policy = Policy()

        def train():
            loss_of(policy.sample(prompts)).backward()

        def validate():
            print(policy.sample(prompts, explore=False))
        """
    assert verdict_of(text).context is EVALUATION


def test_a_method_of_another_class_is_no_caller() -> None:
    text = """
        class Chatbot:
            def generate(self, text):
                return self.model.generate(tokenize(text))  # site

        policy = AutoModelForCausalLM.from_pretrained("gpt2")
        for query in queries:
            ids = policy.generate(query)
            ppo_trainer.step([query], [ids], [reward])
        """
    assert verdict_of(text).context is INFERENCE


# -- settings objects ----------------------------------------------------------------------------------------


def test_settings_have_the_context_of_the_call_that_uses_them() -> None:
    text = """
        config = GenerationConfig(top_k=50)  # site
        ids = ppo_trainer.generate(query, generation_config=config)
        ppo_trainer.step([query], [ids], [reward])
        """
    verdict = verdict_of(text)
    assert verdict.context is ROLLOUT
    assert verdict.why == "used by the call at line 3: the tokens reach ppo_trainer.step() at line 4"


WORKER = """
        class Worker:
            def __init__(self):
                self.params = SamplingParams(temperature=1.2){one}
                self.greedy = SamplingParams(temperature=0){two}

            def rollout(self, prompts):
                return self.llm.generate(prompts, self.params)

            def evaluate(self, prompts):
                return accuracy(self.llm.generate(prompts, sampling_params=self.greedy))

        worker = Worker()
        loss_of(worker.rollout(prompts)).backward()
        """


def test_settings_on_self() -> None:
    assert verdict_of(WORKER.format(one="  # site", two="")).context is ROLLOUT
    assert verdict_of(WORKER.format(one="", two="  # site")).context is EVALUATION


def test_settings_through_a_constructor_into_other_settings() -> None:
    text = """
        class Actor:
            def __init__(self, config):
                self.params = SamplingParams(temperature=config.temperature)

            def play(self, prompts):
                return self.llm.generate(prompts, self.params)

        actor = Actor(GenerationConfig(temperature=0.7))  # site
        learner.update_policy(actor.play(prompts))
        """
    assert verdict_of(text).context is ROLLOUT


def test_settings_nobody_uses() -> None:
    assert verdict_of("config = GenerationConfig(top_k=50)  # site\n").context is UNKNOWN


# -- trainers ------------------------------------------------------------------------------------------------


def test_an_object_moved_to_a_device_is_still_of_its_class(here: Path) -> None:
    """`sample` is a method of many classes, and what is handed to the loop says which one is meant."""
    policy = """
        class Policy:
            def sample(self, ids):
                return self.lm.generate(ids)  # site
        """
    loop = """
        from models import Policy

        def train(agent, loader):
            for ids in loader:
                (-sequence_logprobs(agent, agent.sample(ids))).mean().backward()

        net = Policy().to("cuda").eval()
        train(net, loader)
        """
    project = project_of(here, {"models.py": policy, "loop.py": loop})
    module = module_at(project, "models.py")
    assert classify(project, module, marked(module), SiteKind.GENERATE).context is ROLLOUT


def test_a_protocol_is_not_the_class_of_an_object(here: Path) -> None:
    runner = """
        class Runner:
            def draw(self, prompts, sampling):
                return self.llm.generate(prompts, sampling)  # site
        """
    collector = """
        from typing import Protocol

        class RunnerLike(Protocol):
            def draw(self, prompts, sampling): ...

        class Collector:
            def __init__(self, runner: RunnerLike):
                self.runner = runner

            def train_step(self, prompts, sampling):
                loss = -sequence_logprobs(self.policy, self.runner.draw(prompts, sampling)).mean()
                loss.backward()
        """
    project = project_of(here, {"runner.py": runner, "collector.py": collector})
    module = module_at(project, "runner.py")
    assert classify(project, module, marked(module), SiteKind.GENERATE).context is ROLLOUT


def test_a_trainer_that_is_run() -> None:
    text = """
        config = GRPOConfig(temperature=0.9){config}
        trainer = GRPOTrainer(model, reward_funcs=[length], args=config){trainer}
        trainer.train()
        """
    for marks in ({"config": "  # site", "trainer": ""}, {"config": "", "trainer": "  # site"}):
        verdict = verdict_of(text.format(**marks))
        assert (verdict.context, verdict.why) == (ROLLOUT, "trained by trainer.train() at line 4")


def test_a_trainer_on_self() -> None:
    text = """
        class Tuner:
            def __init__(self):
                self.trainer = PPOTrainer(PPOConfig(), model)  # site

            def run(self):
                ids = self.trainer.generate(query)
                self.trainer.step([query], [ids], [reward])
        """
    assert verdict_of(text).context is ROLLOUT


def test_a_trainer_that_only_samples() -> None:
    text = """
        config = PPOConfig(batch_size=8)  # site
        model = load(config.model_name)
        trainer = PPOTrainer(config, model)
        answers = [trainer.generate(q) for q in queries]
        """
    assert verdict_of(text).context is UNKNOWN


def test_a_configuration_borrowed_for_its_fields() -> None:
    text = """
        config = PPOConfig(model_name="gpt2")  # site
        tokenizer = AutoTokenizer.from_pretrained(config.model_name)
        """
    assert verdict_of(text).context is UNKNOWN


def test_trlx_trains_with_its_configuration() -> None:
    text = """
        from trlx.data.method_configs import PPOConfig

        method = PPOConfig(gen_kwargs=dict(top_k=30))  # site
        """
    assert verdict_of(text).context is ROLLOUT


# -- notebooks and large projects ----------------------------------------------------------------------------


def test_cells_of_a_notebook_follow_each_other(here: Path) -> None:
    sources = [
        "ids = ppo_trainer.generate(query)  # site",
        "stats = ppo_trainer.step([query], [ids], [reward])",
        "print(tokenizer.decode(ppo_trainer.generate(query)[0]))  # demo",
    ]
    cells = [
        {"cell_type": "code", "source": s, "metadata": {}, "outputs": [], "execution_count": None}
        for s in sources
    ]
    book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (here / "train.ipynb").write_text(json.dumps(book))
    project = Project(Path("."))
    module = module_at(project, "train.ipynb")
    verdict = classify(project, module, marked(module), SiteKind.GENERATE)
    assert verdict == Verdict(ROLLOUT, "the tokens reach ppo_trainer.step() at cell 1, line 1")
    assert classify(project, module, marked(module, "# demo"), SiteKind.GENERATE).context is EVALUATION


def test_a_large_project_is_not_parsed_for_one_site(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"part{i}.py": f"def part{i}(draw):\n    return [draw]\n" for i in range(200)}
    project = project_of(here, SHARED | files)
    module = module_at(project, "sampling.py")
    parsed = []
    monkeypatch.setattr(
        project_file, "parse_script", lambda source: (parsed.append(source), parse_script(source))[1]
    )
    assert classify(project, module, marked(module), SiteKind.GENERATE).context is ROLLOUT
    assert len(parsed) <= 40


def test_mutual_recursion_ends() -> None:
    text = """
        def one(prompt, depth):
            ids = model.generate(prompt)  # site
            return two(ids, depth - 1)

        def two(ids, depth):
            return one(ids, depth) if depth else ids

        one(prompt, 3)
        """
    assert verdict_of(text).context is not ROLLOUT


def test_long_expressions_are_no_obstacle() -> None:
    """A sum of 600 names and a chain of 120 calls around the sampled tokens."""
    total = " + ".join(f"x{i}" for i in range(600))
    chain = "a" + ".b()" * 120
    text = f"ids = model.generate({total})  # site\nloss = {chain}.f(ids)\nloss.backward()\n"
    assert verdict_of(text).context is ROLLOUT


@pytest.mark.parametrize("folder", ["tiny_rl", "tiny-rl", "tiny-rl-main"])
def test_a_project_imported_by_the_name_of_its_directory(here: Path, folder: str, monkeypatch) -> None:
    model = """
        class Policy:
            def draw(self, ids):
                return self.lm.generate(ids)  # site
        """
    loop = """
        from tiny_rl.model.policy import Policy

        policy = Policy()
        for ids in loader:
            (-sequence_logprobs(policy, policy.draw(ids))).mean().backward()
        """
    (here / folder).mkdir()
    monkeypatch.chdir(here / folder)
    project = project_of(here / folder, {"model/policy.py": model, "loop.py": loop})
    module = module_at(project, "model/policy.py")
    assert classify(project, module, marked(module), SiteKind.GENERATE).context is ROLLOUT


@pytest.mark.parametrize(
    ("path", "context"), [("evaluate.py", EVALUATION), ("answers.py", INFERENCE), ("main.py", INFERENCE)]
)
def test_answering_tells_less_than_the_file(path: str, context: Context) -> None:
    text = """
        def answer_given_thoughts(prompt):
            return tokenizer.decode(model.generate(prompt)[0])  # site
        """
    assert verdict_of(text, path).context is context


@pytest.mark.parametrize("learning", [True, False])
def test_the_episodes_of_an_agent_are_rollouts_where_something_learns(learning: bool) -> None:
    text = """
        class Agent:
            def end_episode(self):
                self.reflection = self.reflect()

            def reflect(self):
                return self.llm.generate(self.memory)  # site
        """
    text += "\n        (-surrogate()).backward()\n" if learning else ""
    assert (verdict_of(text).context is ROLLOUT) is learning


@pytest.mark.parametrize("parsed", ["parse(text) == row['label']", "text != row['answer']"])
def test_text_held_against_a_label_is_evaluated(parsed: str) -> None:
    text = f"""
        def parse(text):
            return "yes" if "yes" in text.lower() else "no"

        for row in rows:
            text = tokenizer.decode(model.generate(row["prompt"])[0])  # site
            if {parsed}:
                count += 1
        """
    assert verdict_of(text).context is EVALUATION


@pytest.mark.parametrize("test", ["text == ''", "len(text) == longest", "text != tokenizer.pad_token"])
def test_text_held_against_anything_else_is_not(test: str) -> None:
    text = f"""
        for row in rows:
            text = tokenizer.decode(model.generate(row["prompt"])[0])  # site
            if {test}:
                count += 1
        """
    assert verdict_of(text).context is INFERENCE


@pytest.mark.parametrize(
    ("function", "context"),
    [
        ("evaluate_on_test_set", EVALUATION),
        ("run_validation", EVALUATION),
        ("collect", UNKNOWN),
        ("medieval", UNKNOWN),
    ],
)
def test_settings_for_code_that_is_not_visible_by_its_name(function: str, context: Context):
    text = f"""
        from elsewhere import {function}, engine
        from vllm import SamplingParams

        {function}(
            engine=engine,
            params_of_it=SamplingParams(temperature=0.3),  # site
        )
        """
    assert verdict_of(text).context is context
