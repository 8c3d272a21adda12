"""Commands that make the README's tables."""
