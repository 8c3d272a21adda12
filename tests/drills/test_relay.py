"""The relay of the drills: what passes, what waits, what is never seen."""

import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from relay import Relay


@contextmanager
def echo():
    """A server that answers each piece in capitals; its port, and what it was sent."""
    heard = []

    def serve(connection):
        with connection, suppress(ConnectionError):
            while data := connection.recv(100):
                heard.append(data)
                connection.sendall(data.upper())

    def accept(listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1], heard


@pytest.fixture
def line():
    with echo() as (port, heard), Relay(port) as relay:
        yield relay, heard


def connect(relay):
    return socket.create_connection(("127.0.0.1", relay.port), timeout=5)


@contextmanager
def standing(relay):
    """A connection over which a piece has gone and come back."""
    with connect(relay) as peer:
        peer.sendall(b"one")
        assert peer.recv(10) == b"ONE"
        yield peer


def test_what_was_on_its_way_waits_for_the_cable_and_then_arrives(line):
    relay, heard = line
    with standing(relay) as peer:
        relay.cut()
        peer.sendall(b"two")
        peer.settimeout(0.3)
        with pytest.raises(TimeoutError):
            peer.recv(10)
        assert heard == [b"one"]
        relay.mend()
        peer.settimeout(5)
        assert peer.recv(10) == b"TWO"


def test_a_connection_that_was_begun_during_the_cut_stands_afterwards_or_was_never_seen(line):
    relay, heard = line
    relay.cut()
    with connect(relay) as stays:
        stays.sendall(b"stays")
        with connect(relay) as leaves:
            leaves.sendall(b"leaves")
        time.sleep(0.3)  # the relay has seen both
        relay.mend()
        assert stays.recv(10) == b"STAYS"
    assert heard == [b"stays"]


def test_what_was_sent_over_a_standing_connection_arrives_though_its_sender_has_left(line):
    relay, heard = line
    with standing(relay) as peer:
        relay.cut()
        peer.sendall(b"last")
    relay.mend()
    for _ in range(50):
        if b"last" in heard:
            return
        time.sleep(0.1)
    pytest.fail(f"heard {heard}")
