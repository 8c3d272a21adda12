"""A network that can be cut: a TCP relay on loopback between a node and its server.

While it is cut nothing passes and nobody is told, as when a cable is pulled: what was on its way waits, as it would
with TCP that sends again, and goes on when the cable is back. What was sent over a connection that stood is delivered
even where its sender has given up, for so does its kernel; of a connection that was begun and given up while the cable
was out nothing is ever seen.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import suppress


class Relay:
    """Listens on a port of its own and passes each connection on.

    Args:
        target: port of the loopback address that it leads to.
    """

    def __init__(self, target: int) -> None:
        self._target, self._loop = target, asyncio.new_event_loop()
        self._whole = asyncio.Event()
        self._whole.set()
        self.held = 0
        """Pieces of data that met a cut."""
        self.port = 0
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._connection, "127.0.0.1", 0)).result(10)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    def __exit__(self, *error: object) -> None:
        self._do(self._end()).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def cut(self) -> None:
        """Nothing passes from now on."""
        self._loop.call_soon_threadsafe(self._whole.clear)

    def mend(self) -> None:
        """What waits goes on."""
        self._loop.call_soon_threadsafe(self._whole.set)

    def _do(self, work) -> Future:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _end(self) -> None:
        """Every connection is dropped."""
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # closed transports let go of their sockets in the loop's next turn

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            with suppress(asyncio.CancelledError):  # at the end, of which asyncio would complain
                await self._through(reader, writers)
        finally:  # a writer that is collected before it was closed warns
            for one in writers:
                one.close()

    async def _through(self, reader: asyncio.StreamReader, writers: list[asyncio.StreamWriter]) -> None:
        """Both directions of a connection, to its end."""
        first = b""
        if not self._whole.is_set():
            await self._whole.wait()
            while (more := await _there(reader)) is not None:
                if not more:  # it was given up meanwhile
                    return
                first += more
        try:
            onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # the server is down: so is the connection
            return
        writers.append(onward_writer)
        onward_writer.write(first)
        await asyncio.gather(self._pass(reader, onward_writer), self._pass(onward_reader, writers[0]))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction, to its end."""
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                self.held += not self._whole.is_set()
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
        await self._whole.wait()
        writer.close()


async def _there(reader: asyncio.StreamReader) -> bytes | None:
    """What has come already; empty where that is the end, None where nothing has."""
    try:
        return await asyncio.wait_for(reader.read(1 << 16), 0.05)
    except TimeoutError:
        return None
