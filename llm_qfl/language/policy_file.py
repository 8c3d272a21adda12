"""A trained policy as one JSON file: float16 in base64, its base model's digest, the command that made it.

A Flower app bundle takes JSON and drops safetensors; 61,000 to 330,000 parameters are .2 to .9 MB of it. Reading is
strict: another format, base model, field or shape is refused, never guessed.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.lora import Arrays, LoraSpec, digest_of_arrays
from llm_qfl.language.models import BaseModel
from llm_qfl.language.policy import PolicyModel
from llm_qfl.language.stack import Stack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1


@dataclass(frozen=True, eq=False)
class PolicyFile:
    """A policy, read.

    Attributes:
        base_name, base_digest: the model that it belongs to.
        fields: name -> how many options.
        spec: the adapter's shape.
        layers: how many of the last layers.
        arrays: its matrices, float32 (what float16 kept of them).
        ranges: the state's buckets that it was trained on, name -> (least, most).
        command: what made it.
        notes: what -> value (data sets, seeds, scores).
    """

    base_name: str
    base_digest: str
    fields: Mapping[str, int]
    spec: LoraSpec
    layers: int
    arrays: Arrays
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    command: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        policy: PolicyModel,
        base_name: str,
        *,
        ranges: Mapping[str, tuple[int, int]],
        command: str,
        notes: Mapping[str, str] | None = None,
    ) -> PolicyFile:
        """A policy as it stands, rounded to float16.

        Raises:
            LanguageError: a matrix holds numbers that float16 cannot.
        """
        with np.errstate(over="ignore"):  # an overflow is found below
            halves = {key: value.astype(np.float16) for key, value in policy.adapter.arrays().items()}
        bad = sorted(key for key, value in halves.items() if not np.isfinite(value).all())
        if bad:
            raise LanguageError(f"policy: {bad[0]} holds numbers that float16 cannot; train with a smaller rate")
        return cls(
            base_name=base_name,
            base_digest=policy.base,
            fields=dict(policy.fields),
            spec=policy.adapter.spec,
            layers=len(policy.adapter.layers),
            arrays={key: value.astype(np.float32) for key, value in halves.items()},
            ranges=dict(ranges),
            command=command,
            notes=dict(notes or {}),
        )

    def digest(self) -> str:
        """SHA-256 over the matrices, hexadecimal."""
        return digest_of_arrays(self.arrays)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        data = {
            "format": FORMAT,
            "base": {"name": self.base_name, "digest": self.base_digest},
            "fields": dict(self.fields),
            "lora": {"rank": self.spec.rank, "alpha": self.spec.alpha, "modules": self.spec.modules},
            "layers": self.layers,
            "ranges": {name: list(pair) for name, pair in self.ranges.items()},
            "command": self.command,
            "notes": dict(self.notes),
            "digest": self.digest(),
            "arrays": {
                key: {
                    "shape": list(value.shape),
                    "float16": base64.b64encode(value.astype("<f2").tobytes()).decode(),
                }
                for key, value in sorted(self.arrays.items())
            },
        }
        part = path.with_name(path.name + ".partial")
        try:
            part.write_text(json.dumps(data, indent=1) + "\n")
            part.replace(path)
        except OSError as error:
            raise LanguageError(f"policy: cannot write {path}: {error.strerror}") from error

    def load(self, base: BaseModel) -> PolicyModel:
        """The policy on its base model.

        Raises:
            LanguageError: another base model, or matrices that do not fit it.
        """
        self.check_base(base.digest)
        policy = PolicyModel.on(base, self.fields, spec=self.spec, layers=self.layers)
        policy.adapter.load(self.arrays)
        return policy

    def load_on(self, stack: Stack, tokenizer: PreTrainedTokenizerBase, digest: str) -> PolicyModel:
        """The policy on a stack that is there already, after its other adapters; the frozen layers are shared.

        Args:
            stack: the full model's.
            tokenizer: the model's.
            digest: of the base model.

        Raises:
            LanguageError: another base model, or matrices that do not fit it.
        """
        self.check_base(digest)
        policy = PolicyModel(stack, tokenizer, digest, self.fields, spec=self.spec, layers=self.layers)
        policy.adapter.load(self.arrays)
        return policy

    def check_base(self, digest: str) -> None:
        """Refuse a policy on a model that it was not trained on.

        Raises:
            LanguageError: with both digests.
        """
        if digest != self.base_digest:
            raise LanguageError(
                f"policy: trained on {self.base_name} ({self.base_digest[:12]}), this model is {digest[:12]}; take "
                "that language.model, or train a policy on this one"
            )


def read_policy(path: Path, fields: Mapping[str, int]) -> PolicyFile:
    """Read a policy.

    Args:
        path: the file.
        fields: name -> how many options, as the program has them, in order.

    Raises:
        LanguageError: there is none, it is damaged, or it was trained for other actions.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise LanguageError(f"agent.policy: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise LanguageError(f"agent.policy: {path} is not JSON: {error}") from error
    try:
        found = _parse(data)
        digest = str(data["digest"])
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise LanguageError(f"agent.policy: {path} is not a policy file ({type(error).__name__}: {error})") from error
    if found.digest() != digest:
        raise LanguageError(f"agent.policy: {path} is damaged: its matrices do not have the digest that it names")
    if list(found.fields.items()) != list(fields.items()):
        raise LanguageError(
            f"agent.policy: {path} was trained for {dict(found.fields)}, this release has {dict(fields)}; train it anew"
        )
    return found


def _parse(data: Mapping[str, Any]) -> PolicyFile:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']!r}, expected {FORMAT}")
    lora = data["lora"]
    return PolicyFile(
        base_name=str(data["base"]["name"]),
        base_digest=str(data["base"]["digest"]),
        fields={str(name): int(size) for name, size in data["fields"].items()},
        spec=LoraSpec(int(lora["rank"]), float(lora["alpha"]), modules=str(lora["modules"])),
        layers=int(data["layers"]),
        arrays={str(key): _matrix(value) for key, value in data["arrays"].items()},
        ranges={str(name): (int(low), int(high)) for name, (low, high) in data["ranges"].items()},
        command=str(data["command"]),
        notes={str(name): str(value) for name, value in data["notes"].items()},
    )


def _matrix(value: Mapping[str, Any]) -> np.ndarray:
    raw = base64.b64decode(value["float16"], validate=True)
    return np.frombuffer(raw, "<f2").reshape([int(n) for n in value["shape"]]).astype(np.float32)
