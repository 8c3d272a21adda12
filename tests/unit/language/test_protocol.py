import numpy as np
import pytest
import torch

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.batches import TokenRows, collate
from llm_qfl.language.client import ClientLanguage, share
from llm_qfl.language.compress import load_compressed
from llm_qfl.language.exchange import KEPT
from llm_qfl.language.route import score


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_one_client_is_the_same_steps_done_centrally(make_server, make_client, make_rows) -> None:
    """Two rounds of one site equal the steps on the server's own compressed route, bit for bit."""
    from llm_qfl.language.training import StepBudget, train_adapter

    rows = make_rows(0, 9)
    server, central = make_server(), make_server()
    client = make_client(server)
    for server_round in range(2):
        sent = server.broadcast(emulator=server_round == 0)
        client.receive(sent.arrays, sent.emulator_digest)
        update = client.train(rows, seed=server_round, offset=3 * server_round, total=6)
        server.aggregate([(server.receive(update.arrays, sent.adapter_digest), sent.adapter_digest, 5.0)])
        budget = StepBudget(3, 4, 2e-3, 3 * server_round, 6)
        route = central.route("adap-emu")
        train_adapter(route, central.adapter, rows, budget, 0.01, seed=server_round, cache=route.cache(rows))
    assert same(server.adapter.arrays(), central.adapter.arrays())
    assert server.adapter.digest() != make_server().adapter.digest()


def test_two_clients_are_two_objects_with_two_results(make_server, make_rows, tmp_path) -> None:
    server = make_server()
    exported = server.export(tmp_path)
    model = load_compressed(exported.folder, exported.sha256)
    clients = [ClientLanguage(m, server.config) for m in (share(model), model)]
    mine, theirs = (c.adapter.parameters for c in clients)
    assert all(mine[k] is not theirs[k] and mine[k].data_ptr() != theirs[k].data_ptr() for k in mine)
    frozen = [c.stack.layers[0].self_attn.q_proj.base_layer.weight for c in clients]
    assert frozen[0].data_ptr() == frozen[1].data_ptr()  # what is frozen is shared
    sent = server.broadcast(emulator=True)
    updates = []
    for seed, client in enumerate(clients):
        client.receive(sent.arrays, sent.emulator_digest)
        updates.append(client.train(make_rows(seed, 6), seed=seed))
    one, two = (server.receive(u.arrays, sent.adapter_digest) for u in updates)
    assert not same(one, two)
    server.aggregate([(one, sent.adapter_digest, 1.0), (two, sent.adapter_digest, 3.0)])
    for key, value in server.adapter.arrays().items():
        np.testing.assert_allclose(value, 0.25 * one[key] + 0.75 * two[key], rtol=1e-6, atol=1e-7)


def test_emulator_changes_what_a_client_computes(make_server, make_client, make_rows) -> None:
    server = make_server(align_rate=1e-2)
    client = make_client(server)
    rows = make_rows(0, 5)
    sent = server.broadcast(emulator=True)
    client.receive(sent.arrays, sent.emulator_digest)
    before, trained_before = client.score(rows), client.train(rows, seed=0)
    server.align(make_rows(1, 8), 0, steps=6)
    again = server.broadcast(emulator=True)
    assert again.emulator_digest != sent.emulator_digest
    client.receive(again.arrays, again.emulator_digest)
    trained_after = client.train(rows, seed=0)
    client.receive(again.arrays, again.emulator_digest)
    after = client.score(rows)
    assert not np.allclose(np.concatenate(before), np.concatenate(after))
    assert not same(trained_before.arrays, trained_after.arrays)
    assert trained_after.report.computed == 5  # the boundary states of the old emulator are worth nothing


def test_states_are_computed_once_an_emulator(make_server, make_client, make_rows) -> None:
    server = make_server()
    client = make_client(server)
    rows = make_rows(0, 5)
    sent = server.broadcast(emulator=True)
    client.receive(sent.arrays, sent.emulator_digest)
    assert client.train(rows, seed=0).report.computed == 5
    assert client.train(rows, seed=1).report.computed == 0


def test_states_and_emulator_outlive_the_process(make_server, make_client, make_rows) -> None:
    server = make_server()
    server.align(make_rows(1, 8), 0, steps=2)
    rows = make_rows(0, 5)
    first = make_client(server, "site")
    sent = server.broadcast(emulator=True)
    assert not first.holds(sent.emulator_digest)
    first.receive(sent.arrays, sent.emulator_digest)
    one = first.train(rows, seed=0)
    second = make_client(server, "site")  # a node's next message comes to a new process
    assert second.holds(sent.emulator_digest)
    second.receive(server.broadcast(emulator=False).arrays, sent.emulator_digest)
    two = second.train(rows, seed=0)
    assert two.report.computed == 0
    assert same(one.arrays, two.arrays)
    assert (first.folder.stat().st_mode & 0o077) == 0  # states are as private as rows
    for path in first.folder.rglob("boundary-*.bin"):
        assert (path.stat().st_mode & 0o077) == 0
    server.align(make_rows(1, 8), 1, steps=2)
    fresh = server.broadcast(emulator=True)
    second.receive(fresh.arrays, fresh.emulator_digest)
    second.train(rows, seed=0)
    assert len(list(second.folder.glob("emulator-*/boundary-*.bin"))) == 1  # the old emulator's are gone


def test_emulator_that_is_not_held(make_server, make_client) -> None:
    server = make_server()
    client = make_client(server)
    sent = server.broadcast(emulator=False)
    assert not any(key.startswith("emulator/") for key in sent.arrays)
    with pytest.raises(LanguageError, match="does not hold emulator"):
        client.receive(sent.arrays, sent.emulator_digest)
    with pytest.raises(LanguageError, match="no adapter was received"):
        client.train(TokenRows.of([[1, 2]]), seed=0)


def test_emulator_that_is_not_the_one_announced(make_server, make_client) -> None:
    server = make_server()
    client = make_client(server)
    sent = server.broadcast(emulator=True)
    key = next(k for k in sent.arrays if k.startswith("emulator/"))
    with pytest.raises(LanguageError, match="not the one announced"):
        client.receive({**sent.arrays, key: sent.arrays[key] + 1}, sent.emulator_digest)


@pytest.mark.parametrize("wire", ["fp32", "fp16", "int8"])
def test_the_first_emulator_beside_a_later_one(make_server, make_client, make_rows, wire) -> None:
    server = make_server(wire=wire)
    server.align(make_rows(1, 8), 0, steps=2)
    before = make_client(server)
    sent = server.broadcast(emulator=True)
    before.receive(sent.arrays, sent.emulator_digest, sent.first_digest)
    server.align(make_rows(1, 8), 1, steps=2)
    sent, first = server.broadcast(emulator=True), server.first_arrays()
    assert sent.emulator_digest != sent.first_digest
    new = make_client(server)
    key = next(iter(first))
    with pytest.raises(LanguageError, match="not the one announced"):
        new.receive({**sent.arrays, **first, key: first[key] * 2 + 1}, sent.emulator_digest, sent.first_digest)
    new.receive({**sent.arrays, **first}, sent.emulator_digest, sent.first_digest)
    rows = make_rows(0, 4)
    with before.distributed(sent.first_digest) as route:
        expected = score(route, rows)
    with new.distributed(sent.first_digest) as route:
        found = score(route, rows)
    later = score(new.route(adapter=False), rows)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(found, later, strict=True))


@pytest.mark.parametrize("wire", ["fp16", "int8"])
def test_lossy_wire(make_server, make_client, make_rows, wire) -> None:
    """Both sides hold the same emulator; bytes shrink; the adapter still arrives."""
    server, exact = make_server(wire=wire), make_server()
    for each in (server, exact):
        each.align(make_rows(1, 8), 0, steps=4)
    client = make_client(server, "site")
    sent, plain = server.broadcast(emulator=True), exact.broadcast(emulator=True)
    assert sent.size < {"fp16": 0.51, "int8": 0.31}[wire] * plain.size
    client.receive(sent.arrays, sent.emulator_digest)
    rows = make_rows(0, 6)
    assert same(client.emulator.arrays(), server.emulator.arrays())
    update = client.train(rows, seed=0)
    assert update.size < {"fp16": 0.51, "int8": 0.31}[wire] * 4 * sum(v.size for v in exact.adapter.arrays().values())
    got = server.receive(update.arrays, sent.adapter_digest)
    for key, value in client.adapter.arrays().items():
        np.testing.assert_allclose(got[key], value, atol=2e-4)
    before = server.adapter_arrays()["4/self_attn.q_proj/A"].copy()
    server.aggregate([(got, sent.adapter_digest, 1.0)])
    assert not np.array_equal(before, server.adapter_arrays()["4/self_attn.q_proj/A"])
    again = make_client(server, "site")
    assert again.holds(sent.emulator_digest)
    assert (again.folder / "residual-1.safetensors").is_file()


def test_late_answers(make_server, make_client, make_rows) -> None:
    """An answer to an older broadcast moves the adapter by its change; one too old is refused."""
    server = make_server()
    client = make_client(server)
    old = server.broadcast(emulator=True)
    client.receive(old.arrays, old.emulator_digest)
    update = client.train(make_rows(0, 6), seed=0)
    start = server.adapter.arrays()
    moved = {key: value + np.float32(1) for key, value in start.items()}
    server.set_adapter(moved)
    server.broadcast(emulator=False)
    late = server.receive(update.arrays, old.adapter_digest)
    server.aggregate([(late, old.adapter_digest, 1.0)])
    for key, value in server.adapter.arrays().items():
        np.testing.assert_allclose(value, moved[key] + late[key] - start[key], rtol=1e-5, atol=1e-6)
    for number in range(KEPT):
        server.set_adapter({key: value + np.float32(number) for key, value in moved.items()})
        server.broadcast(emulator=False)
    with pytest.raises(LanguageError, match="none of the last 8 that were sent"):
        server.receive(update.arrays, old.adapter_digest)
    with pytest.raises(LanguageError, match="positive weight, got 0"):
        server.aggregate([])


def test_adapter_of_another_plan(make_server, make_client) -> None:
    server, other = make_server(), make_server(adapter_layers=3)
    sent, foreign = server.broadcast(emulator=True), other.broadcast(emulator=True)
    with pytest.raises(LanguageError, match=r"expected 28 matrices, got 42: missing \[\], unknown \['3/"):
        make_client(server).receive(foreign.arrays, sent.emulator_digest)
    with pytest.raises(LanguageError, match="missing"):
        other.receive(sent.arrays, foreign.adapter_digest)
    shallow = {
        k.replace("adapter/5/", "adapter/4/").replace("adapter/4/", "adapter/3/"): v for k, v in sent.arrays.items()
    }
    with pytest.raises(LanguageError, match="another plan"):
        server.receive(shallow, sent.adapter_digest)


def test_layers_have_the_full_model_s_numbers_on_the_wire(make_server, make_client) -> None:
    server = make_server()
    client = make_client(server)
    assert server.plan.held == (0, 3, 4, 5)
    assert {key.split("/")[1] for key in server.broadcast(emulator=True).arrays} == {"0", "3", "4", "5"}
    assert client.adapter.layers == {4: 2, 5: 3}
    assert client.emulator.layers == {0: 0, 3: 1}


@pytest.mark.parametrize("method", ["fedbiot", "fedot", "offsite", "fedlora-all", "fedlora-tail", "local"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_method_and_family_goes_round(make_server, make_client, make_rows, method, kind) -> None:
    server = make_server(method=method, model=f"tiny-{kind}-6")
    client = make_client(server)
    rows = make_rows(0, 5)
    server.align(make_rows(1, 5), 0, steps=1)
    sent = server.broadcast(emulator=True)
    client.receive(sent.arrays, sent.emulator_digest)
    for a, b in zip(server.score("adap-emu", rows), client.score(rows), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    update = client.train(rows, seed=0)
    server.aggregate([(server.receive(update.arrays, sent.adapter_digest), sent.adapter_digest, 1.0)])
    assert server.adapter.digest() == client.adapter.digest()


def test_local_goes_on_with_its_own(make_server, make_client, make_rows) -> None:
    server = make_server(method="local")
    rows = make_rows(0, 5)
    sent = server.broadcast(emulator=True)
    first = make_client(server, "site")
    first.receive(sent.arrays, sent.emulator_digest)
    first.train(rows, seed=0)
    second = make_client(server, "site")
    second.receive(server.broadcast(emulator=False).arrays, sent.emulator_digest)
    assert same(first.adapter.arrays(), second.adapter.arrays())
    plain = server.score("adap-fu", rows)
    with server.using(first.adapter.arrays()):
        assert not np.allclose(plain[0], server.score("adap-fu", rows)[0])
    assert np.array_equal(plain[0], server.score("adap-fu", rows)[0])


def test_checkpoint(make_server, make_rows, shake) -> None:
    server, other = make_server(), make_server(seed=8)
    server.align(make_rows(1, 8), 0, steps=2)
    server.set_adapter({k: v + np.float32(0.1) for k, v in server.adapter.arrays().items()})
    other.load_state(server.state())
    assert same(server.state(), other.state())
    assert server.broadcast(emulator=True).emulator_digest == other.broadcast(emulator=True).emulator_digest


def test_server_keeps_states_and_drops_them_when_they_are_old(make_server, make_rows, shake, monkeypatch) -> None:
    server = make_server()
    rows = make_rows(0, 5)
    server.score("adap-fu", rows)
    server.score("adap-emu", rows)
    layers: list[int] = []
    original = type(server.stack).run

    def watched(stack, hidden, numbers):
        layers.extend(numbers)
        return original(stack, hidden, numbers)

    monkeypatch.setattr(type(server.stack), "run", watched)
    shake(server.adapter, 1)
    server.score("adap-fu", rows)
    server.score("adap-emu", rows)
    assert set(layers) == set(server.plan.adapter)
    shake(server.emulator, 1)
    server.score("adap-emu", rows)
    assert set(layers) == set(server.plan.held)


@pytest.mark.parametrize("folder", [None, "site"])
def test_the_model_as_first_distributed_stays_within_reach(make_server, make_client, make_rows, folder) -> None:
    """Features come from emulator version 0 for the whole run, whatever realignment and training do."""
    server = make_server(align_rate=1e-2)
    server.align(make_rows(1, 8), 0, steps=2)
    client = make_client(server, folder)
    ids = collate(make_rows(0, 3), range(3)).ids
    sent = server.broadcast(emulator=True)
    client.receive(sent.arrays, sent.emulator_digest, sent.first_digest)
    with server.distributed() as route:
        first = route.boundary(ids)
    for server_round in (1, 2):
        server.align(make_rows(1, 8), server_round, steps=2)
        sent = server.broadcast(emulator=True)
        client.receive(sent.arrays, sent.emulator_digest, sent.first_digest)
    client.train(make_rows(0, 6), seed=0)
    assert sent.first_digest != sent.emulator_digest
    now = client.emulator.arrays()
    with server.distributed() as ours, client.distributed(sent.first_digest) as theirs:
        assert torch.equal(ours.boundary(ids), first)
        torch.testing.assert_close(theirs.boundary(ids), first, rtol=1e-6, atol=1e-6)
        assert client.adapter not in theirs.active
    assert same(client.emulator.arrays(), now)
    assert not torch.allclose(server.route("compressed-zero-shot").boundary(ids), first)
    if folder:
        assert len(list(client.folder.glob("emulator-*.safetensors"))) == 2  # the first and the present one
    with pytest.raises(LanguageError, match="does not hold emulator 0000"), client.distributed("0" * 64):
        pass
    other = make_server(seed=9)
    other.load_state(server.state())
    assert other.broadcast(emulator=False).first_digest == sent.first_digest


def test_sharing_comes_first(make_server, make_client) -> None:
    client = make_client(make_server())
    with pytest.raises(LanguageError, match="a client was made of this model already"):
        share(client.model)


def test_a_damaged_file_of_the_site_is_named(make_server, make_client, make_rows) -> None:
    server = make_server(wire="int8")
    client = make_client(server, "site")
    sent = server.broadcast(emulator=True)
    client.receive(sent.arrays, sent.emulator_digest)
    client.train(make_rows(0, 4), seed=0)
    path = client.folder / "residual-1.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(LanguageError, match=r"residual-1\.safetensors cannot be read"):
        client.train(make_rows(0, 4), seed=0)


def test_rounds_with_realignment_reach_the_full_model(make_server, make_rows, tmp_path) -> None:
    """The whole algorithm, four rounds of two sites: the task is learned on the compressed model, and AdapFu has it."""
    server = make_server(steps=10, learning_rate=1e-2, align_rate=1e-2, realign_rate=1e-2, kl_weight=0.5)
    public = make_rows(1, 24)
    server.align(public, 0, steps=30)
    exported = server.export(tmp_path)
    model = load_compressed(exported.folder, exported.sha256)
    clients = [ClientLanguage(share(model), server.config), ClientLanguage(model, server.config)]
    tasks = [TokenRows.of([[*row[:5], 65 + k] for row in make_rows(k, 12).ids], [5] * 12) for k in range(2)]
    test = TokenRows.of([[*row[:5], 65 + k] for k in range(2) for row in make_rows(50 + k, 8).ids], [5] * 16)

    def mean(kind: str) -> float:
        return float(np.concatenate(server.score(kind, test)).mean())

    start = {kind: mean(kind) for kind in ("adap-emu", "adap-fu")}
    known = ""
    for server_round in range(1, 5):
        sent = server.broadcast(emulator=True)
        assert sent.emulator_digest != known
        known = sent.emulator_digest
        answers = []
        for number, (client, rows) in enumerate(zip(clients, tasks, strict=True)):
            client.receive(sent.arrays, sent.emulator_digest, sent.first_digest)
            update = client.train(rows, seed=10 * server_round + number)
            answers.append((server.receive(update.arrays, sent.adapter_digest), sent.adapter_digest, 1.0))
        server.aggregate(answers)
        server.align(public, server_round, steps=10)
    assert mean("adap-emu") < 0.6 * start["adap-emu"]
    assert mean("adap-fu") < 0.6 * start["adap-fu"]
