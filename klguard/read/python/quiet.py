"""Code that is not visible, and leaves what it is given as it is: told by name."""

from __future__ import annotations

ECHOES = frozenset("print json.dump json.dumps yaml.dump pprint.pprint len repr str".split())

QUIET_PACKAGES = frozenset(
    "builtins klguard torch transformers trl trlx vllm sglang peft accelerate datasets numpy np "
    "pandas pd wandb logging json "
    "yaml os sys time re math random copy pathlib shutil typing tqdm rich pprint matplotlib "
    "seaborn evaluate deepspeed "
    "bitsandbytes huggingface_hub safetensors tensorboard tensorboardX mlflow comet_ml "
    "swanlab hydra omegaconf gc "
    "collections functools itertools dataclasses argparse warnings datetime statistics "
    "abc enum inspect traceback platform subprocess glob tempfile csv io base64 socket signal textwrap numbers decimal "
    "string uuid hashlib pickle "
    "joblib scipy sklearn nltk rouge_score tiktoken sentencepiece ray unsloth loguru "
    "structlog click typer gradio "
    "streamlit fastapi flask requests httpx openai anthropic google einops jax flax optax mlx mlx_lm".split()
)
"""Packages whose functions read the dicts they are given and leave them as they are."""

QUIET_METHODS = frozenset(
    "log info debug warning warn error exception critical print write append add update_config define_metric "
    "set_postfix set_description generate chat fast_generate step train eval to forward put get send save "
    "save_pretrained from_pretrained from_config init watch record emit dump dumps log_metrics log_params "
    "log_param track report init_trackers trainer_config_process trainer_config_finalize add_hparams add_text "
    "log_hyperparams log_hyperparameters save_hyperparameters log_config".split()
)
"""Methods of objects that are not visible which, by their name, only read what they are given."""
