"""A site's rows: loaded, encoded and split once a process; mapped to features once a setup.

In simulation every site gets its partition of one pool; a real site has its own file. Nothing here leaves the site
but what `census` returns.
"""

from __future__ import annotations
