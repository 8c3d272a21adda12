"""Differential privacy: noise from a secret, what it costs, and private sums. No file is touched here."""
