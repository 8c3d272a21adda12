"""Every exception that llm-qfl raises on purpose.

LlmQflError
├── ConfigError        the run config or a site's node config is wrong (all problems in one message)
├── DataError          rows, labels or columns are not what the configuration says
├── CircuitError       a circuit, observable or argument that the engine cannot simulate
├── PrivacyError       an answer would give away more of a row, or of a site, than was agreed
├── BackendError       a backend cannot run what was asked (nothing was spent)
├── LanguageError      a language model, its split, its adapter or a file of theirs is not what was asked for
├── RecordError        a Flower message does not hold what the record schema says
├── FingerprintError   the two sides differ in something that changes numbers
├── SetupMissingError  a site was not sent, or has lost, the setup that a task names
├── FederationError    the federation cannot go on (too few sites, two sites of one name, ...)
└── RunFolderError     a run folder cannot be read or written

A message says what was expected, what came, where, and what to do.
"""


class LlmQflError(Exception):
    """Base of every exception that llm-qfl raises on purpose."""

    shareable = False
    """May the text leave the site? Only where it can hold nothing of the site's: no path, no row, no label."""
    unfinished = False
    """Does the same task, sent again, go on where it stopped? Then nothing that was paid for it is lost."""


class ConfigError(LlmQflError):
    """The run config or a site's node config is wrong.

    Args:
        problems: one line per problem; all of them are shown.
    """

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("configuration: " + "; ".join(self.problems) if len(self.problems) == 1 else self._many())

    def _many(self) -> str:
        return f"configuration, {len(self.problems)} problems:\n" + "\n".join(f"  - {line}" for line in self.problems)


class DataError(LlmQflError):
    """Rows, labels or columns are not what the configuration says."""


class CircuitError(LlmQflError, ValueError):
    """A circuit, observable or argument that the engine cannot simulate."""


class PrivacyError(LlmQflError):
    """An answer would give away more of a row, or of a site, than was agreed; it is not given."""

    shareable = True


class BackendError(LlmQflError):
    """A backend cannot run what was asked; nothing was spent."""


class LanguageError(LlmQflError):
    """A language model, its split, its adapter or a file of theirs is not what was asked for."""


class RecordError(LlmQflError):
    """A Flower message does not hold what the record schema says."""

    shareable = True


class FingerprintError(LlmQflError):
    """The two sides differ in something that changes numbers."""

    shareable = True


class SetupMissingError(LlmQflError):
    """A site was not sent, or has lost, the setup that a task names."""

    shareable = True


class FederationError(LlmQflError):
    """The federation cannot go on."""


class RunFolderError(LlmQflError):
    """A run folder cannot be read or written."""
