"""The tables against the installed transformers: defaults, merging, processors, modes, refusals."""

import pytest
import torch
from transformers import GenerationConfig

from klguard.settings import Known

from .transformers_oracle import ENGINE, FIVE, PROMPT, VERSIONS, processors, run, same, tiny_model

MASK = torch.ones_like(PROMPT)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_model()


def test_three_hundred_draws_agree_with_the_library():
    tally = run(300)
    assert tally.disagreements == []
    assert tally.draws == 300 and tally.untouched > 50 and tally.sampled > 50 and tally.refused > 10
    assert len(tally.built) > 15


def test_every_field_of_a_configuration_is_a_setting():
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert fields <= ENGINE.settings.keys()


def test_the_defaults_are_the_librarys():
    config = GenerationConfig()
    defaults = config._get_default_generation_params() if FIVE else {}
    for name, setting in ENGINE.settings.items():
        if setting.shown and not setting.argument and hasattr(config, name):
            real = defaults.get(name, getattr(config, name))
            assert same(ENGINE.default(name, VERSIONS).value, real), name


def test_the_neutral_settings_are_accepted_and_build_nothing(model):
    neutral = ENGINE.neutral(VERSIONS)
    arguments = {name for name in neutral if ENGINE.settings[name].argument}
    fields = {name: value for name, value in neutral.items() if name not in arguments}
    config, _ = model._prepare_generation_config(None, **fields)
    model._prepare_special_tokens(config, True, device=PROMPT.device)
    assert config.do_sample is True and len(processors(model, config)) == 0
    tokens = model.generate(PROMPT, attention_mask=MASK, pad_token_id=0, max_new_tokens=2, **neutral)
    assert PROMPT.shape[1] < tokens.shape[1] <= PROMPT.shape[1] + 2


@pytest.mark.parametrize("do_sample", [True, 1, False, None, 0])
def test_do_sample_is_asked_for_its_truth(model, do_sample):
    lengths = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}

    def response() -> tuple[int, ...]:
        return tuple(model.generate(PROMPT, attention_mask=MASK, do_sample=do_sample, **lengths)[0].tolist())

    drawn = len({response() for _ in range(5)}) > 1
    assert ENGINE.sampling({"do_sample": Known(do_sample)}) is drawn
