"""The language model: a compressed model at the sites, an adapter that travels, realigned by the server (FedBiOT).

torch, transformers and peft are imported here only; `import llm_qfl.language` itself loads none of them.
Source of the method: Wu et al., FedBiOT, KDD 2024, arXiv 2406.17706.
"""
