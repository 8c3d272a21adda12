"""A site's side: its rows, one local round, its answers."""
