"""`llm-qfl predict`: the model folder and a CSV, nothing else; equal to the model called directly."""

import csv
import io
import shutil

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from typer.testing import CliRunner

from llm_qfl.cli.main import app
from llm_qfl.cli.predict import predict_rows
from llm_qfl.quantum.folder import load_model
from simulation.run import run_federation

BUNCH = load_breast_cancer()
NAMES = [str(name) for name in BUNCH.feature_names]


@pytest.fixture(scope="module")
def run_and_model(tmp_path_factory):
    """A run folder that holds the model alone."""
    output = tmp_path_factory.mktemp("runs")
    keys = {"server.rounds": 2, "training.steps": 2, "quantum.layers": 1, "language.model": "none"}
    folder = run_federation(keys, sites=2, output=output).folder
    alone = output / "alone"
    shutil.copytree(folder / "model", alone / "model")
    return alone


def write_csv(path, columns, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


@pytest.fixture
def data(tmp_path):
    """Twenty rows with columns in another order, an identifier and the labels."""
    rows = [[n, *map(repr, BUNCH.data[n, ::-1].tolist()), BUNCH.target_names[BUNCH.target[n]]] for n in range(20)]
    return write_csv(tmp_path / "data.csv", ["id", *NAMES[::-1], "label"], rows)


def run(*arguments):
    return CliRunner().invoke(app, ["predict", *(str(argument) for argument in arguments)])


def test_predictions_are_those_of_the_model(run_and_model, data):
    result = run(run_and_model, data)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(result.output)))
    model, theta, about = load_model(run_and_model / "model")
    names = about["class_names"]
    feature_map = about["feature_map"]
    mean, scale, matrix = (np.array(feature_map[key]) for key in ("mean", "scale", "matrix"))
    order = [NAMES.index(column) for column in about["columns"]]
    angles = np.clip((BUNCH.data[:20, order] - mean) / scale @ matrix, -feature_map["clip"], feature_map["clip"])
    expected = np.exp(model.log_probabilities(theta, angles))
    found = np.array([[float(row[f"probability_{name}"]) for name in names] for row in rows])
    np.testing.assert_allclose(found, expected, atol=1e-8)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-7)
    assert [row["prediction"] for row in rows] == [names[i] for i in expected.argmax(axis=1)]


def test_output_file(run_and_model, data, tmp_path):
    target = tmp_path / "out.csv"
    result = run(run_and_model, data, "--output", target)
    assert (result.exit_code, result.output.strip()) == (0, str(target))
    assert len(target.read_text().splitlines()) == 21
    nowhere = run(run_and_model, data, "--output", tmp_path / "no" / "out.csv")
    assert nowhere.exit_code == 2


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        (NAMES[:20], ["1"] * 20, "missing columns: worst radius"),
        (NAMES, ["1"] * 29, "data row 1 has 29 fields"),
        (NAMES, ["x", *["1"] * 29], "column 'mean radius' is not numeric"),
        (NAMES, ["", *["1"] * 29], "missing or not finite"),
        ([*NAMES, NAMES[0]], ["1"] * 31, "two columns of one name"),
    ],
)
def test_bad_data_is_one_clear_line(columns, row, message, run_and_model, tmp_path):
    result = run(run_and_model, write_csv(tmp_path / "bad.csv", columns, [row]))
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1


def test_no_rows_no_file_no_run(run_and_model, data, tmp_path):
    empty = run(run_and_model, write_csv(tmp_path / "empty.csv", NAMES, []))
    assert (empty.exit_code, "no rows" in empty.output) == (2, True)
    missing = run(run_and_model, tmp_path / "nope.csv")
    assert (missing.exit_code, "no such file" in missing.output) == (2, True)
    nothing = run(tmp_path, data)
    assert (nothing.exit_code, "expected the folder of a finished run" in nothing.output) == (2, True)


def test_sequences(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for label, weights in (("a", [0.4, 0.1, 0.1, 0.4]), ("b", [0.1, 0.4, 0.4, 0.1])):
        rows += [["".join(rng.choice(list("ACGT"), 60, p=weights)), label] for _ in range(40)]
    source = write_csv(tmp_path / "dna.csv", ["sequence", "label"], rows)
    keys = {"data.source": f"csv:{source}", "data.k": 2, "data.partitioner": "iid", "server.rounds": 3}
    keys |= {"language.model": "none"}
    folder = run_federation(keys, sites=2, output=tmp_path / "runs").folder
    probabilities, names = predict_rows(folder, source)
    right = [names[i] == row[1] for i, row in zip(probabilities.argmax(axis=1), rows, strict=True)]
    assert np.mean(right) > 0.9


def test_a_base_model_goes_with_language_alone(run_and_model, data):
    result = run(run_and_model, data, "--base", "tiny-6")
    assert result.exit_code == 2
    assert "--base names a language model" in result.output
