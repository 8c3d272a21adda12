import numpy as np
import pytest
import torch

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.batches import TokenRows
from llm_qfl.language.training import StepBudget
from llm_qfl.language.transfer import transfer


def kl(server, rows, tokens) -> float:
    positions = rows.prompt - 1
    p, q = (
        torch.from_numpy(server.logits_at(kind, rows, positions, tokens)).log_softmax(-1)
        for kind in ("adap-emu", "adap-fu")
    )
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("tokens", [[65, 66, 67], None])
def test_the_full_model_comes_to_answer_as_the_compressed_one_did(make_server, make_rows, shake, tokens) -> None:
    server = make_server(calibrate_steps=40, calibrate_rate=1e-2, align_batch=8)
    shake(server.adapter, 1)
    server.set_adapter(server.adapter.arrays())
    rows = make_rows(0, 16)
    others = {k: v.clone() for k, v in server.stack.model.state_dict().items() if ".adapter." not in k}
    report = server.calibrate(rows, 9, tokens)
    assert report is not None
    if tokens:
        assert report.losses[0] > 0
    assert np.mean(report.losses[-5:]) < 0.4 * np.mean(report.losses[:2])
    after = server.stack.model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in others.items())
    assert all(np.array_equal(server.adapter_arrays()[k], v) for k, v in server.adapter.arrays().items())


def test_the_loss_is_the_divergence_and_labels_do_not_matter(make_server, make_rows, shake) -> None:
    server = make_server()
    shake(server.adapter, 1)
    rows, tokens = make_rows(0, 8), [65, 66, 70]
    expected = kl(server, rows, tokens)
    start = server.adapter.arrays()
    results = []
    for answer in (1, 2):
        said = TokenRows.of([[*ids[:3], answer] for ids in rows.ids], [3] * 8)
        server.adapter.load(start)
        full, compressed = server.route("adap-fu"), server.route("adap-emu")
        budget = StepBudget(1, 8, 1e-2)
        results.append(transfer(full, compressed, server.adapter, said, budget, seed=0, tokens=tokens))
    assert results[0].losses == results[1].losses
    assert results[0].losses[0] == pytest.approx(expected, rel=1e-4)


def test_nothing_to_do(make_server, make_rows) -> None:
    assert make_server().calibrate(make_rows(0, 3), 1) is None
    assert make_server(method="fedlora-tail", calibrate_steps=3).calibrate(make_rows(0, 3), 1) is None
    with pytest.raises(LanguageError, match="expected public prompts"):
        make_server(calibrate_steps=3).calibrate(TokenRows.of([]), 1)
