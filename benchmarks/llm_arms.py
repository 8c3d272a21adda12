"""The arms of `benchmarks.llm`, each run in a process of its own."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS, BATCH, MICRO, TOKENS = 48, 16, 4, 48
OURS = {"ours": 0, f"ours, micro-batch {MICRO}": MICRO}
PADDED, PADDING = "plain, pruned model, more padding", 7
FULL, PRUNED = "plain, full model", "plain, pruned model"
LEAN = ", head at answers"
"""transformers' own forward makes logits of every position; these arms ask for those of the answers alone."""
PLAIN = (FULL, PRUNED, PRUNED + LEAN, f"{FULL}{LEAN}, micro-batch {MICRO}")
RATE, EPS, DECAY, BETAS_ADAM, CLIP = 2e-3, 0.01, 0.01, (0.9, 0.95), 1.0


@dataclass(frozen=True)
class Step:
    """How a plain step is written.

    Attributes:
        padding: columns more than the longest row needs.
        lean: logits at the answers alone.
        micro: rows at once; 0 takes the batch whole.
    """

    padding: int = 0
    lean: bool = False
    micro: int = 0

    @classmethod
    def of(cls, arm: str) -> Step:
        """By the arm's name."""
        return cls(PADDING if arm == PADDED else 0, LEAN in arm, MICRO if arm.endswith(f"micro-batch {MICRO}") else 0)


Times = tuple[float, float]
"""Wall clock and processor, seconds."""


def now() -> Times:
    """Both clocks."""
    return time.perf_counter(), time.process_time()


def since(start: Times) -> Times:
    """What passed."""
    wall, processor = now()
    return wall - start[0], processor - start[1]


def peak_bytes() -> int:
    """Most resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def make_rows(vocabulary: int, rows: int = ROWS) -> Any:
    """Rows of random tokens, 32 to 48 long, the last one learned: as tweets in a question with a label word."""
    import numpy as np

    from llm_qfl.language.batches import TokenRows

    random = np.random.Generator(np.random.PCG64(5))
    ids = [random.integers(10, vocabulary, size=int(random.integers(TOKENS - 16, TOKENS + 1))) for _ in range(rows)]
    return TokenRows.of(ids, [len(row) - 1 for row in ids])


def language_config(beta: float, epochs: int, micro: int = 0) -> Any:
    """The section of the run config that the arms share."""
    from llm_qfl.federation.config_language import LanguageConfig

    return LanguageConfig(
        beta=beta,
        steps=epochs * ROWS // BATCH,
        batch_size=BATCH,
        micro_batch=micro,
        dtype="float32",
        schedule="constant",
        eps=EPS,
    )


def export(folder: Path, beta: float) -> dict[str, Any]:
    """Write the compressed model and what a server sends with it; the emulator's update is not zero."""
    import numpy as np
    from safetensors.numpy import save_file

    from llm_qfl.language.models import load_base
    from llm_qfl.language.server import ServerLanguage

    server = ServerLanguage(load_base("smollm2-135m", model_cache()), language_config(beta, 1), seed=1)
    random = np.random.Generator(np.random.PCG64(2))
    state = server.state()
    for key, value in state.items():
        if key.startswith(("emulator/", "first/")) and key.endswith("/B"):
            state[key] = random.normal(0, 1e-3, value.shape).astype(np.float32)
    server.load_state(state)
    model = server.export(folder)
    sent, again = server.broadcast(emulator=True), server.broadcast(emulator=False)
    save_file(sent.arrays, folder / "sent.safetensors")
    return {
        "model": str(model.folder),
        "sha256": model.sha256,
        "size": model.size,
        "digest": sent.emulator_digest,
        "first": sent.first_digest,
        "down_first": sent.size,
        "down": again.size,
    }


def model_cache() -> Path:
    """Where the converted model lies."""
    return Path.home() / ".cache" / "llm-qfl" / "models"


def run_ours(given: Mapping[str, Any], epochs: int, beta: float, micro: int) -> tuple[dict[str, Any], Times, int]:
    """A round as `ClientLanguage` does it: (adapter, seconds, bytes up)."""
    from safetensors.numpy import load_file

    from llm_qfl.language.client import ClientLanguage
    from llm_qfl.language.compress import load_compressed

    model = load_compressed(Path(given["model"]), given["sha256"])
    with tempfile.TemporaryDirectory() as folder:
        client = ClientLanguage(model, language_config(beta, epochs, micro), folder=Path(folder))
        client.receive(load_file(given["sent"]), given["digest"], given["first"])
        rows = make_rows(client.stack.vocabulary)
        started = now()
        update = client.train(rows, seed=3)
        seconds = since(started)
    return client.adapter.arrays(), seconds, update.size


def run_plain(given: Mapping[str, Any], epochs: int, *, full: bool, step: Step) -> tuple[dict[str, Any], Times, int]:
    """The same round with PEFT and a loop: a padded batch through the whole model, loss on the answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM

    from llm_qfl.language.compress import load_compressed
    from llm_qfl.language.models import resolve_folder

    sent = load_file(given["sent"])
    if full:
        model = AutoModelForCausalLM.from_pretrained(resolve_folder("smollm2-135m", model_cache()), dtype=torch.float32)
        plan = None
    else:
        compressed = load_compressed(Path(given["model"]), given["sha256"])
        model, plan = compressed.stack.model.float(), compressed.manifest.plan
    count = int(model.config.num_hidden_layers)
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    tail = LoraConfig(r=8, lora_alpha=16, target_modules=linear, layers_to_transform=list(range(count - 4, count)))
    peft = get_peft_model(model, tail, adapter_name="adapter")
    names = ["adapter"]
    if not full:
        kept = LoraConfig(r=16, lora_alpha=32, target_modules=linear, layers_to_transform=list(range(count - 4)))
        peft.add_adapter("emulator", kept)
        names.append("emulator")
    peft.base_model.set_adapter(names)
    tuned = _load(peft, sent, plan, count)
    rows = make_rows(int(model.config.vocab_size))
    started = now()
    _loop(peft, tuned, rows, epochs, step)
    seconds = since(started)
    arrays = {key: value.detach().numpy().copy() for key, value in tuned.items()}
    return arrays, seconds, sum(value.nbytes for value in arrays.values())


def _load(peft: Any, sent: Mapping[str, Any], plan: Any, count: int) -> dict[str, Any]:
    """Put what the server sent into PEFT's matrices; the adapter's are returned by our names and trained."""
    import torch

    tuned = {}
    for name, parameter in peft.named_parameters():
        parameter.requires_grad_(requires_grad=False)
        if ".lora_" not in name:
            continue
        tokens = name.split(".")  # base_model.model.model.layers.<n>.<module path>.lora_A.<adapter>.weight
        number, side, adapter = int(tokens[4]), tokens[-3][-1], tokens[-2]
        layer = number + 30 - count if plan is None else plan.to_full(number)
        key = f"{layer}/{'.'.join(tokens[5:-3])}/{side}"
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(sent[f"{adapter}/{key}"]))
        if adapter == "adapter":
            tuned[key] = parameter.requires_grad_(requires_grad=True)
    return tuned


def _loop(model: Any, tuned: Mapping[str, Any], rows: Any, epochs: int, step: Step) -> None:
    """The steps; the proximal term in its plain form, two weight-sized products a module."""
    import numpy as np
    import torch
    from torch.nn import functional

    from llm_qfl.language.batches import collate, draw_batches

    anchor = {key: value.detach().clone() for key, value in tuned.items()}
    optimizer = torch.optim.AdamW(tuned.values(), lr=RATE, betas=BETAS_ADAM, weight_decay=DECAY)
    model.eval()  # no dropout is asked for: eval only leaves it out
    steps = epochs * ROWS // BATCH
    for chosen in draw_batches(len(rows), BATCH, steps, np.random.Generator(np.random.PCG64(3))):
        optimizer.zero_grad(set_to_none=True)
        size = step.micro or BATCH
        for part in (chosen[start : start + size] for start in range(0, BATCH, size)):
            batch = collate(rows, part)
            ids, mask = (functional.pad(one, (0, step.padding)) for one in (batch.ids, batch.mask.long()))
            if step.lean:
                hidden = model.base_model.model.model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
                logits = model.base_model.model.lm_head(hidden[batch.where[0], batch.where[1]])
            else:
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[
                    batch.where[0], batch.where[1]
                ]
            # one answer a row, so a part's mean weighs as much as it has rows
            (functional.cross_entropy(logits.float(), batch.target) * len(part) / BATCH).backward()
        distance = torch.zeros(())
        for key in [name[:-2] for name in tuned if name.endswith("/A")]:
            now = tuned[f"{key}/B"] @ tuned[f"{key}/A"]
            distance = distance + (2.0 * (now - anchor[f"{key}/B"] @ anchor[f"{key}/A"])).square().sum()
        (0.5 * EPS * distance).backward()
        torch.nn.utils.clip_grad_norm_(list(tuned.values()), CLIP)
        optimizer.step()


def one(arm: str, given: Mapping[str, Any], epochs: int, beta: float, threads: int) -> dict[str, Any]:
    """One arm in this process: import everything first, then the round."""
    import numpy as np
    import peft  # noqa: F401
    import torch
    from safetensors.numpy import load_file

    import llm_qfl.language.client
    import llm_qfl.language.models  # noqa: F401

    torch.set_num_threads(threads)
    load_file(given["sent"])
    if arm == "nothing":
        return {"peak": peak_bytes()}
    if arm in OURS:
        arrays, seconds, up = run_ours(given, epochs, beta, OURS[arm])
    else:
        arrays, seconds, up = run_plain(given, epochs, full=arm.startswith(FULL), step=Step.of(arm))
    np.savez(given["out"], **{key.replace("/", "|"): value for key, value in arrays.items()})
    return {"peak": peak_bytes(), "seconds": seconds[0], "processor": seconds[1], "up": up}
