"""The contract between the two sides of the federation; knows no model, no backend, no strategy."""
