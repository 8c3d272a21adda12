"""The policy at run time: state, actions, rules, selection, stops, shield, prices. Numbers in, one decision out.

Pure Python and numpy; the language model that scores options is `llm_qfl.language.policy`, imported where it is used.
"""

from pathlib import Path

SHIPPED = Path(__file__).parent / "policy.json"
"""The trained policy of this release: it travels in the app and lies beside this package wherever that is unpacked."""
