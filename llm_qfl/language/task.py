"""The task as a language model sees it: a text plan, a tokenizer, and what training, scoring and alignment take.

Both sides make the same tokens of a row, since the plan is the run's and the tokenizer travels with the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.federation.data.prompts import GENERATION, INSTRUCTION, generation, instructions, label_words
from llm_qfl.federation.data.sums import FeatureSums
from llm_qfl.federation.data.text import TextPlan, make_plan
from llm_qfl.federation.errors import LanguageError
from llm_qfl.federation.seeding import SERVER, stream
from llm_qfl.federation.types import Array, Labels, Scores
from llm_qfl.language.batches import TokenRows
from llm_qfl.language.cache import StateCache
from llm_qfl.language.features import RouteStates, pooled_states
from llm_qfl.language.route import Route
from llm_qfl.language.scoring import (
    CacheOf,
    Calibration,
    LabelScorer,
    class_weights,
    match_prior,
    written_scores,
)
from llm_qfl.language.tokens import ClassRows, LabelWords, answer_rows, class_rows, fitting_plan, plain_rows

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

NO_ANSWER = LabelWords((), (), ((0,),))  # room for one token: prompts that nothing is asked about


def text_plan(
    config: LanguageConfig,
    encoding: str,
    names: Sequence[str],
    class_names: Sequence[str],
    sums: FeatureSums | None,
    tokenizer: PreTrainedTokenizerBase,
) -> TextPlan:
    """The plan of a run, by what the server knows after the query.

    Args:
        config: the section `language`.
        encoding: what numbers a row becomes.
        names: of these numbers.
        class_names: labels in the order of the outputs.
        sums: the federation's; None where rows are not written as columns.
        tokenizer: the model's.

    Raises:
        ConfigError: words, style or template do not go with the rows.
        LanguageError: label words that collide in the tokenizer, or a prompt that does not fit.
    """
    words = label_words("auto" if config.label_words == "classes" else config.label_words, class_names)
    template = config.prompt if config.task == "classification" else "auto"
    plan = make_plan(encoding, names, words, sums, style=config.text, template=template, most=config.columns)
    if config.task == "generation":
        return plan
    return fitting_plan(plan, LabelWords.of(words, tokenizer), tokenizer, limit=config.max_tokens)


def feature_plan(config: LanguageConfig) -> TextPlan:
    """How a text reads where only its hidden states are wanted; known before the query."""
    template = config.prompt if config.task == "classification" else "auto"
    return make_plan("language", (), (), None, template=template)


def feature_rows(
    plan: TextPlan, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, config: LanguageConfig
) -> TokenRows:
    """Prompts without an answer: for features, and public text for the alignment that makes them."""
    return class_rows(plan.prompts(texts), NO_ANSWER, tokenizer, limit=config.max_tokens).alone()


def text_features(
    route: Route,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    config: LanguageConfig,
    layer: int,
    folder: Path | None = None,
) -> Array:
    """Numbers of texts for the QNN (N, width): mean hidden states of the model as it was first distributed.

    Args:
        route: that model.
        texts: the rows.
        tokenizer: the model's.
        config: the section `language`.
        layer: after how many of the route's layers; 0 takes the middle.
        folder: where answers are kept by content, or None.

    Raises:
        LanguageError: a layer that is not there, or a prompt that does not fit.
    """
    states = RouteStates(route)
    rows = feature_rows(feature_plan(config), texts, tokenizer, config)
    return pooled_states(states, rows, layer or states.depth // 2, folder=folder)


@dataclass(frozen=True, eq=False)
class TaskView:
    """What the rows of a run are for its language model.

    Attributes:
        plan: how rows read.
        config: the section `language`.
        tokenizer: the model's.
        words: the answers, where rows are classified; None where texts are written.
    """

    plan: TextPlan
    config: LanguageConfig
    tokenizer: PreTrainedTokenizerBase
    words: LabelWords | None

    @classmethod
    def of(cls, plan: TextPlan, config: LanguageConfig, tokenizer: PreTrainedTokenizerBase) -> TaskView:
        """The view of a plan.

        Raises:
            LanguageError: label words that cannot be told apart.
        """
        words = LabelWords.of(plan.words, tokenizer) if config.task == "classification" else None
        return cls(plan, config, tokenizer, words)

    @property
    def counts(self) -> int:
        """Length of the counts in scores: of the classes, or 1 where tokens are counted."""
        return 1 if self.words is None else len(self.words.tokens)

    @property
    def first_tokens(self) -> list[int] | None:
        """What tells the classes apart at the first answer position; None where texts are written."""
        return None if self.words is None else [tokens[0] for tokens in self.words.tokens]

    def prompts(self, texts: Sequence[str]) -> ClassRows:
        """Texts in the task's question.

        Raises:
            LanguageError: where texts are written, or a prompt does not fit.
        """
        if self.words is None:
            raise LanguageError("language.task: where texts are written there is no question to put a text into")
        return class_rows(self.plan.prompts(texts), self.words, self.tokenizer, limit=self.config.max_tokens)

    def training(self, texts: Sequence[str], labels: Labels, answers: Sequence[str] | None = None) -> TokenRows:
        """Rows to learn from; classes weigh the same where the configuration says so.

        Args:
            texts: the rows.
            labels: (N,) their classes.
            answers: to the texts, where they are instructions.
        """
        if self.words is None:
            return self._written(texts, labels, answers)
        counts = np.bincount(labels, minlength=len(self.words.tokens))
        return self.prompts(texts).answered(labels, class_weights(counts) if self.config.balance else None)

    def held_out(
        self,
        texts: Sequence[str],
        labels: Labels,
        answers: Sequence[str] | None = None,
        *,
        cache_of: CacheOf | None = None,
    ) -> HeldOut:
        """Rows to be scored, again and again.

        Args:
            texts: the rows.
            labels: (N,) their classes.
            answers: to the texts, where they are instructions.
            cache_of: where boundary states lie; in memory by default.
        """
        if self.words is None:
            written = self._written(texts, labels, answers)
            return HeldOut(labels, None, written, self.tokenizer.eos_token_id, cache_of)
        return HeldOut(labels, LabelScorer(self.prompts(texts), cache_of=cache_of), None, None, cache_of)

    def public(self, texts: Sequence[str], *, seed: int, instructions: bool = False) -> TokenRows:
        """Public texts to align on: in the task's question, or as the answer to a request where texts are written.

        Args:
            texts: public texts.
            seed: of the classes that are requested, which are drawn: no label is known.
            instructions: are the task's rows pairs of prompt and answer? Public texts are none: they stay as they are.
        """
        if instructions:
            return plain_rows(texts, self.tokenizer, limit=self.config.max_tokens)
        if self.words is not None:
            return self.prompts(texts).alone()
        drawn = stream(seed, SERVER, 0, "public-classes").integers(len(self.plan.words), size=len(texts))
        return self._written(texts, drawn.astype(np.intp), None)

    def calibration_rows(self, texts: Sequence[str], *, seed: int, instructions: bool = False) -> TokenRows:
        """The same with any answer, for `ServerLanguage.calibrate`."""
        if self.words is None:
            return self.public(texts, seed=seed, instructions=instructions)
        return self.prompts(texts).with_word(0)

    def _written(self, texts: Sequence[str], labels: Labels, answers: Sequence[str] | None) -> TokenRows:
        template, auto = self.config.prompt, self.config.prompt == "auto"
        if answers is None:
            rows = generation(texts, labels, self.plan.words, GENERATION if auto else template)
        else:
            rows = instructions(texts, answers, INSTRUCTION if auto else template)
        end = self.tokenizer.eos_token_id is not None
        return answer_rows(rows, self.tokenizer, limit=self.config.max_tokens, end=end, long_answers="cut")


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Rows that are scored along several routes; frozen layers run once a row and version.

    Attributes:
        labels: (N,) classes.
        scorer: where rows are classified.
        written: where texts are written.
        end: the end token of written texts.
        cache_of: where boundary states of written texts lie.
    """

    labels: Labels
    scorer: LabelScorer | None
    written: TokenRows | None
    end: int | None
    cache_of: CacheOf | None

    def scores(self, route: Route, calibration: Calibration | None = None) -> Scores:
        """Sums: of the label words, or (as rows of one class) over the tokens of written texts."""
        if self.scorer is not None:
            used = calibration or Calibration.none(len(self.scorer.rows.words.tokens))
            return used.scores(self.scorer.log_likelihoods(route), self.labels)
        nothing = np.zeros(1, np.intp)
        if self.written is None or not len(self.written):
            return Scores(0.0, nothing, nothing)
        found = written_scores(route, self.written, self.end, self._cache(route, self.written))
        ends = found.end[np.isfinite(found.end)]
        count = int(found.tokens.sum()) + len(ends)
        return Scores(float(found.text.sum() + ends.sum()), np.array([count], np.intp), nothing)

    def both(self, route: Route, prior: Calibration | None) -> tuple[Scores, Scores | None]:
        """Plain scores, and those with a prior divided out; the model runs once."""
        if self.scorer is None or prior is None:
            return self.scores(route), None
        found = self.scorer.log_likelihoods(route)
        return Calibration.none(found.shape[1]).scores(found, self.labels), prior.scores(found, self.labels)

    def _cache(self, route: Route, rows: TokenRows) -> StateCache | None:
        return None if self.cache_of is None else self.cache_of(route, rows)


def public_prior(prompts: LabelScorer, route: Route) -> Calibration:
    """What the model says whatever the text: biases with which public prompts get every class equally often."""
    return match_prior(prompts.log_likelihoods(route))
