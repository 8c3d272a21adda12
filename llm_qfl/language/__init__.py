"""The language model: a compressed model at the sites, an adapter that travels, realigned by the server (FedBiOT).

torch, transformers and peft are imported here only; `import llm_qfl.language` itself loads none of them.
Source of the method: Wu et al., FedBiOT, KDD 2024, arXiv 2406.17706.
"""

import os

# Before torch loads its thread library: threads that spin while they wait for one that has no core make a busy machine
# (several sites, or anything else on it) ten times slower; threads that sleep cost a free one next to nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
