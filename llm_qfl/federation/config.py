"""The run config: every key, every default, every check.

`RunConfig` is the one source. Keys are dotted kebab-case on the outside (`data.min-rows`), as Flower's run config
has them; `RunConfig.from_run_config` checks them and reports *all* problems in one `ConfigError`. The table in
pyproject.toml is written from here (`python -m llm_qfl.cli.config_table --write`) and a test compares both.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from llm_qfl.federation.config_agent import AgentConfig, resolved
from llm_qfl.federation.config_checks import cross_problems
from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.federation.config_privacy import PrivacyConfig
from llm_qfl.federation.config_robust import RobustKeys
from llm_qfl.federation.errors import ConfigError
from llm_qfl.federation.section import Fraction, PositiveInt, Section

Scalar = bool | int | float | str

# Keys that say where and how long, not what is computed: they stay out of the fingerprint.
NOT_NUMBERS = frozenset(
    {
        "server.output",
        "server.deadline",
        "server.patience",
        "server.wait",
        "server.show",
        "server.resume",
        "quantum.job-patience",
        "language.models-url",
    }
)


class ServerConfig(RobustKeys):
    """How the federation is run."""

    rounds: PositiveInt = 20
    """Train rounds."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    """Every generator of the run is derived from it."""
    output: str = "runs"
    """Folder that receives the run folder, on the server's host."""
    sites: Annotated[int, Field(ge=0)] = 0
    """Sites to wait for before the run starts; 0 takes those that are there when the first has come."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a round's sites whose reply must be accepted, or the round keeps the old model (and of `server.sites`
    that must be able to take part at all)."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the sites that train in a round (seeded draw, at least two where there are two)."""
    weighting: Literal["examples", "uniform"] = "examples"
    """Weights of the average: training rows of each site, or one each."""
    deadline: Annotated[float, Field(gt=0)] = 600.0
    """Seconds a round waits for replies."""
    late: Literal["weighted", "dropped"] = "weighted"
    """What becomes of an answer that comes after its round's deadline: it enters the next aggregation with a staleness
    weight, or is dropped and counted."""
    staleness: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A late answer's weight falls by this factor for each round that it is late."""
    patience: Annotated[float, Field(gt=0)] = 86400.0
    """Seconds that a task stays valid after it was sent: a site that waits for a QPU may answer until then."""
    wait: Annotated[float, Field(gt=0)] = 120.0
    """Seconds to wait for sites before giving up."""
    resume: str = "none"
    """Folder of a run that was interrupted, or `none`: the run goes on from its last closed round, in the same folder,
    with the same configuration (`server.rounds` may be raised)."""
    show: Literal["auto", "live", "plain"] = "auto"
    """Terminal: a live table, one plain line a round, or by whether it is a terminal."""


class DataConfig(Section):
    """Which rows, and what numbers they become."""

    source: str = "breast-cancer"
    """`breast-cancer`, `digits`, `csv:<path>` or `hub:<dataset>`; a site's `data-path` (node config) replaces it."""
    label_column: str = "label"
    """Column of the labels in a CSV file or hub data set."""
    text_column: str = "text"
    """Column of the text, where the rows are texts."""
    answer_column: str = "none"
    """Column of the answers, where `language.task` is `generation` and the texts are instructions."""
    classes: str = "all"
    """`all`, or the labels to keep, comma separated, in the order of the outputs: `0,1`."""
    encoding: Literal["auto", "columns", "kmer", "canonical-kmer", "onehot", "language"] = "auto"
    """What numbers a row becomes; `auto` takes `columns` for numeric rows and `kmer` for sequences; `canonical-kmer`
    counts a word and its reverse complement as one; `language`: a text's mean hidden state in the language model as it
    was first distributed."""
    layer: Annotated[int, Field(ge=0)] = 0
    """For `language`: after how many of the layers that sites hold; 0 takes the middle."""
    k: Annotated[int, Field(ge=1, le=6)] = 4
    """Length of the k-mers."""
    reduction: Literal["discriminant", "pca", "none"] = "discriminant"
    """How the numbers reach the qubits, from federated sums."""
    shrinkage: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """For `discriminant`: share of the identity in the within-class covariance; 0 takes .1 where there are ten rows for
    each number of a row, and below that chooses by generalised cross-validation on the federated sums."""
    partitioner: Literal["iid", "dirichlet", "shard", "column"] = "dirichlet"
    """Simulation only: how the pool is dealt to the sites."""
    alpha: Annotated[float, Field(gt=0)] = 0.5
    """Concentration of the Dirichlet partitioner."""
    partition_column: str = "none"
    """Column for the `column` partitioner."""
    test: str = "server"
    """`server` (hold-out of the pool), `federated` (the sites' hold-out rows) or `file:<path>`."""
    test_fraction: Fraction = 0.25
    """Share of the rows held out for the test, where it is no file."""
    validation: str = "federated"
    """`federated` (the sites' validation rows), `server` (hold-out of the pool) or `file:<path>`."""
    validation_fraction: Fraction = 0.15
    """Share of a site's rows that score and never train; with `server` also of the pool without its test rows."""
    min_rows: PositiveInt = 5
    """Fewest rows (of a class, where sums go by class) for which a site sends sums: a sum of few rows is a row."""

    @property
    def class_list(self) -> tuple[str, ...] | None:
        """The configured classes, or None for all."""
        return None if self.classes == "all" else tuple(part.strip() for part in self.classes.split(","))


class QuantumConfig(Section):
    """Which circuit, read how, run where."""

    circuit: Literal["reuploading", "zz-real-amplitudes", "qcnn"] = "reuploading"
    """The circuit, by name."""
    qubits: Annotated[int, Field(ge=1, le=30)] = 4
    """Qubits, one feature each."""
    layers: PositiveInt = 3
    """Layers of `reuploading`, repetitions of `zz-real-amplitudes`' ansatz."""
    readout: Literal["scale", "scale-bias", "linear", "parity", "bit"] = "linear"
    """How expectation values become class probabilities."""
    backend: str = "exact"
    """Where circuits run: `exact`, `aer` (shots), `aer-<fake device>` (its noise and topology), `ibm:<device>`,
    `ibm:least-busy`, `ibm-local:<fake device>` (IBM's client without an account). A site's own `backend` (node config)
    replaces it."""
    evaluation_backend: str = "same"
    """Where validation and test rows are scored: `same` as training, or a backend of its own. A site with a `backend`
    of its own scores there, or at its own `evaluation-backend` (node config)."""
    precision: Literal["float64", "float32"] = "float64"
    """Precision of the exact engine."""
    shots: PositiveInt = 1024
    """Shots of every circuit on a backend that samples."""
    mitigation: Literal["none", "readout", "zne"] = "none"
    """Error mitigation: of the read-out (IBM: resilience level 1), or with zero-noise extrapolation (IBM: level 2)."""
    dynamical_decoupling: Literal["none", "XX", "XpXm", "XY4"] = "none"
    """IBM: sequence on idle qubits."""
    twirling: Literal["default", "none", "gates", "measure", "both"] = "default"
    """IBM: Pauli twirling; `default` is the client's choice for the mitigation."""
    mode: Literal["job", "batch", "session"] = "job"
    """IBM: every job on its own, or in a batch or session of the site."""
    qpu_seconds: Annotated[float, Field(ge=0)] = 600.0
    """IBM: QPU seconds that each site may spend in this run; more is refused before anything is spent."""
    job_patience: Annotated[float, Field(gt=0)] = 86400.0
    """IBM: seconds that a site waits for a job to end; it stays in the ledger and is found again."""

    def at_site(self, backend: str | None, evaluation: str | None = None) -> QuantumConfig:
        """With the backends that a site has chosen for itself: no run makes it pay where it chose otherwise."""
        if backend is None and evaluation is None:
            return self
        if backend is None:
            return self.model_copy(update={"evaluation_backend": evaluation})
        return self.model_copy(update={"backend": backend, "evaluation_backend": evaluation or "same"})

    @property
    def scoring(self) -> QuantumConfig:
        """Where validation and test rows are scored."""
        other = self.evaluation_backend
        return self if other == "same" else self.model_copy(update={"backend": other})


class TrainingConfig(Section):
    """What a site does with the QNN in a round."""

    optimizer: Literal["adam", "spsa", "cobyla"] = "adam"
    """The local optimizer; it always starts at the received vector."""
    steps: PositiveInt = 10
    """Local optimizer steps a round. An Adam step costs 2G+1 evaluations, an SPSA step 2, a COBYLA step 1."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Step size of Adam, first step of SPSA, initial trust region of COBYLA."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate over the rounds."""
    batch_size: Annotated[int, Field(ge=0)] = 0
    """Rows per step; 0 takes all."""
    l2: Annotated[float, Field(ge=0)] = 0.001
    """Weight of theta's squared norm in the training loss (QNN and baselines)."""


class BaselinesConfig(Section):
    """Logistic regression and a small network, trained federated beside the QNN."""

    hidden: Annotated[int, Field(ge=0)] = 0
    """Hidden units of the network; 0 takes about as many parameters as the QNN has."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Adam's step size for both."""


class RunConfig(Section):
    """The whole run config."""

    server: ServerConfig = ServerConfig()
    data: DataConfig = DataConfig()
    quantum: QuantumConfig = QuantumConfig()
    training: TrainingConfig = TrainingConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    language: LanguageConfig = LanguageConfig()
    agent: AgentConfig = AgentConfig()
    privacy: PrivacyConfig = PrivacyConfig()

    @model_validator(mode="after")
    def _cross_checks(self) -> RunConfig:
        problems = cross_problems(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @classmethod
    def from_run_config(cls, flat: Mapping[str, Scalar]) -> RunConfig:
        """Check Flower's flat run config (`{"data.source": ...}`); a key that is missing takes its default.

        `agent.mode=auto` becomes the mode that it stands for, so that every record of the run names it.

        Raises:
            ConfigError: with every problem, not the first.
        """
        problems: list[str] = []
        nested: dict[str, dict[str, Scalar]] = {}
        known = set(default_run_config())
        for key, value in flat.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                problems.append(f"{key}: no such key" + (f"; did you mean {near[0]}?" if near else ""))
                continue
            section, name = key.split(".", 1)
            nested.setdefault(section, {})[name] = value
        sections, wrong = _validate_sections(nested)
        problems += wrong
        if not wrong:  # the cross checks need every section to be readable
            try:
                config = cls.model_validate(sections)
            except ValidationError as error:
                problems += _lines(error, "")
            else:
                if not problems:
                    return config.model_copy(
                        update={"agent": resolved(config.agent, config.language, private=config.privacy.on)}
                    )
        raise ConfigError(problems)

    def flat(self) -> dict[str, Scalar]:
        """Every key with its value, dotted kebab-case."""
        dumped = self.model_dump(by_alias=True)
        return {f"{section}.{key}": value for section, keys in dumped.items() for key, value in keys.items()}

    def digest(self) -> str:
        """Digest of the keys that change numbers."""
        numbers = {key: value for key, value in self.flat().items() if key not in NOT_NUMBERS}
        return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()


SECTIONS: dict[str, type[Section]] = {
    "server": ServerConfig,
    "data": DataConfig,
    "quantum": QuantumConfig,
    "training": TrainingConfig,
    "baselines": BaselinesConfig,
    "language": LanguageConfig,
    "agent": AgentConfig,
    "privacy": PrivacyConfig,
}


def default_run_config() -> dict[str, Scalar]:
    """Every key with its default, as Flower's flat run config."""
    return RunConfig().flat()


def _validate_sections(nested: Mapping[str, Mapping[str, Scalar]]) -> tuple[dict[str, Section], list[str]]:
    sections: dict[str, Section] = {}
    problems: list[str] = []
    for name, model in SECTIONS.items():
        try:
            sections[name] = model.model_validate(dict(nested.get(name, {})))
        except ValidationError as error:
            problems += _lines(error, f"{name}.")
    return sections, problems


def _lines(error: ValidationError, prefix: str) -> list[str]:
    lines: list[str] = []
    for item in error.errors():
        if item["type"] == "value_error":  # a cross check of ours: one line per problem
            lines += str(item["ctx"]["error"]).splitlines()
            continue
        where = prefix + ".".join(str(part) for part in item["loc"])
        lines.append(f"{where}: {item['msg'][0].lower()}{item['msg'][1:]}, got {item['input']!r}")
    return lines
