"""`llm-qfl tune`: a seeded search on validation rows. The test rows are held out as in a run and never scored.

A trial is a federation in memory up to its last round, without the last exchange in which test rows are scored. The
run's seed stays the same in every trial: another seed would hold out other test rows, and what is test in the run
would have chosen its configuration. The first trial is the configuration as given, so the best is never worse on
validation. Optuna's TPE sampler takes the run's seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from llm_qfl.federation.config import RunConfig, Scalar, default_run_config
from llm_qfl.federation.errors import ConfigError

if TYPE_CHECKING:
    from optuna import Study, Trial

Say = Callable[[str], None]

CHOICES: dict[str, tuple[Scalar, ...]] = {
    "quantum.readout": ("scale", "scale-bias", "linear"),
    "training.l2": (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
}
BOUNDS = {"quantum.layers": (1.0, 6.0), "training.learning-rate": (0.01, 0.3), "training.steps": (5.0, 30.0)}
FIXED: dict[str, Scalar] = {"agent.mode": "qfl"}  # what is searched is the QNN, every round alike
KEYS = ("quantum.layers", "quantum.readout", "training.learning-rate", "training.steps", "training.l2")


@dataclass(frozen=True)
class Outcome:
    """What one trial found, on validation rows.

    Attributes:
        loss: nats.
        accuracy: share.
        evaluations: objective evaluations that the training took.
    """

    loss: float
    accuracy: float
    evaluations: int


def run_tuning(overrides: Sequence[str], *, sites: int, trials: int, search: Sequence[str] | None, say: Say) -> str:
    """Search, say each trial, and end with the line for `flwr run`.

    Args:
        overrides: as `flwr run -c` takes them.
        sites: simulated sites.
        trials: federations to run, the first as given.
        search: keys to search; None takes all that suit the circuit and optimizer.
        say: prints a line.

    Returns:
        The command that runs the best configuration.

    Raises:
        ConfigError: a wrong key, or nobody holds validation rows.
    """
    base = {**FIXED, **parse_overrides(overrides)}
    config = RunConfig.from_run_config(base)
    if config.quantum.backend.startswith("ibm:"):
        raise ConfigError(
            f"quantum.backend: a search trains hundreds of models, {config.quantum.backend} would be paid for each; "
            "search with -c 'quantum.backend=\"exact\"' or with aer-<fake device>"
        )
    keys = search_keys(config, search)
    given = {key: config.flat()[key] for key in keys}
    study = _study(config.server.seed, given)
    rows = f"validation rows ({config.data.validation}); test rows ({config.data.test}) are not scored"
    say(f"tuning {', '.join(keys)} on {rows}")
    say(f"{'trial':>5} {'loss':>8} {'accuracy':>9} {'evaluations':>12}  configuration")

    def objective(trial: Trial) -> float:
        values = {key: suggest(trial, key, given[key]) for key in keys}
        outcome = validate({**base, **values}, sites)
        trial.set_user_attr("evaluations", outcome.evaluations)
        trial.set_user_attr("values", values)
        shown = " ".join(f"{key}={_short(value)}" for key, value in values.items())
        say(f"{trial.number:>5} {outcome.loss:>8.4f} {outcome.accuracy:>9.3f} {outcome.evaluations:>12,}  {shown}")
        return outcome.loss

    study.optimize(objective, n_trials=trials)
    return _say_best(study, base, sites, say)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Scalar]:
    """`flwr run -c` syntax -> flat run config of the keys that were given.

    Raises:
        ConfigError: not `key=value` pairs.
    """
    if not overrides:
        return {}
    from click import ClickException
    from flwr.common.config import parse_config_args

    try:
        # Together: Flower lets a second text replace the whole section of the first.
        found: dict[str, Scalar] = parse_config_args([" ".join(overrides)])
    except (ClickException, ValueError) as error:
        raise ConfigError(f"-c: expected pairs like 'quantum.layers=4', got {overrides} ({error})") from error
    if not found:
        raise ConfigError(f"-c: expected pairs like 'quantum.layers=4', got {' '.join(overrides)!r}")
    return found


def search_keys(config: RunConfig, search: Sequence[str] | None) -> tuple[str, ...]:
    """The keys to search, in a fixed order; without a wish those that have an effect.

    Raises:
        ConfigError: a key that has no range here.
    """
    wrong = [key for key in search or () if key not in KEYS]
    if wrong:
        raise ConfigError([f"--search: {key} has no range; expected some of {', '.join(KEYS)}" for key in wrong])
    if search:
        return tuple(key for key in KEYS if key in search)
    keys = [key for key in KEYS if key != "quantum.layers" or config.quantum.circuit != "qcnn"]
    if config.quantum.readout in ("parity", "bit"):
        keys.remove("quantum.readout")  # the paper's readouts are there to be compared with
    return tuple(keys)


def suggest(trial: Trial, key: str, given: Scalar) -> Scalar:
    """A value of a key from its range, which takes in the given one."""
    if key in CHOICES:
        choices = [*CHOICES[key], *([] if given in CHOICES[key] else [given])]
        return cast(Scalar, trial.suggest_categorical(key, choices))
    low, high = BOUNDS[key]
    if isinstance(given, int):
        return int(trial.suggest_int(key, min(int(low), given), max(int(high), given)))
    start = float(given)
    value = float(trial.suggest_float(key, min(low, start), max(high, start), log=True))
    # Three digits, so that what is printed is what was run; the given value stays as it is.
    return start if value == start else float(f"{value:.3g}")


def validate(run_config: dict[str, Scalar], sites: int) -> Outcome:
    """Train a federation in memory and score its last vector on validation rows; no test row is scored.

    With federated validation the replies of one round more say how the last vector does: a reply scores the vector
    that it received. What that round trains is thrown away and not counted.

    Raises:
        ConfigError: nobody holds validation rows.
    """
    from flwr.app import ConfigRecord

    from client_app.app import app as client_app
    from llm_qfl.federation.records import state_record
    from llm_qfl.federation.types import GlobalState, RoundSummary
    from server_app.grid import BoundedGrid
    from server_app.session import initial_state, make_strategy, open_session
    from simulation.grid import InMemoryGrid

    flat = {**default_run_config(), **FIXED, **run_config}
    config = RunConfig.from_run_config(flat)
    nodes = {n + 1: {"partition-id": n, "num-partitions": sites} for n in range(sites)}
    grid = BoundedGrid(InMemoryGrid(client_app, nodes, flat))
    opened = open_session(grid, config)
    closed: list[RoundSummary] = []

    def close(summary: RoundSummary, state: GlobalState) -> None:
        del state
        closed.append(summary)

    strategy = make_strategy(opened, close)
    arrays = state_record(initial_state(opened))
    rounds = config.server.rounds
    for number in range(1, rounds + (2 if config.data.validation == "federated" else 1)):
        tasks = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        replies = grid.send_and_receive(tasks, timeout=config.server.deadline)
        new, _ = strategy.aggregate_train(number, replies)
        arrays = arrays if new is None else new
    scores = closed[-1].validation
    if scores is None or scores.loss is None or scores.accuracy is None:
        raise ConfigError("data.validation: nobody holds validation rows to tune on; raise data.validation-fraction")
    evaluations = sum(report.spent.evaluations for line in closed[:rounds] for report in line.reports)
    return Outcome(scores.loss, scores.accuracy, evaluations)


def _study(seed: int, given: dict[str, Scalar]) -> Study:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("tune needs Optuna; install it with pip install 'llm-qfl[server]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial(given)
    return study


def _say_best(study: Study, base: dict[str, Scalar], sites: int, say: Say) -> str:
    from server_app.book import command_line

    best = study.best_trial
    values: dict[str, Scalar] = best.user_attrs["values"]
    command = command_line(RunConfig.from_run_config({**base, **values}), sites, simulated=True)
    first = study.trials[0].user_attrs["evaluations"]
    say("")
    say(
        f"best: trial {best.number}, validation loss {best.value:.4f} nats (the configuration as given: "
        f"{study.trials[0].value:.4f}), {best.user_attrs['evaluations'] / first:.2f} times its evaluations"
    )
    say("one seed; the baselines were not tuned. Run it:")
    say(command)
    return command


def _short(value: Scalar) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
