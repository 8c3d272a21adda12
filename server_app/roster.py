"""Which node is which site, while the run goes on.

A SuperNode without a key of its own comes back from a restart under a new id. Where a site of the run is missing, nodes
that nobody knows are asked once who they are; one that is the missing site, with the same rows, takes its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import Message, MessageType

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import RecordError
from llm_qfl.federation.fingerprint import fingerprint
from llm_qfl.federation.records import Census, decode_census, encode_query
from server_app.grid import BoundedGrid

LONGEST = 60.0  # seconds; a node that is there answers within ten


class Roster:
    """The sites of a run and their nodes.

    Args:
        config: the run config.
        nodes: site -> node id, from the census.
        censuses: site -> what it said then.
    """

    def __init__(self, config: RunConfig, nodes: Mapping[str, int], censuses: Mapping[str, Census]) -> None:
        self._config, self._censuses = config, censuses
        self.nodes = dict(nodes)
        self.sites = {node: site for site, node in nodes.items()}
        self._strangers: dict[int, Census | None] = {}  # what unknown nodes said, once

    def look(self, grid: BoundedGrid) -> set[str]:
        """Take in missing sites that have come back under another node id; which."""
        there = set(grid.get_node_ids())
        missing = {site for site, node in self.nodes.items() if node not in there}
        strangers = there - set(self.sites)
        if not missing or not strangers:
            return set()
        if new := strangers - set(self._strangers):
            self._strangers |= dict.fromkeys(new) | self._ask(grid, new)
        back: set[str] = set()
        for node in sorted(strangers):
            census = self._strangers[node]
            if census is None or census.site not in missing - back:
                continue
            if same_site(census, self._censuses.get(census.site)):
                self._replace(grid, census.site, node)
                back.add(census.site)
        return back

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
