"""Python imports this at its start wherever this folder is on PYTHONPATH: it begins the audit
(`tests/audit.py`) in a process that a test has started, before anything else is imported.
"""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "audit_of_tests", Path(__file__).resolve().parents[1] / "audit.py"
)
_audit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_audit)
_audit.install()
