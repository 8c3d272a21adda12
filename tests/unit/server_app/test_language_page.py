"""The language model on the page and in the terminal, from a made-up run folder: what is poor is shown, too."""

import json
import re
from html import unescape

import pytest

from server_app.lines import language_lines, result_lines, round_notes
from server_app.report import write_report

EVIL = "<script>alert(1)</script>\x1b[2J"


def scores(accuracy, loss, rows=143):
    return {"loss": loss, "accuracy": accuracy, "balanced_accuracy": accuracy, "rows": rows}


def route(accuracy, loss):
    return {"plain": scores(accuracy, loss), "calibrated": scores(accuracy + 0.01, loss - 0.1)}


TEST = {
    "zero-shot": route(0.6, 1.0),
    "compressed-zero-shot": route(0.55, 1.1),
    "adap-emu": route(0.7, 0.5),
    "adap-fu": route(0.59, 0.9),
}


def part(number):
    answer = {
        "site": "site-0000", "num_examples": 10, "steps": 8, "received_loss": 1.0 / number, "received_accuracy": 0.5,
        "trained_loss": 0.5 / number, "trained_accuracy": 0.6, "train_loss_first": 1.0, "train_loss_last": 0.5,
        "computed": 10, "fill_seconds": 3.0, "step_seconds": 2.0, "seconds": 6.0, "peak_bytes": 10**9,
        "peak_exact": True, "frozen_dtype": "float32", "bytes_up": 1000,
    }  # fmt: skip
    return {
        "sites": ["site-0000", "site-0001"], "answers": [answer], "rejected": {"site-0001": f"bad {EVIL}"},
        "dropped": ["site-0002"], "aggregated": True, "validation": scores(0.5, 1.0, 40), "full_validation": None,
        "adapter_digest": "a", "emulator_digest": "b", "align_seconds": None, "align_loss": None, "bytes_up": 1000,
        "bytes_down": 2000,
    }  # fmt: skip


@pytest.fixture
def language_run(run_folder, tmp_path):
    def make(test=TEST, **changes):
        folder = run_folder(tmp_path / "run", rounds=2)
        about = json.loads((folder / "config.json").read_text())
        about["language"] = {
            "model": "smollm2-135m", "base_digest": "d" * 64, "method": "fedbiot", "layers": 30,
            "held_layers": list(range(25)), "tuned_layers": [26, 27, 28, 29], "sha256": "e" * 64,
            "model_bytes": 471 * 10**6, "adapter_parameters": 325632, "rounds": [1, 2], "sites": ["site-0000"],
            "left_out": {"site-0001": f"no room: {EVIL}"}, "words": ["benign", "malignant"], "columns": ["radius"],
            "template": "{row}\nClass:", "public": {"source": "embedded", "rows": 256, "sha256": "f" * 64},
            "align_losses": [0.4, 0.1],
        }  # fmt: skip
        summary = json.loads((folder / "summary.json").read_text())
        summary["language"] = {
            "model": "smollm2-135m", "method": "fedbiot", "rounds": 2, "sites": 1,
            "left_out": {"site-0001": f"no room: {EVIL}"}, "test": test, "bytes_up": 2000, "bytes_down": 4000,
            "client_peak_bytes": 10**9, "seconds": {"align": 3.0}, **changes,
        }  # fmt: skip
        lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        lines = [{**line, "language": part(line["round"])} for line in lines]
        (folder / "config.json").write_text(json.dumps(about))
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder, summary, lines

    return make


def text_of(folder):
    page = write_report(folder).read_text()
    start = page.index('id="language"')
    section = page[start : page.index("</section>", start)]
    assert "<script>" not in section
    return unescape(re.sub(r"<[^>]+>", " ", section))


def test_the_section_shows_every_route_beside_the_quantum_model(language_run):
    folder, _, _ = language_run()
    text = text_of(folder)
    for words in ("Zero-shot", "Compressed zero-shot", "AdapEmu", "AdapFu", "Quantum neural network"):
        assert words in text
    for number in ("0.600", "0.610", "0.550", "0.700", "0.590", "0.965"):
        assert number in text
    assert "A demonstration: 16 steps of 16 rows" in text
    assert "cannot be told apart from the model that was not tuned" in text  # .59 against .61 on 143 rows
    assert "no room: " in text
    assert "came late and was dropped" in text
    assert "25 of the 30 layers of smollm2-135m (471 MB" in text


def test_a_gain_and_a_loss_are_named_as_such(language_run):
    folder, _, _ = language_run({**TEST, "adap-fu": route(0.9, 0.3)})
    assert "is more accurate than the model that was not tuned (+0.294" in text_of(folder)
    folder, _, _ = language_run({**TEST, "adap-fu": route(0.3, 2.0)})
    assert "is less accurate than" in text_of(folder)


def test_federated_test_rows_have_no_score_on_the_full_model(language_run):
    folder, summary, _ = language_run(
        {kind: {"plain": TEST[kind]["plain"], "calibrated": None} for kind in ("compressed-zero-shot", "adap-emu")}
    )
    text = text_of(folder)
    assert "AdapFu has no score" in text
    assert "on the compressed model is more accurate" in text
    lines = language_lines(summary["language"])
    assert not any(line.startswith("adapter, full model") for line in lines)
    assert not any("*" in line for line in lines)
    assert len({line[:24] for line in lines[2:]}) == len(lines[2:])  # no route twice


def test_the_terminal_shows_the_adapter_with_and_without_the_prior(language_run):
    _, summary, _ = language_run()
    lines = [line.split("  ")[0] for line in language_lines(summary["language"])]
    assert [line for line in lines if line.startswith("adapter, ")] == [
        "adapter, compressed", "adapter, full model", "adapter, full model *",
    ]  # fmt: skip


def test_written_texts_have_losses_alone(language_run):
    written = {"loss": 4.0, "accuracy": None, "balanced_accuracy": None, "tokens": 900}
    test = {kind: {"plain": {**written, "loss": loss}, "calibrated": None} for kind, loss in
            zip(TEST, (5.0, 6.0, 4.5, 4.25), strict=True)}  # fmt: skip
    folder, summary, _ = language_run(test)
    assert "+0.750 nats a token, over 900 tokens" in text_of(folder)
    assert any("4.250" in line for line in language_lines(summary["language"]))


def test_a_run_without_a_model_and_one_without_scores(run_folder, language_run, tmp_path):
    assert "This run had no language model." in text_of(run_folder(tmp_path / "plain"))
    folder, summary, _ = language_run({})
    assert "Nothing was scored" in text_of(folder)
    assert language_lines(summary["language"]) == ["language model smollm2-135m: not scored"]
    assert language_lines({}) == []


def test_the_terminal_says_the_same(language_run):
    _, summary, lines = language_run()
    text = "\n".join(result_lines(summary))
    assert "zero-shot *                  0.610" in text
    assert "adapter, full model          0.590" in text
    assert "2 rounds at 1 sites" in text
    assert "\x1b" not in text
    notes = round_notes(lines[0])
    assert any(note.startswith("language part of site-0001: bad") for note in notes)
    assert "language part of site-0002: came late, dropped" in notes
    assert not any("\x1b" in note for note in notes)
