import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.wire import FORMATS, byte_count, decode, decode_change, encode, encode_change

SHAPES = {"3/self_attn.q_proj/A": (4, 9), "3/self_attn.q_proj/B": (6, 4)}


def matrices(seed: int, size: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {key: (size * rng.normal(size=shape)).astype(np.float32) for key, shape in SHAPES.items()}


@pytest.mark.parametrize(("wire", "tolerance"), [("fp32", 0.0), ("fp16", 5e-4), ("int8", 0.5 / 127)])
def test_round_trip(wire: str, tolerance: float) -> None:
    values = matrices(0)
    sent = encode("adapter", values, wire)
    assert {"adapter/3/self_attn.q_proj/A", "adapter/3/self_attn.q_proj/B"} <= set(sent)
    back = decode("adapter", sent, wire, SHAPES)
    for key, value in values.items():
        axis = 1 if key.endswith("/A") else 0
        largest = np.abs(value).max(axis=axis, keepdims=True)
        assert (np.abs(back[key] - value) <= tolerance * largest * 1.01).all()


def test_bytes() -> None:
    assert byte_count(encode("adapter", matrices(0), "fp32")) == 4 * 60
    assert byte_count(encode("adapter", matrices(0), "fp16")) == 2 * 60
    assert byte_count(encode("adapter", matrices(0), "int8")) == 60 + 4 * 8  # and a scale for each of r = 4, twice


def test_zeros_survive_int8() -> None:
    values = {key: np.zeros(shape, np.float32) for key, shape in SHAPES.items()}
    back = decode("adapter", encode("adapter", values, "int8"), "int8", SHAPES)
    assert all((value == 0).all() for value in back.values())


def test_other_names_are_not_looked_at() -> None:
    sent = encode("adapter", matrices(0), "fp32") | encode("emulator", matrices(1), "fp32")
    back = decode("adapter", {**sent, "qnn/weights": np.zeros(3)}, "fp32", SHAPES)
    assert all(np.array_equal(back[k], v) for k, v in matrices(0).items())


@pytest.mark.parametrize("wire", FORMATS)
def test_strict(wire: str) -> None:
    sent = encode("adapter", matrices(0), wire)
    first = "adapter/3/self_attn.q_proj/A"

    def refused(change: dict[str, np.ndarray | None], match: str) -> None:
        arrays = {k: v for k, v in (sent | change).items() if v is not None}
        with pytest.raises(LanguageError, match=match):
            decode("adapter", arrays, wire, SHAPES)

    refused({first: None}, "missing")
    refused({"adapter/9/self_attn.q_proj/A": sent[first]}, "unknown")
    refused({first: sent[first][:, :3]}, "expected float32")
    refused({first: sent[first].astype(np.float64)}, "on the wire, got float64")
    if wire == "int8":
        refused({f"{first}.scale": np.full(4, np.nan, np.float32)}, "not finite")
        refused({f"{first}.scale": None}, "missing")
    else:
        refused({first: np.full_like(sent[first], np.inf)}, "not finite")


def test_refuses_to_send_what_cannot_be_sent() -> None:
    with pytest.raises(LanguageError, match="nothing was sent"):
        encode("adapter", {"3/q/A": np.full((1, 2), np.nan, np.float32)}, "fp32")
    with pytest.raises(LanguageError, match=r"too large for language\.wire=fp16"):
        encode("adapter", {"3/q/A": np.full((1, 2), 1e6, np.float32)}, "fp16")


def test_fp32_answer_is_exact() -> None:
    received, trained = matrices(0), matrices(1)
    sent, residual = encode_change("adapter", trained, received, {}, "fp32")
    assert residual == {}
    assert all(np.array_equal(decode_change("adapter", sent, received, "fp32")[k], trained[k]) for k in trained)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["fp16", "int8"]), st.integers(0, 1000), st.floats(1e-4, 10))
def test_error_feedback_loses_nothing(wire: str, seed: int, size: float) -> None:
    """After many answers, what the server added up differs from the sum of the changes by the last residual alone."""
    received = matrices(seed)
    wanted = {key: np.zeros_like(value, np.float64) for key, value in received.items()}
    arrived = {key: np.zeros_like(value, np.float64) for key, value in received.items()}
    residual: dict[str, np.ndarray] = {}
    for step in range(12):
        change = matrices(seed + step + 1, size)
        trained = {key: received[key] + change[key] for key in received}
        sent, residual = encode_change("adapter", trained, received, residual, wire)
        back = decode_change("adapter", sent, received, wire)
        for key in received:
            wanted[key] += trained[key].astype(np.float64) - received[key]
            arrived[key] += back[key].astype(np.float64) - received[key]
    for key in received:
        np.testing.assert_allclose(arrived[key] + residual[key], wanted[key], atol=2e-5 * max(size, 1))
        assert np.abs(residual[key]).max() < size * 0.05
