"""`llm-qfl` for a person; commands import what they need when they run."""
