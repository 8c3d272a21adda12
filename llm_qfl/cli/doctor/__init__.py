"""`llm-qfl doctor`: is this machine ready to be a site? One line a check, and what to do about each that is red.

- `check`: what a check is; one that raises is a red line and never stops the others.
- `node`: node config and run config as a SuperNode and `flwr run` take them.
- `machine`, `container`, `packages`, `data`, `quantum`, `ibm`: the checks.
- `run`: all of them in order, on a screen or as JSON.
"""
