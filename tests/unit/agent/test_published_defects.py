"""The defects of the published LLM-QFL code, and the tests that hold them off.

The numbers B1 to B23 are those of our review of the authors' code. `COVERED` names the tests of each, and a test below
sees that they exist; defects that need a small test of their own have it here.

=====  =====================================================================  ========================================
       defect of the published code                                           how it cannot happen here
=====  =====================================================================  ========================================
B1     averaging had no effect: `fit` restarts at the client's own weights    the start point is an argument, asserted
B2     `score` used the last fit, not the vector it was asked about           a loss scores theta and nothing else
B3     the sample was taken before shuffling: one class only                  stratified splits; one class is an error
B4     inputs were random numbers                                             permuted inputs change the loss
B5     three equal observables: always class 0                               outputs differ across classes
B6     label encoder fitted anew for each row                                 one order of classes, the federation's
B7     stop rules commented out                                               they fire, and don't, by hand
B8     the selection was computed and not used                                the chosen sites train, and they alone
B9     undefined names, a log-in even for fake devices                        every backend runs offline in the tests
B10    feature map and ansatz transpiled apart, composed by index             one circuit, transpiled once
B11    COBYLA evaluates P+2 times whatever its limit                          budgets are counted, never passed
B12    one language model for all clients                                     an adapter of its own at each site
B13    training loss against F1, bits against nats                            two cross-entropies in nats, same rows
B14    QNN and language model saw different rows, test rows among them        one split table for both
B15    features fitted on train and test rows, per client                     federated sums of training rows
B16    the server trained on its test rows                                    the server trains nothing; rows disjoint
B17    F was the last evaluation, not the best                                the returned point is scored
B18    the classification head stayed frozen                                  label words; every matrix has a gradient
B19    libraries that are not there (bitsandbytes' config, old Trainer)       no Trainer; versions in the fingerprint
B20    dead weights in the QCNN                                               every weight has an effect
B21    one failed job lost the run                                            bad replies are reasons; a kill is resumed
B22    no seeds                                                               same seed, same bits
B23    a threshold called an agent                                            rewards, learning, mutual information
=====  =====================================================================  ========================================
"""

import ast
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from client_app.data import _label_order
from llm_qfl.federation.config import QuantumConfig, RunConfig, TrainingConfig
from llm_qfl.federation.data.partition import Deal
from llm_qfl.federation.data.split import ON_SERVER, TEST, TRAIN, VALIDATION, Fractions, make_split
from llm_qfl.federation.errors import DataError
from llm_qfl.federation.types import Rows
from llm_qfl.quantum.model import get_model
from llm_qfl.quantum.training import round_budget, train

TESTS = Path(__file__).parents[2]
REAL, MODES = "federation/test_real_federation.py", "federation/test_agent_modes.py"
BACKENDS, SAMPLED = "contract/test_backends.py", "unit/quantum/sampled/test_sampled_parts.py"
POLICY = "unit/language/test_policy_scoring.py"
SITE = "unit/language/test_site_language.py"
HERE = "unit/agent/test_published_defects.py"

COVERED = {
    "B1": [
        (HERE, "test_b01_training_starts_at_the_average_and_not_where_the_site_was"),
        (REAL, "test_the_average_arrives_and_changes_what_clients_do"),
        (REAL, "test_every_optimizer_starts_where_it_is_told"),
    ],
    "B2": [
        (HERE, "test_b02_scores_are_of_the_vector_asked_for_and_not_of_the_last_training"),
        ("unit/quantum/test_model.py", "test_a_loss_scores_theta_and_nothing_else"),
    ],
    "B3": [
        (HERE, "test_b03_every_part_of_sorted_rows_holds_every_class"),
        ("federation/test_bad_input.py", "test_one_class_in_the_whole_federation_is_an_error"),
    ],
    "B4": [
        ("unit/quantum/test_model.py", "test_permuted_inputs_change_the_loss"),
        (REAL, "test_permuted_labels_give_balanced_accuracy_at_chance"),
    ],
    "B5": [
        (HERE, "test_b05_three_classes_are_told_apart"),
        ("unit/quantum/test_circuits.py", "test_outputs_differ_across_classes_and_follow_their_inputs"),
    ],
    "B6": [
        (HERE, "test_b06_a_site_of_one_class_gives_it_the_federations_number"),
        (REAL, "test_a_site_with_rows_of_one_class_trains"),
    ],
    "B7": [
        (MODES, "test_b07_a_stop_ends_the_run_with_its_reason"),
        ("unit/agent/test_termination.py", "test_b07_alignment_fires_after_its_patience"),
        ("unit/agent/test_termination.py", "test_b07_alignment_does_not_fire"),
        ("unit/agent/test_termination.py", "test_b07_a_plateau_fires_after_its_patience"),
        ("unit/agent/test_termination.py", "test_b07_a_plateau_does_not_fire"),
        ("unit/agent/test_termination.py", "test_b07_the_papers_distance_rule_compares_with_the_round_before"),
        ("unit/agent/test_actions_shield.py", "test_b07_a_chosen_stop_needs_age_patience_and_quality"),
        ("unit/agent/test_decider.py", "test_b07_a_plateau_ends_the_run_with_a_reason"),
    ],
    "B8": [
        ("unit/agent/test_decider.py", "test_b08_selected_sites_are_the_ones_that_train"),
        ("unit/agent/test_selection.py", "test_align_takes_the_subset_with_the_smallest_sum"),
        (MODES, "test_a_mode_runs_to_its_end_and_says_who_decided"),
    ],
    "B9": [
        (BACKENDS, "test_values_are_those_of_the_mark"),
        (BACKENDS, "test_a_device_that_is_not_there_is_refused_with_its_neighbours"),
    ],
    "B10": [
        (BACKENDS, "test_values_are_those_of_the_mark"),
        (SAMPLED, "test_the_circuit_of_angles_is_the_circuit"),
        (SAMPLED, "test_a_circuit_is_transpiled_once_for_a_device_and_found_on_disk"),
        ("unit/quantum/test_circuits.py", "test_no_dead_weights"),
    ],
    "B11": [
        ("unit/agent/test_rules.py", "test_b11_a_cobyla_budget_is_never_below_what_scipy_takes"),
        ("unit/quantum/test_training.py", "test_the_budget_is_what_is_really_called"),
        ("unit/quantum/test_training.py", "test_no_budget_is_exceeded"),
        (MODES, "test_a_budget_is_kept"),
    ],
    "B12": [
        ("unit/language/test_protocol.py", "test_two_clients_are_two_objects_with_two_results"),
        (POLICY, "test_b12_the_clients_model_does_not_feel_the_policy"),
        (POLICY, "test_b12_the_policy_does_not_feel_the_clients_adapters"),
        (POLICY, "test_b12_training_the_policy_leaves_the_clients_matrices_alone"),
    ],
    "B13": [
        ("unit/agent/test_rules.py", "test_b13_bits_against_nats_would_fire_where_the_losses_are_equal"),
        ("unit/quantum/test_distillation.py", "test_b13_the_loss_that_budgets_follow_is_the_plain_one"),
        (SITE, "test_a_round_is_scored_on_validation_rows_with_the_adapter_before_and_after"),
    ],
    "B14": [
        (HERE, "test_b14_no_row_is_in_two_places"),
        (REAL, "test_no_test_or_validation_row_is_ever_trained_on"),
        ("unit/language/test_soft_labels.py", "test_b14_other_rows_or_words_are_another_version"),
        ("federation/test_language_federation.py", "test_rows_are_the_qnn_s_rows"),
    ],
    "B15": [(REAL, "test_the_feature_map_is_the_pooled_one_of_the_contributing_rows")],
    "B16": [
        (HERE, "test_b14_no_row_is_in_two_places"),
        ("unit/federation/data/test_split.py", "test_every_row_is_in_exactly_one_place"),
    ],
    "B17": [
        ("unit/agent/test_history.py", "test_b17_the_loss_is_the_returned_points_on_validation_rows"),
        ("unit/quantum/test_training.py", "test_the_best_seen_point_is_returned"),
    ],
    "B18": [
        (POLICY, "test_b18_the_policys_matrices_are_trainable_and_their_gradient_is_right"),
        ("unit/language/test_losses.py", "test_only_answer_tokens_are_learned"),
        ("unit/language/test_local_steps.py", "test_gradient_is_that_of_the_plain_model"),
    ],
    "B19": [(HERE, "test_b19_nothing_rests_on_what_the_libraries_no_longer_have")],
    "B20": [("unit/quantum/test_circuits.py", "test_no_dead_weights")],
    "B21": [
        ("federation/test_bad_input.py", "test_a_bad_reply_is_rejected_with_its_reason_and_the_run_goes_on"),
        ("contract/test_ibm_runner.py", "test_bad_ends_are_told_apart_and_not_replaced"),
        ("unit/agent/test_decider.py", "test_b21_a_run_that_was_killed_decides_as_it_would_have"),
    ],
    "B22": [
        (REAL, "test_the_same_seed_gives_the_same_bits_and_another_seed_others"),
        ("unit/agent/test_decider.py", "test_b22_equal_inputs_give_equal_decisions"),
    ],
    "B23": [
        ("unit/agent/test_prices_rewards.py", "test_b23_a_run_is_rewarded_by_hand"),
        ("unit/agent/test_choice.py", "test_b23_mutual_information_by_hand"),
        (POLICY, "test_b23_the_state_changes_the_choice"),
    ],
}  # fmt: skip


@cache
def names_in(path):
    found = ast.walk(ast.parse((TESTS / path).read_text()))
    return {node.name for node in found if isinstance(node, ast.FunctionDef)}


def test_every_defect_has_a_row_and_a_test():
    assert list(COVERED) == [f"B{n}" for n in range(1, 24)]
    assert re.findall(r"^(B\d+) ", __doc__, re.MULTILINE) == list(COVERED)
    missing = [(path, name) for row in COVERED.values() for path, name in row if name not in names_in(path)]
    assert not missing


QNN = get_model(QuantumConfig(qubits=2, layers=1), 2)


def some_rows(count=12, seed=0):
    rng = np.random.default_rng(seed)
    return Rows(rng.normal(size=(count, 2)), np.arange(count) % 2)


def trained(theta, seed=1):
    config = TrainingConfig(steps=3)
    return train(
        QNN, some_rows(), theta, config=config, budget=round_budget(QNN, config), learning_rate=0.1,
        rng=np.random.default_rng(seed),
    )  # fmt: skip


def test_b01_training_starts_at_the_average_and_not_where_the_site_was():
    rng = np.random.default_rng(3)
    own, other = QNN.initial_theta(rng), QNN.initial_theta(rng)
    at_home = trained(own)
    average = (at_home.theta + other) / 2
    next_round = trained(average)
    np.testing.assert_array_equal(next_round.first_theta, average)
    assert np.abs(next_round.theta - trained(at_home.theta).theta).max() > 1e-2  # .0 in the published code
    np.testing.assert_array_equal(next_round.theta, trained(average).theta)  # nor does it depend on what ran before


def test_b02_scores_are_of_the_vector_asked_for_and_not_of_the_last_training():
    rows, theta = some_rows(40, seed=5), QNN.initial_theta(np.random.default_rng(4))
    before = QNN.scores(theta, rows)
    result = trained(theta)
    after = QNN.scores(theta, rows)
    assert after.loss_sum == before.loss_sum
    assert abs(QNN.scores(result.theta, rows).loss_sum - before.loss_sum) > 1e-2


def test_b03_every_part_of_sorted_rows_holds_every_class():
    labels = np.repeat([0, 1], 600)  # one class after the other, as the benchmark lists them
    table = make_split(labels, Deal("iid", 10, 0), Fractions(0.2, 0.0, 0.0, 0.25))
    for site, parts in [(ON_SERVER, (TEST,)), *((n, (TRAIN, VALIDATION)) for n in range(10))]:
        for part in parts:
            counts = np.bincount(labels[table.rows(site, part)], minlength=2)
            assert counts.min() > 0.3 * counts.sum()


def test_b05_three_classes_are_told_apart():
    model = get_model(QuantumConfig(qubits=3, layers=2), 3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    answers = [model.log_probabilities(model.initial_theta(rng), x).argmax(axis=1) for _ in range(10)]
    assert set(np.concatenate(answers)) == {0, 1, 2}  # always 0 in the published code
    columns = np.exp(model.log_probabilities(model.initial_theta(rng), x)).T
    assert all(np.abs(a - b).max() > 1e-3 for a, b in (columns[[0, 1]], columns[[0, 2]], columns[[1, 2]]))


def test_b06_a_site_of_one_class_gives_it_the_federations_number():
    federation = ("negative", "neutral", "positive")
    assert _label_order(("positive",), federation).tolist() == [2]
    assert _label_order(("positive", "negative"), federation).tolist() == [2, 0]
    with pytest.raises(DataError, match="not among the run's classes"):
        _label_order(("other",), federation)


def test_b14_no_row_is_in_two_places():
    labels = np.random.default_rng(0).integers(0, 2, 400)
    table = make_split(labels, Deal("dirichlet", 5, 1), Fractions(0.2, 0.1, 0.1, 0.15))
    places = [table.rows(site, part) for site in range(ON_SERVER, 5) for part in (TRAIN, VALIDATION, TEST)]
    assert len(np.concatenate(places)) == len(set(np.concatenate(places))) == 400
    assert len(table.rows(ON_SERVER, TRAIN)) == 0  # the server trains nothing


def test_b19_nothing_rests_on_what_the_libraries_no_longer_have():
    gone = ("import Trainer", "TrainingArguments", "from bitsandbytes import BitsAndBytesConfig", "evaluation_strategy")
    sources = [
        path
        for part in ("llm_qfl", "client_app", "server_app", "agent")
        for path in (TESTS.parent / part).rglob("*.py")
    ]
    assert sources
    found = [(path.name, word) for path in sources for word in gone if word in path.read_text()]
    assert not found


def test_the_papers_settings_are_a_configuration():
    """Uniform average, one client of ten, ratchet, no soft labels, patience of one round, adaptive rule, M = 100."""
    paper = {
        "agent.mode": "llm-qfl-selected",
        "agent.rule": "adaptive",
        "agent.regulation": "paper",
        "agent.from-round": 3,
        "agent.cap-steps": 100,
        "agent.fraction": 0.1,
        "agent.min-clients": 1,
        "agent.fairness-window": 0,
        "agent.distill-weight": 0.0,
        "agent.stop-align": 0.4,
        "agent.stop-distance": 0.4,
        "agent.stop-plateau": 0.0,
        "agent.stop-patience": 1,
        "agent.stop-after": 1,
        "server.weighting": "uniform",
        "server.rounds": 10,
        "training.optimizer": "cobyla",
        "training.steps": 10,
        "data.encoding": "onehot",
        "data.reduction": "pca",
        "quantum.circuit": "zz-real-amplitudes",
    }
    config = RunConfig.from_run_config(paper)
    assert config.agent.selection == "align"
    assert not config.agent.distills
