"""The exact engine: any circuit of unitary gates, batched, differentiated by the adjoint method."""
