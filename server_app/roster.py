"""Which node is which site, while the run goes on.

A SuperNode without a key of its own comes back from a restart under a new id. Where a site of the run is missing, nodes
that nobody knows are asked once who they are; one that is the missing site, with the same rows, takes its place.
A node that comes after the census is asked, too: a site with the run's columns and classes joins with its QNN. Classes
and feature map stay as they were fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from flwr.app import Message, MessageType

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import RecordError
from llm_qfl.federation.fingerprint import fingerprint
from llm_qfl.federation.records import Census, decode_census, encode_query
from llm_qfl.federation.setup import Setup
from server_app.grid import BoundedGrid

LONGEST = 60.0  # seconds; a node that is there answers within ten


class Roster:
    """The sites of a run and their nodes.

    Args:
        config: the run config.
        nodes: site -> node id, from the census.
        censuses: site -> what it said then.
        setup: of the run: a site that fits it may join; None takes nobody in.
    """

    def __init__(
        self,
        config: RunConfig,
        nodes: Mapping[str, int],
        censuses: Mapping[str, Census],
        setup: Setup | None = None,
    ) -> None:
        self._config, self._setup = config, setup
        self.nodes, self.censuses = dict(nodes), dict(censuses)
        self.sites = {node: site for site, node in nodes.items()}
        self.joined: set[str] = set()
        """Sites that came after the census."""
        self._told: set[str] = set()
        self._strangers: dict[int, Census | None] = {}  # what unknown nodes said, once
        self._asked: frozenset[int] | None = None  # nodes that were there at the census and take no part

    @property
    def paying(self) -> frozenset[str]:
        """Sites whose tasks may cost QPU seconds."""
        return frozenset(site for site, census in self.censuses.items() if census.pays)

    def look(self, grid: BoundedGrid) -> set[str]:
        """Take in missing sites that have come back under another node id, and new ones; which came back."""
        there = set(grid.get_node_ids())
        missing = {site for site, node in self.nodes.items() if node not in there}
        strangers = there - set(self.sites)
        if self._asked is None:
            self._asked = frozenset(strangers)
        late = strangers - self._asked if self._setup is not None else set()
        if not strangers or not (missing or late):
            return set()
        if new := (strangers if missing else late) - set(self._strangers):
            self._strangers |= dict.fromkeys(new) | self._ask(grid, new)
        back: set[str] = set()
        for node in sorted(strangers):
            census = self._strangers.get(node)
            if census is None:
                continue
            if census.site in missing - back and same_site(census, self.censuses.get(census.site)):
                self._replace(grid, census.site, node)
                back.add(census.site)
            elif node in late and census.site not in self.nodes and self._fits(census):
                self.nodes[census.site], self.sites[node] = node, census.site
                self.censuses[census.site] = replace(census, sums=None)
                self.joined.add(census.site)
        return back

    def new(self) -> tuple[str, ...]:
        """Sites that have joined since this was asked last, sorted."""
        new = tuple(sorted(self.joined - self._told))
        self._told |= self.joined
        return new

    def _fits(self, census: Census) -> bool:
        """Can this site work with what was fixed before the first round?"""
        setup = self._setup
        return (
            setup is not None
            and census.rows["train"] > 0
            and census.encoding != "language"
            and (census.encoding, census.columns) == (setup.encoding, setup.columns)
            and set(census.class_names) <= set(setup.class_names)
        )

    def _replace(self, grid: BoundedGrid, site: str, node: int) -> None:
        old = self.nodes[site]
        grid.forget([old])
        del self.sites[old]
        self.nodes[site], self.sites[node] = node, site

    def _ask(self, grid: BoundedGrid, strangers: Iterable[int]) -> dict[int, Census]:
        """What unknown nodes say of themselves; who says nothing of use stays unknown."""
        limit = min(self._config.server.deadline, LONGEST)
        names, mark = {node.node_id: node.name for node in grid.get_nodes()}, fingerprint(self._config)
        messages = [
            Message(
                encode_query(names.get(node, ""), mark),
                dst_node_id=node,
                message_type=MessageType.QUERY,
                group_id="0",
                ttl=limit,
            )
            for node in sorted(strangers)
        ]
        found: dict[int, Census] = {}
        for reply in grid.ask(messages, limit):
            try:
                found[reply.metadata.src_node_id] = decode_census(reply.content)
            except RecordError:
                continue  # it has no part in the run, and takes none
        return found


def same_site(now: Census, before: Census | None) -> bool:
    """Is this the site that the run was set up with: the same rows by class, columns and backends?"""
    return before is not None and _about(now) == _about(before)


def _about(census: Census) -> tuple[object, ...]:
    return (
        census.own_data,
        census.encoding,
        census.columns,
        census.class_names,
        dict(census.rows),
        census.class_counts.tolist(),
        census.backend,
        census.scoring_backend,
    )
