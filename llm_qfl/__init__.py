"""llm-qfl: federated quantum neural networks on Flower."""

__version__ = "0.1.0"
