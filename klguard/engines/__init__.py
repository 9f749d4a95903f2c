"""The knowledge base: what each engine listens to, what it does when left alone, and what wins over what."""

from klguard.engines.engine import Engine, Resolved
from klguard.engines.local import LOCAL
from klguard.engines.sglang import SGLANG
from klguard.engines.tables import Setting
from klguard.engines.transformers import TRANSFORMERS
from klguard.engines.trl import TRL
from klguard.engines.trlx import TRLX
from klguard.engines.versions import NEWEST
from klguard.engines.vllm import VLLM

ENGINES: dict[str, Engine] = {e.name: e for e in (TRANSFORMERS, VLLM, SGLANG, TRL, TRLX, LOCAL)}

__all__ = ["ENGINES", "NEWEST", "Engine", "Resolved", "Setting"]
