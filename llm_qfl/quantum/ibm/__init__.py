"""IBM Quantum jobs: one thin adapter over qiskit-ibm-runtime, and a ledger because of which no job is paid twice.

- `entry`, `ledger`: intents and results on the site's disk.
- `submission`, `waiting`: intent -> exactly one job -> result, whenever the process dies.
- `account`, `transport`, `service`, `answers`: what talks to qiskit-ibm-runtime, the optional extra `ibm`.
- `modes`: the site's open batch or session, and what a session costs beside its jobs.
- `budget`: what a job would cost, checked before anything is spent.
- `runner`: expectation values and counts of a batch as one PUB.

Nothing here is imported before a site's backend is `ibm:...`.
"""
