import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from llm_qfl import baselines
from llm_qfl.baselines import Baseline, make_baselines
from llm_qfl.federation.config import BaselinesConfig
from llm_qfl.federation.types import Rows


def blobs(n=90, d=3, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return Rows(rng.normal(size=(classes, d))[y] + rng.normal(size=(n, d)), y)


def fit(baseline, rows, arrays=None, **more):
    rng = np.random.default_rng(1)
    settings = {"steps": 300, "learning_rate": 0.1, "l2": 0.0, "batch_size": 0, "rng": rng, **more}
    return baseline.train(arrays or baseline.initial(np.random.default_rng(0)), rows, **settings)


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_regression_reaches_scikit_learns_optimum(classes):
    rows = blobs(classes=classes)
    logistic = make_baselines(3, classes, 50, BaselinesConfig())["logistic"]
    arrays = fit(logistic, rows, steps=1500, learning_rate=0.03)
    reference = LogisticRegression(C=1e8, tol=1e-10, max_iter=2000).fit(rows.x, rows.y)
    np.testing.assert_allclose(
        np.exp(logistic.log_probabilities(arrays, rows.x)), reference.predict_proba(rows.x), atol=1e-5
    )


def test_l2_reaches_scikit_learns_optimum():
    rows = blobs()
    rows = Rows(rows.x - rows.x.mean(axis=0), rows.y)
    logistic = Baseline("logistic", 3, 0, 3)
    l2 = 0.02
    arrays = fit(logistic, rows, steps=1500, learning_rate=0.03, l2=l2)
    # ours weighs the biases, too: give scikit-learn a column of ones in place of its own
    ones = np.column_stack([rows.x, np.ones(len(rows))])
    reference = LogisticRegression(C=1 / (2 * l2 * len(rows)), fit_intercept=False, tol=1e-10, max_iter=2000)
    reference.fit(ones, rows.y)
    found = np.exp(logistic.log_probabilities(arrays, rows.x))
    np.testing.assert_allclose(found, reference.predict_proba(ones), atol=1e-5)


@pytest.mark.parametrize(("name", "hidden"), [("logistic", 0), ("mlp", 4)])
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_gradients_are_differences(name, hidden, l2):
    baseline, rows = Baseline(name, 3, hidden, 3), blobs(20)
    rng = np.random.default_rng(3)
    arrays = {key: rng.normal(size=a.shape) for key, a in baseline.initial(rng).items()}
    loss, gradient = baseline.loss_and_gradient(arrays, rows.x, rows.y, l2)
    penalty = l2 * sum(float((a * a).sum()) for a in arrays.values())
    assert loss == pytest.approx(baseline.scores(arrays, rows).loss + penalty)
    assert set(gradient) == set(arrays)
    step = 1e-6
    for key, array in arrays.items():
        for index in np.ndindex(array.shape):
            move = np.zeros_like(array)
            move[index] = step
            up = baseline.loss_and_gradient({**arrays, key: array + move}, rows.x, rows.y, l2)[0]
            down = baseline.loss_and_gradient({**arrays, key: array - move}, rows.x, rows.y, l2)[0]
            assert gradient[key][index] == pytest.approx((up - down) / (2 * step), abs=1e-7)
        assert np.abs(gradient[key]).max() > 1e-3


def test_the_network_learns_what_no_line_separates():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (200, 2))
    rows = Rows(x, (x[:, 0] * x[:, 1] > 0).astype(np.intp))
    accuracy = {
        name: baseline.scores(fit(baseline, rows, steps=400), rows).accuracy
        for name, baseline in make_baselines(2, 2, 49, BaselinesConfig()).items()
    }
    assert accuracy["logistic"] < 0.7 < 0.93 < accuracy["mlp"]


@pytest.mark.parametrize(("features", "classes", "parameters"), [(4, 2, 58), (4, 3, 63), (8, 2, 180), (4, 2, 16)])
def test_the_network_has_about_as_many_parameters(features, classes, parameters):
    made = make_baselines(features, classes, parameters, BaselinesConfig())
    assert list(made) == ["logistic", "mlp"]
    assert abs(made["mlp"].num_parameters - parameters) <= (features + 1 + classes) / 2
    assert make_baselines(features, classes, parameters, BaselinesConfig(hidden=7))["mlp"].hidden == 7
    for name, baseline in made.items():
        arrays = baseline.initial(np.random.default_rng(0))
        assert baseline.name == name
        assert baseline.num_parameters == sum(a.size for a in arrays.values())
        assert all(a.dtype == np.float64 for a in arrays.values())


def test_training_starts_where_it_is_told_and_leaves_it_alone():
    rows, mlp = blobs(), Baseline("mlp", 3, 5, 3)
    start = mlp.initial(np.random.default_rng(0))
    kept = {key: a.copy() for key, a in start.items()}
    trained = fit(mlp, rows, start, steps=1, learning_rate=0.01)
    for key in start:
        np.testing.assert_array_equal(start[key], kept[key])
        assert 0 < np.abs(trained[key] - start[key]).max() < 0.01  # Adam's first step, epsilon shortens it
    unmoved = fit(mlp, rows, start, steps=3, learning_rate=1e3)
    for key in start:
        np.testing.assert_array_equal(unmoved[key], kept[key])  # nothing better was seen


def test_adam_is_pytorchs(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(baselines, "_EPSILON", 1e-8)  # PyTorch adds it elsewhere, so compare where it does not count
    rows, logistic = blobs(), Baseline("logistic", 3, 0, 3)
    ours = fit(logistic, rows, steps=20, learning_rate=0.05)
    w, b = torch.zeros((3, 3), dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    leaves = [w.requires_grad_(), b.requires_grad_()]
    optimizer = torch.optim.Adam(leaves, lr=0.05, betas=(0.9, 0.99), eps=1e-8)
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(torch.tensor(rows.x) @ w + b, torch.tensor(rows.y)).backward()
        optimizer.step()
    np.testing.assert_allclose(ours["w"], w.detach().numpy(), atol=1e-6)  # where epsilon is added differs
    np.testing.assert_allclose(ours["b"], b.detach().numpy(), atol=1e-6)


def test_minibatches_are_seeded_and_return_the_last_point():
    rows, mlp = blobs(), Baseline("mlp", 3, 5, 3)
    runs = [fit(mlp, rows, steps=30, batch_size=8, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0]["w0"], runs[1]["w0"])
    assert np.abs(runs[0]["w0"] - runs[2]["w0"]).max() > 1e-3
    assert mlp.scores(runs[0], rows).loss < mlp.scores(mlp.initial(np.random.default_rng(0)), rows).loss
    whole = fit(mlp, rows, steps=30, batch_size=500)
    np.testing.assert_array_equal(whole["w0"], fit(mlp, rows, steps=30)["w0"])


def test_scores_add_up_and_no_rows_score_nothing():
    rows, mlp = blobs(), Baseline("mlp", 3, 5, 3)
    arrays = fit(mlp, rows, steps=20)
    parts = [mlp.scores(arrays, Rows(rows.x[i], rows.y[i])) for i in (slice(40), slice(40, 90))]
    whole = mlp.scores(arrays, rows)
    assert (parts[0] + parts[1]).loss == pytest.approx(whole.loss)
    assert (parts[0] + parts[1]).accuracy == whole.accuracy
    none = mlp.scores(arrays, Rows(rows.x[:0], rows.y[:0]))
    assert (none.loss, none.accuracy, none.rows.tolist()) == (None, None, [0, 0, 0])


def test_a_site_of_one_class_trains():
    rows, logistic = blobs(), Baseline("logistic", 3, 0, 3)
    alone = Rows(rows.x, np.ones(len(rows), np.intp))
    arrays = fit(logistic, alone, steps=50)
    assert logistic.scores(arrays, alone).accuracy == 1.0
    assert all(np.isfinite(a).all() for a in arrays.values())


def test_importing_loads_no_quantum_library_and_no_torch():
    code = (
        "import sys, llm_qfl.baselines; assert 'qiskit' not in sys.modules;"
        "import llm_qfl.quantum.folder, llm_qfl.quantum.training;"
        "heavy = ('torch', 'qiskit_machine_learning', 'scipy.optimize', 'sklearn');"
        "print([name for name in heavy if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout.strip() == "[]"
