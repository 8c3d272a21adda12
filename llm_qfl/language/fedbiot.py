"""FedBiOT as a library: what a server and its sites need, in the order of a run.

1. `ServerLanguage(load_base(...), config, seed=...)`, `align(public, 0)`, `export(folder)`.
2. A site: `fetch_compressed`, `load_compressed`, `ClientLanguage(model, config, folder=...)`.
3. Each round: `server.broadcast` -> `client.receive`, `client.train` -> `server.receive`, `server.aggregate`, and
   `server.align(public, round)` where the method realigns.
4. `server.score` along `zero-shot`, `compressed-zero-shot`, `adap-emu` and `adap-fu`; `export_adapter`.

Wu et al., FedBiOT: LLM Local Fine-tuning in Federated Learning without Full Model, KDD 2024, arXiv 2406.17706.
"""

from llm_qfl.language.client import ClientLanguage, ClientUpdate, share
from llm_qfl.language.compress import CompressedModel, ExportedModel, Manifest, export_compressed, load_compressed
from llm_qfl.language.export import export_adapter, load_tuned, merge_adapter, read_adapter
from llm_qfl.language.fetch import fetch_compressed
from llm_qfl.language.methods import lora_specs
from llm_qfl.language.models import BaseModel, load_base
from llm_qfl.language.server import ROUTES, Broadcast, ServerLanguage
from llm_qfl.language.split import SplitPlan

__all__ = [
    "ROUTES",
    "BaseModel",
    "Broadcast",
    "ClientLanguage",
    "ClientUpdate",
    "CompressedModel",
    "ExportedModel",
    "Manifest",
    "ServerLanguage",
    "SplitPlan",
    "export_adapter",
    "export_compressed",
    "fetch_compressed",
    "load_base",
    "load_compressed",
    "load_tuned",
    "lora_specs",
    "merge_adapter",
    "read_adapter",
    "share",
]
