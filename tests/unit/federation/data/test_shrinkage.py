"""The chosen shrinkage against scikit-learn's ridge regression on the rows, and on rows that were held out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from llm_qfl.federation.data.features import fit_feature_map
from llm_qfl.federation.data.shrinkage import GRID, SHRINKAGE, choose_shrinkage, gcv
from llm_qfl.federation.data.sums import combine, local_sums


def draw(seed, rows, numbers, classes=3, apart=0.6):
    random = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), random.integers(classes, size=rows - classes)])
    centres = apart * random.normal(size=(classes, numbers)) * (np.arange(numbers) < 8)
    return (random.normal(size=(rows, numbers)) + centres[y]) @ random.normal(size=(numbers, numbers)), y


def moments(x, y):
    x = (x - x.mean(0)) / x.std(0)
    shares = np.bincount(y) / len(y)
    means = np.stack([x[y == c].mean(0) for c in range(len(shares))])
    within = (x - means[y]).T @ (x - means[y]) / len(x)
    return x, within, np.sqrt(shares)[:, None] * means


@given(st.integers(0, 10**6), st.integers(12, 40), st.integers(2, 30), st.floats(0.01, 0.99))
@settings(max_examples=25)
def test_it_is_generalised_cross_validation_of_ridge_regression_on_the_indicators(seed, rows, numbers, shrinkage):
    x, y = draw(seed, rows, numbers)
    x, within, between = moments(x, y)
    shares = np.bincount(y) / rows
    targets = (np.eye(3)[y] - shares) / np.sqrt(shares)
    penalty = rows * shrinkage / (1 - shrinkage) * np.trace(within) / numbers
    ridge = Ridge(penalty, solver="cholesky")
    residual = targets - ridge.fit(x, targets).predict(x)
    hat = ridge.fit(x, np.eye(rows)).predict(x)  # of each unit vector: column by column the hat matrix
    expected = (residual**2).sum() / rows / (1 - np.trace(hat) / rows) ** 2
    np.testing.assert_allclose(gcv(within, between, rows, np.array([shrinkage])), [expected], rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_few_rows_get_more_shrinkage_and_better_directions(seed):
    rows, numbers = 80, 100
    x, y = draw(seed, 4000, numbers)
    train, test = slice(rows), slice(rows, None)
    classes = [str(c) for c in range(3)]
    sums = combine(
        [
            (str(i), local_sums(x[train][i::3], y[train][i::3], classes=classes, reduction="discriminant", min_rows=2))
            for i in range(3)
        ]
    )

    def right(shrinkage):
        found = fit_feature_map(sums, reduction="discriminant", qubits=2, shrinkage=shrinkage)
        model = LinearDiscriminantAnalysis().fit(found.transform(x[train]), y[train])
        return model.score(found.transform(x[test]), y[test]), found.shrinkage

    best = max(right(float(s))[0] for s in GRID)
    chosen, shrinkage = right(0.0)
    assert chosen > right(SHRINKAGE)[0] + 0.01
    assert chosen > best - 0.02
    assert SHRINKAGE < shrinkage < 1


def test_ten_rows_a_number_are_enough_and_fewer_never_get_less():
    _, within, between = moments(*draw(0, 60, 30))
    assert choose_shrinkage(within, between, 60) > SHRINKAGE
    assert choose_shrinkage(within, between, 300) == SHRINKAGE
    assert min(GRID) == SHRINKAGE


def test_a_class_without_rows_changes_nothing():
    _, within, between = moments(*draw(0, 50, 30))
    wider = np.vstack([between, np.zeros(30)])
    np.testing.assert_allclose(gcv(within, wider, 50, GRID), gcv(within, between, 50, GRID), rtol=1e-12)
    assert choose_shrinkage(within, wider, 50) == choose_shrinkage(within, between, 50)


def test_fewer_rows_than_numbers():
    _, within, between = moments(*draw(1, 20, 60))
    found = gcv(within, between, 20, GRID)
    assert np.isfinite(found).all()
    assert (found > 0).all()
