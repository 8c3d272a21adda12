"""The run config's section `language`: which model, how it is cut, tuned, aligned and sent."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from llm_qfl.federation.section import PositiveInt, Section

EMBEDDED_MODEL = "smollm2-135m"
_MODEL = re.compile(r"none|tiny(-(llama|qwen2|qwen3|gpt2))?(-[2-8])?|smollm2-135m|[\w.-]+/[\w.-]+|[./~].*")

# What a preset fixes. Budgets and rates (steps, batches, learning rates, first alignment) stay free: comparisons are
# at equal budgets. `released` is what the published code does (its proximal term has no effect), `paper` what the
# paper says, with values for lambda and eps that work where the term is live.
PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "released": {
        "kl_weight": 0.0,
        "eps": 0.0,
        "align_loss": "released",
        "align_every": 1,
        "modules": "attention",
        "emulator_rank": 8,
        "dropout": 0.05,
        "schedule": "constant",
        "clip": 0.0,
        "balance": False,
        "calibrate_steps": 0,
    },
    "paper": {"kl_weight": 0.5, "eps": 0.01, "align_loss": "relative", "align_every": 1, "calibrate_steps": 0},
}


class LanguageConfig(Section):
    """The language model beside the QNN (FedBiOT, arXiv 2406.17706)."""

    model: str = EMBEDDED_MODEL
    """`smollm2-135m` (in the pinned wheel), a folder, a hub id, `tiny[-<layers>]` (random, for tests) or `none`."""
    method: Literal["fedbiot", "fedot", "offsite", "fedlora-all", "fedlora-tail", "local"] = "fedbiot"
    """`fedbiot`; `fedot` (aligned once, never again), `offsite` (that with one site), `fedlora-all` (whole model at the
    sites, every layer tuned), `fedlora-tail` (whole model, the last layers tuned), `local` (nothing is averaged)."""
    preset: Literal["none", "released", "paper"] = "none"
    """Keys of the published code or of the paper; a key that it fixes must be left at its default or agree."""
    task: Literal["classification", "generation"] = "classification"
    """What is learned: the label word after a row's text, or (`generation`) a row's text after its label word, or its
    answer after its text (`data.answer-column`)."""
    prompt: str = "auto"
    """Template of the prompt with `{row}` where the row goes (`{label}` where its text is learned); `auto` fits the
    kind of rows."""
    label_words: str = "classes"
    """Answers of the classes, comma separated in their order; `classes` takes the labels where every one begins with a
    letter, else letters; `letters` A, B, C."""
    max_tokens: Annotated[int, Field(ge=8)] = 100
    """Most tokens of a row, answer included."""
    text: Literal["auto", "levels", "numbers"] = "auto"
    """How numeric columns are written: in words (`levels`, the default), or as numbers. Texts are taken as they are."""
    columns: PositiveInt = 10
    """Columns of a row that are written out, the most telling first; fewer where they do not fit in `max-tokens`."""
    public: str = "embedded"
    """Public text for alignment and for the prior of the label words; never the task's rows."""
    public_rows: PositiveInt = 256
    """How much of it."""
    adapter_layers: PositiveInt = 4
    """Layers that the sites tune (a)."""
    placement: Literal["tail", "ends"] = "tail"
    """Which: the last ones, or half of them first and half last (gradients then cross the emulator: slow)."""
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the other layers that sites do not get."""
    modules: Literal["all-linear", "attention"] = "all-linear"
    """Modules with a low-rank update: all linear ones, or queries and values."""
    rank: PositiveInt = 8
    """Rank of the sites' updates."""
    emulator_rank: PositiveInt = 16
    """Rank of the update that aligns the compressed model."""
    scale: Annotated[float, Field(gt=0)] = 2.0
    """What an update is multiplied by (LoRA's alpha / rank)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the updates being trained."""
    every: PositiveInt = 7
    """The adapter is trained in round 1 and every so many rounds after."""
    steps: PositiveInt = 8
    """Optimizer steps of a site in such a round."""
    batch_size: PositiveInt = 16
    """Rows a step."""
    micro_batch: Annotated[int, Field(ge=0)] = 0
    """Rows that go through the layers at once, for less memory; 0 takes the batch. Results are the same."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.002
    """AdamW's, at the first step of the run."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate over all of a site's language steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of a gradient; 0 leaves it."""
    eps: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the proximal term: eps/2 times the squared distance of the effective weights to the received ones."""
    norm_bound: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Longest update (Euclidean, over all matrices) of a site's adapter that enters the aggregation; longer ones are
    scaled down to it; 0 scales none. The rule is `server.aggregation`, as for the QNN."""
    balance: bool = True
    """Classes weigh the same in a site's loss, whatever their number of rows there."""
    align_first: Annotated[int, Field(ge=0)] = 20
    """Alignment steps before the first round."""
    align_every: Annotated[int, Field(ge=0)] = 0
    """Align again after every so many rounds in which the adapter was trained; 0 never."""
    align_steps: PositiveInt = 5
    """Steps of each such alignment."""
    align_batch: PositiveInt = 16
    """Public rows an alignment step."""
    align_rate: Annotated[float, Field(gt=0)] = 0.002
    """AdamW's learning rate in the first alignment; a cosine over each call."""
    realign_rate: Annotated[float, Field(gt=0)] = 0.0002
    """AdamW's learning rate in later ones: from a fresh optimizer, the first's throws a converged emulator off."""
    align_loss: Literal["relative", "released"] = "relative"
    """Boundary loss: relative per token, position 0 and padding left out, or the published code's form."""
    kl_weight: Annotated[float, Field(ge=0)] = 0.0
    """Lambda: weight of KL(full model || compressed model) in alignment, both with the current adapter; 0 skips it."""
    kl_tokens: Annotated[int, Field(ge=0)] = 256
    """Positions of a batch that enter the KL, drawn each step; 0 takes all."""
    calibrate_steps: Annotated[int, Field(ge=0)] = 0
    """Steps, after the last aggregation, that fit the full model's answers on public prompts to the compressed one's
    (no labels; not in the paper). Where public text is of the task's kind, 200 gave back what the transfer had lost."""
    calibrate_rate: Annotated[float, Field(gt=0)] = 0.001
    """AdamW's learning rate there."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Score the language model after every so many of its rounds; 0 scores the first and the last only."""
    wire: Literal["fp32", "fp16", "int8"] = "fp32"
    """Numbers on the wire; what rounding loses is added to the next answer."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers of the frozen layers at a site: `auto` times both. The tuned layers are float32 on a CPU."""
    quantization: Literal["none", "nf4"] = "none"
    """Sites load the frozen model in 4 bits (bitsandbytes)."""
    models_url: str = "none"
    """Address under which a web server offers the server's folder of compressed models (`models/compressed` in
    `$FLWR_HOME/llm-qfl` or `~/.cache/llm-qfl`), for sites on other machines; by default sites are given the path."""

    @model_validator(mode="after")
    def _preset_agrees(self) -> LanguageConfig:
        problems = []
        for name, value in PRESETS[self.preset].items():
            mine, default = getattr(self, name), type(self).model_fields[name].default
            if mine not in (value, default):
                key = name.replace("_", "-")
                problems.append(
                    f"language.{key}: the preset {self.preset!r} fixes it to {value!r}, got {mine!r}; leave one out"
                )
        if not _MODEL.fullmatch(self.model):
            problems.append(
                f"language.model: expected {EMBEDDED_MODEL}, none, tiny[-<2 to 8 layers>], a hub id (owner/name) or a "
                f"folder (starting with /, . or ~), got {self.model!r}"
            )
        if self.placement == "ends" and self.adapter_layers < 2:
            problems.append("language.adapter-layers: placement 'ends' needs at least 2, got 1")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def effective(self) -> LanguageConfig:
        """The section with the preset's values in place."""
        return self.model_copy(update=PRESETS[self.preset])

    @property
    def enabled(self) -> bool:
        """Is there a language model at all?"""
        return self.model != "none"

    @property
    def compresses(self) -> bool:
        """Do sites get a compressed model (else the whole one), and does the server align it?"""
        return self.method not in ("fedlora-all", "fedlora-tail")

    @property
    def federated(self) -> bool:
        """Are the sites' adapters averaged?"""
        return self.method != "local"

    @property
    def one_site(self) -> bool:
        """Does one site alone train (offsite-tuning)?"""
        return self.method == "offsite"

    @property
    def realigns(self) -> bool:
        """Is there alignment after the first?"""
        return self.method == "fedbiot" and self.effective().align_every > 0

    def split_arguments(self, layers: int) -> tuple[int, int, float, int]:
        """How a model of so many layers is cut: n, a, beta, head of a `SplitPlan`."""
        if self.method == "fedlora-all":
            return layers, layers, 0.0, 0
        head = self.adapter_layers // 2 if self.placement == "ends" else 0
        return layers, self.adapter_layers, self.beta if self.compresses else 0.0, head
