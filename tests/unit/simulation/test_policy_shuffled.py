"""The ablation that shows a policy other states leaves it the run's prices: they are no state of the federation."""

import numpy as np

from agent.state import State
from simulation.policy_arms import Shuffled
from simulation.policy_states import PRICES, read_state, repriced


class Listens:
    def __init__(self):
        self.heard = []

    def probabilities(self, text, allowed):
        self.heard.append(read_state(text))
        return {}


def test_other_states_at_the_runs_own_prices():
    mine = repriced(State.empty(), (0.9, 0.05, 0.05))
    header = list(State.empty().header)
    header[0] = 6  # another number of sites
    other = repriced(State(tuple(header), State.empty().clients), (0.05, 0.9, 0.05))
    policy = Listens()
    Shuffled(policy, [other.text()], np.random.default_rng(0)).probabilities(mine.text(), {})
    (seen,) = policy.heard
    assert seen.header[PRICES : PRICES + 3] == mine.header[PRICES : PRICES + 3]
    assert seen.header[PRICES : PRICES + 3] != other.header[PRICES : PRICES + 3]
    assert seen.header[:PRICES] == other.header[:PRICES]
    assert seen.clients == other.clients
