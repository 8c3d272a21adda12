"""Feature maps against scikit-learn's on the pooled rows."""

import json

import numpy as np
import pytest
import scipy.linalg
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler

from llm_qfl.federation.data.features import FeatureMap, fit_feature_map
from llm_qfl.federation.data.shrinkage import SHRINKAGE
from llm_qfl.federation.data.sums import combine, local_sums
from llm_qfl.federation.errors import DataError, RecordError


def fit(x, y, reduction, qubits, sites=3, **options):
    classes = [str(code) for code in range(y.max() + 1)]
    parts = [
        (f"site-{i}", local_sums(x[i::sites], y[i::sites], classes=classes, reduction=reduction, min_rows=2))
        for i in range(sites)
    ]
    return fit_feature_map(combine(parts), reduction=reduction, qubits=qubits, **options)


@pytest.fixture(scope="module")
def cancer():
    bunch = load_breast_cancer()
    return bunch.data, bunch.target


def test_pca_is_scikit_learns_up_to_the_sign(cancer):
    x, y = cancer
    expected = PCA(4, whiten=True, svd_solver="full").fit_transform(StandardScaler().fit_transform(x))
    expected *= np.sqrt(len(x) / (len(x) - 1))  # there the variance divides by n - 1
    found = fit(x, y, "pca", 4, clip=1e9).transform(x)
    sign = np.sign(np.einsum("nq,nq->q", expected, found))
    np.testing.assert_allclose(found, expected * sign, rtol=1e-9, atol=1e-9)


def cosines(one, two):
    return np.abs(np.einsum("dq,dq->q", one, two)) / np.linalg.norm(one, axis=0) / np.linalg.norm(two, axis=0)


@pytest.mark.parametrize("shrinkage", [0.05, SHRINKAGE, 0.5])
def test_the_discriminant_of_two_classes_is_scikit_learns(cancer, shrinkage):
    x, y = cancer
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(StandardScaler().fit_transform(x), y)
    found = fit(x, y, "discriminant", 4, shrinkage=shrinkage).matrix
    np.testing.assert_allclose(cosines(lda.coef_.T, found[:, :1]), 1, rtol=1e-9)


def test_the_discriminants_of_ten_classes_solve_the_eigenproblem():
    x, y = load_digits(return_X_y=True)
    x = x[:, x.std(axis=0) > 0]
    scaled = StandardScaler().fit_transform(x)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE).fit(scaled, y)
    centred = lda.means_ - scaled.mean(axis=0)
    between = np.einsum("g,gd,ge->de", lda.priors_, centred, centred)
    _, vectors = scipy.linalg.eigh(between, lda.covariance_)
    found = fit(x, y, "discriminant", 4).matrix
    np.testing.assert_allclose(cosines(vectors[:, ::-1][:, :4], found), 1, rtol=1e-9)


def test_after_the_discriminants_come_the_components_orthogonal_to_them(cancer):
    x, y = cancer
    matrix = fit(x, y, "discriminant", 4).matrix
    matrix = matrix / np.linalg.norm(matrix, axis=0)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(4), atol=1e-9)
    scaled = StandardScaler().fit_transform(x)
    rest = scaled - np.outer(scaled @ matrix[:, 0], matrix[:, 0])
    expected = PCA(3, svd_solver="full").fit(rest).components_
    np.testing.assert_allclose(np.abs(np.einsum("qd,dq->q", expected, matrix[:, 1:])), 1, rtol=1e-9)


@pytest.mark.parametrize("reduction", ["pca", "discriminant"])
def test_features_have_variance_one_a_fixed_sign_and_stay_within_pi(cancer, reduction):
    x, y = cancer
    wide = fit(x, y, reduction, 6, clip=1e9)
    np.testing.assert_allclose(wide.transform(x).std(axis=0), 1, rtol=1e-9)
    np.testing.assert_allclose(wide.transform(x).mean(axis=0), 0, atol=1e-9)
    assert (wide.matrix[np.abs(wide.matrix).argmax(axis=0), range(6)] > 0).all()
    mirrored = fit(-x, y, reduction, 6, clip=1e9)  # the same directions by the same rule
    np.testing.assert_allclose(mirrored.matrix, wide.matrix, rtol=1e-6, atol=1e-9)
    narrow = fit(x, y, reduction, 6).transform(x)
    assert np.abs(narrow).max() == np.pi


def test_how_rows_are_spread_over_sites_does_not_matter(cancer):
    x, y = cancer
    for reduction in ("pca", "discriminant"):
        maps = [fit(x, y, reduction, 4, sites) for sites in (1, 5)]
        np.testing.assert_allclose(maps[0].transform(x), maps[1].transform(x), rtol=1e-9, atol=1e-9)


def test_none_standardises_only():
    rng = np.random.default_rng(0)
    x, y = rng.normal(5, [1, 100, 0.001], size=(60, 3)), rng.integers(0, 2, 60)
    np.testing.assert_allclose(
        fit(x, y, "none", 3, clip=9.0).transform(x), StandardScaler().fit_transform(x), rtol=1e-9, atol=1e-9
    )
    with pytest.raises(DataError, match=r"none takes one number a qubit, the rows have 3 and quantum\.qubits=4"):
        fit(x, y, "none", 4)


@pytest.mark.parametrize("reduction", ["pca", "discriminant", "none"])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_constant_features_are_dropped(reduction, constant):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 4)), rng.integers(0, 2, 60)
    x[:, 2] = constant
    found = fit(x, y, reduction, 4 if reduction == "none" else 3)
    assert found.matrix[2].tolist() == [0] * found.matrix.shape[1]
    moved = x.copy()
    moved[:, 2] += 1
    np.testing.assert_array_equal(found.transform(moved), found.transform(x))
    if reduction != "none":
        without = fit(np.delete(x, 2, axis=1), y, reduction, 3)
        np.testing.assert_allclose(found.transform(x), without.transform(np.delete(x, 2, axis=1)), atol=1e-9)
        with pytest.raises(DataError, match="4 qubits need 4 independent features, the rows have 3"):
            fit(x, y, reduction, 4)


def test_more_features_than_rows():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(12, 40)), np.arange(12) % 2
    found = fit(x, y, "discriminant", 4, sites=2).transform(x)
    assert np.isfinite(found).all()
    assert found[y == 1, 0].mean() != pytest.approx(found[y == 0, 0].mean())
    with pytest.raises(DataError, match=r"quantum\.qubits"):
        fit(x, y, "pca", 12, sites=2)


def test_a_class_that_nobody_may_speak_of():
    x, y = np.random.default_rng(3).normal(size=(20, 4)), np.zeros(20, int)
    sums = local_sums(x, y, classes=("0", "1"), reduction="discriminant", min_rows=5)
    with pytest.raises(DataError, match=r"sums of two classes, the sites sent them for 0 only; lower data\.min-rows"):
        fit_feature_map(sums, reduction="discriminant", qubits=2)
    three = local_sums(x, np.arange(20) % 2 * 2, classes=("0", "1", "2"), reduction="discriminant", min_rows=5)
    assert fit_feature_map(three, reduction="discriminant", qubits=2).matrix.shape == (4, 2)  # class 1 has no rows


def test_json_and_digest(cancer):
    x, y = cancer
    found = fit(x, y, "discriminant", 4)
    for back in (FeatureMap.from_json(found.to_json()), FeatureMap.from_dict(json.loads(json.dumps(found.to_dict())))):
        np.testing.assert_array_equal(back.transform(x), found.transform(x))
        assert back.digest() == found.digest()
    assert fit(x, y, "discriminant", 3).digest() != found.digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": None}, "shapes"),
        ({"scale": ["a", "b"]}, "cannot be read"),
        ({"mean": [0.0]}, "shapes"),
        ({"scale": [0.0, 1.0]}, "shapes"),
        ({"matrix": [[1.0], [float("nan")]]}, "shapes"),
        ({"clip": 0.0}, "shapes"),
    ],
)
def test_strict_reading(change, message):
    good = FeatureMap("none", np.zeros(2), np.ones(2), np.ones((2, 1))).to_dict()
    FeatureMap.from_dict(good)
    with pytest.raises(RecordError, match=message):
        FeatureMap.from_dict(good | change)
    for text in ("{", "[]", "{}"):
        with pytest.raises(RecordError):
            FeatureMap.from_json(text)


def test_rows_of_another_width_and_sums_of_another_kind(cancer):
    x, y = cancer
    with pytest.raises(DataError, match=r"expected rows of 30 numbers, got shape \(569, 29\)"):
        fit(x, y, "pca", 4).transform(x[:, :29])
    sums = local_sums(x, y, classes=("0", "1"), reduction="pca", min_rows=2)
    with pytest.raises(DataError, match=r"do not serve data\.reduction='discriminant'"):
        fit_feature_map(sums, reduction="discriminant", qubits=4)
