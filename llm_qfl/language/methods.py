"""What the section `language` means for LoRAs and alignment; both sides derive it from the same config."""

from __future__ import annotations

from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.language.align import AlignSettings
from llm_qfl.language.lora import LoraSpec
from llm_qfl.language.training import StepBudget

ADAPTER, EMULATOR = "adapter", "emulator"
FIRST = "first"  # on the wire and in a checkpoint: the emulator as it was first distributed, beside that of the round


def lora_specs(config: LanguageConfig) -> dict[str, LoraSpec]:
    """Shapes of the LoRAs of a run, by adapter name; they travel in the compressed model's manifest."""
    config = config.effective()
    specs = {ADAPTER: LoraSpec(config.rank, config.scale * config.rank, config.dropout, config.modules)}
    if config.compresses:
        rank = config.emulator_rank
        specs[EMULATOR] = LoraSpec(rank, config.scale * rank, config.dropout, config.modules)
    return specs


def align_settings(config: LanguageConfig, steps: int, *, again: bool) -> AlignSettings:
    """How one call of so many alignment steps is done.

    Args:
        config: the section.
        steps: of the call.
        again: has the emulator been aligned before?
    """
    config = config.effective()
    budget = StepBudget(
        steps,
        config.align_batch,
        config.realign_rate if again else config.align_rate,
        total=steps if config.schedule == "cosine" else 0,
        weight_decay=config.weight_decay,
        clip=config.clip,
    )
    return AlignSettings(budget, config.kl_weight, config.kl_tokens, config.align_loss)


def step_budget(config: LanguageConfig, offset: int, total: int) -> StepBudget:
    """A site's steps of one round.

    Args:
        config: the section.
        offset: language steps of the run before this round.
        total: language steps of the whole run.
    """
    config = config.effective()
    return StepBudget(
        config.steps,
        config.batch_size,
        config.learning_rate,
        offset,
        total if config.schedule == "cosine" else 0,
        config.micro_batch,
        config.weight_decay,
        clip=config.clip,
    )
