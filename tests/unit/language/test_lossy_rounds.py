"""Rounding on the wire, over rounds: what arrives is what was trained, less what is still owed."""

import numpy as np
import pytest

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.batches import TokenRows

KEY = "4/self_attn.q_proj/A"


def test_two_rounds_at_int8_lose_the_last_residual_alone(make_server, make_client, make_rows) -> None:
    """Of two rounds the server's sum is the trained changes' less what the site still holds, read from its disk."""
    from safetensors.numpy import load_file

    server = make_server(wire="int8", learning_rate=1e-2)
    wanted = {key: np.zeros(value.shape) for key, value in server.adapter_arrays().items()}
    arrived = {key: np.zeros(value.shape) for key, value in wanted.items()}
    known = None
    for server_round in (1, 2):
        client = make_client(server, "site")  # a new process for every message
        sent = server.broadcast(emulator=server_round == 1)
        client.receive(sent.arrays, sent.emulator_digest, kept=server_round - 1, adapter_digest=sent.adapter_digest)
        start = client.adapter.arrays()
        update = client.train(make_rows(server_round, 4), seed=server_round, server_round=server_round)
        got = server.receive(update.arrays, sent.adapter_digest)
        for key, trained in client.adapter.arrays().items():
            wanted[key] += trained.astype(np.float64) - start[key]
            arrived[key] += got[key].astype(np.float64) - start[key]
        owed = load_file(client.folder / f"residual-{server_round}.safetensors")
        for key, value in wanted.items():
            np.testing.assert_allclose(arrived[key], value - owed[key], atol=1e-6)
        assert known is None or not np.allclose(known, owed[KEY], atol=1e-9)
        known = owed[KEY]
    assert max(np.abs(value).max() for value in owed.values()) > 1e-5  # else nothing was tested


@pytest.mark.parametrize("wire", ["fp16", "int8"])
def test_what_sites_send_is_a_change_to_the_server_s_own_values(make_server, wire, shake) -> None:
    """Sites move the rounded copy that they got; the mean move is made from the exact values, not from the copy."""
    server = make_server(wire=wire)
    shake(server.adapter, 3)
    server.set_adapter(server.adapter.arrays())
    exact = server.adapter_arrays()
    digest = server.broadcast(emulator=False).adapter_digest
    silent = {f"adapter/{key}": np.zeros(value.shape, wire_dtype(wire)) for key, value in exact.items()}
    if wire == "int8":
        silent |= {f"adapter/{k}.scale": np.zeros(3, np.float32) for k in exact}
    for _ in range(2):  # nobody moves: nothing may, though the copy differs from the values
        server.aggregate([(server.receive(silent, digest), digest, 1.0), (server.receive(silent, digest), digest, 2.0)])
    for key, value in server.adapter_arrays().items():
        np.testing.assert_allclose(value, exact[key], rtol=0, atol=1e-7)


def wire_dtype(wire: str) -> type:
    return {"fp16": np.float16, "int8": np.int8}[wire]


@pytest.mark.parametrize("wire", ["fp16", "int8"])
def test_where_nothing_is_averaged_the_server_s_copy_is_one_rounding_away(
    make_server, make_client, make_rows, wire
) -> None:
    """A site's whole change is sent each round, so what the last round lost is in it already."""
    server = make_server(wire=wire, method="local", learning_rate=1e-2)
    client = make_client(server, "site")
    for server_round in (1, 2, 3):
        sent = server.broadcast(emulator=True)
        client.receive(sent.arrays, sent.emulator_digest, kept=server_round - 1, adapter_digest=sent.adapter_digest)
        update = client.train(make_rows(server_round, 4), seed=server_round, server_round=server_round)
        got = server.receive(update.arrays, sent.adapter_digest)
        start = decoded(sent.arrays, wire)
        for key, own in client.adapter.arrays().items():
            change = np.abs(own - start[key])
            steps = change.max(axis=1 if key.endswith("/A") else 0, keepdims=True) / 254  # half of 1/127 of the largest
            bound = steps if wire == "int8" else change * 2.0**-11 + 2.0**-25
            assert (np.abs(got[key] - own) <= bound + 1e-6 * np.abs(own)).all()
    assert not list(client.folder.glob("residual*"))


def decoded(arrays: dict[str, np.ndarray], wire: str) -> dict[str, np.ndarray]:
    """By hand: int8 times its scale, one for each of the r rows of A or columns of B."""
    out = {}
    for key, value in arrays.items():
        if not key.startswith("adapter/") or key.endswith(".scale"):
            continue
        values = value.astype(np.float32)
        if wire == "int8":
            scale = arrays[f"{key}.scale"]
            values = values * (scale[:, None] if key.endswith("/A") else scale[None, :])
        out[key.removeprefix("adapter/")] = values
    return out


@pytest.mark.parametrize("wire", ["fp32", "fp16", "int8"])
def test_an_adapter_that_is_not_the_one_announced(make_server, make_client, shake, wire) -> None:
    server = make_server(wire=wire)
    shake(server.adapter, 1)
    server.set_adapter(server.adapter.arrays())
    client = make_client(server)
    sent = server.broadcast(emulator=True)
    key = f"adapter/{KEY}"
    other = sent.arrays[key].copy()
    other[0, 0] += 1
    with pytest.raises(LanguageError, match=r"adapter that was sent is not the one announced: expected \w{16}, got"):
        client.receive({**sent.arrays, key: other}, sent.emulator_digest, adapter_digest=sent.adapter_digest)
    with pytest.raises(LanguageError, match="no adapter was received"):
        client.train(TokenRows.of([[1, 2]]), seed=0)
    client.receive(sent.arrays, sent.emulator_digest, adapter_digest=sent.adapter_digest)
