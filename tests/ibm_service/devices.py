"""What the loopback service offers: FakeManilaV2's configuration and calibration under other names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibm_quantum_schemas.common import CompressedTensorModel
from ibm_quantum_schemas.executor.version_2_0 import ParamsModel, QuantumProgramResultModel
from ibm_quantum_schemas.executor.version_2_0.models import (
    ItemMetadataModel,
    MetadataModel,
    QuantumProgramResultItemModel,
)
from qiskit_aer import AerSimulator
from qiskit_ibm_runtime.fake_provider import FakeManilaV2
from qiskit_ibm_runtime.fake_provider.executor.run_quantum_program import run_quantum_program
from qiskit_ibm_runtime.options_models.simulator import SimulatorOptions
from qiskit_ibm_runtime.quantum_program.converters.converters_2_0 import (
    passthrough_data_to_2_0,
    quantum_program_from_2_0,
)
from samplomatic.quantum_program import SamplexItem


@dataclass
class Device:
    name: str
    noisy: bool = False
    online: bool = True
    status: str = "active"
    queue: int = 0

    def _fake_file(self, kind: str) -> dict[str, Any]:
        fake = FakeManilaV2()
        return json.loads((Path(fake.dirname) / getattr(fake, f"{kind}_filename")).read_text())

    def listing(self) -> dict[str, Any]:
        state = "online" if self.online else "offline"
        return {"name": self.name, "status": {"name": state}, "queue_length": self.queue, "qubits": 5}

    def configuration(self) -> dict[str, Any]:
        return self._fake_file("conf") | {"backend_name": self.name, "simulator": False}

    def properties(self) -> dict[str, Any]:
        return self._fake_file("props") | {"backend_name": self.name}

    def run(self, params: dict[str, Any], seed: int) -> str:
        """The executor's parameters as they came -> its result as it goes out."""
        program, _ = quantum_program_from_2_0(ParamsModel.model_validate(params))
        for item in program.items:  # what comes over the wire must be finalised before it can be sampled
            if isinstance(item, SamplexItem):
                item.samplex.finalize()
        simulator = FakeManilaV2() if self.noisy else AerSimulator()
        result = run_quantum_program(simulator, program, SimulatorOptions(seed_simulator=seed, angle_decimals=12))
        items = [
            QuantumProgramResultItemModel(
                results={name: CompressedTensorModel.from_numpy(values) for name, values in dict(item).items()},
                metadata=ItemMetadataModel(),
            )
            for item in result
        ]
        return QuantumProgramResultModel(
            data=items,
            metadata=MetadataModel(chunk_timing=[]),
            passthrough_data=passthrough_data_to_2_0(result.passthrough_data),
            semantic_role=program._semantic_role,
        ).model_dump_json()
