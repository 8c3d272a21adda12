import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llm_qfl.federation.seeding import seed_of, stream


def test_the_seed_is_the_same_on_every_machine():
    # printf '42\x1fsite-0000\x1f1\x1fqnn' | sha256sum | cut -c1-16
    assert seed_of(42, "site-0000", 1, "qnn") == int("fb01df20333b69d0", 16) >> 1
    assert 0 <= seed_of(42, "site-0000", 1, "qnn") < 2**63


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.text(max_size=8), st.integers(0, 99)), min_size=2, unique=True))
def test_streams_of_different_keys_differ(keys):
    draws = {stream(seed, site, number, "p").integers(2**62) for seed, site, number in keys}
    assert len(draws) == len(keys)


def test_a_stream_never_touches_the_global_generator():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    stream(1, "a", 1, "x").normal(size=10)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
