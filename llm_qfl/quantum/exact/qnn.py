"""`ExactEstimatorQNN` and `ExactSamplerQNN`: qiskit-machine-learning's networks on the exact engine.

Subclasses of the originals (other classes of that package test for them) with the same constructor, `forward` and
`backward`. Values are exact as with the originals' default primitives; gradients come from one adjoint sweep over the
whole batch in place of two circuits per gate, sample and observable. With `shots` the values are sampled from the exact
distribution, and gradients follow the parameter-shift rule with as many shots for each of its circuits, as on hardware.

Exceptions from drop-in behaviour, with reasons in `docs/decisions/0003-drop-in.md`:

* `estimator`, `sampler`, `gradient` and `pass_manager` would have no effect and are refused, as is a
  `default_precision` other than the default and 0 (the original ignores it with its default primitive).
* `interpret` is called once for every bit string, not for those alone that occur.
* `SamplerQNN` averages over the batch where the circuit measures into registers other than `meas`, gives zeros for a
  circuit without parameters, and undoes a transpiler's layout in `forward` alone, also where the measured bits are in
  order already; here each row is its own, and `backward` is the derivative of `forward`.
* `backward` of the originals gives `(None, None)` where inputs or weights are missing; here that is an error.
* `EstimatorQNN` fails on final measurements, projectors and empty batches; here they work.
"""

from llm_qfl.quantum.exact.estimator_qnn import ExactEstimatorQNN
from llm_qfl.quantum.exact.sampler_qnn import ExactSamplerQNN

__all__ = ["ExactEstimatorQNN", "ExactSamplerQNN"]
