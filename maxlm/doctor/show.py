"""The findings as lines, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from maxlm.health.finding import Finding, Level, worst

WORDS = {Level.OK: "ok", Level.WARNING: "warning", Level.PROBLEM: "PROBLEM"}
WIDTH = len("compile cache")


def to_line(finding: Finding) -> str:
    """Return the line of a finding, with its cure."""
    return f"{WORDS[finding.level]:<8} {finding.check:<{WIDTH}} {finding}\n"


def to_json(findings: Sequence[Finding]) -> str:
    """Return the findings with their figures."""
    listed = [
        {
            "check": finding.check,
            "level": finding.level.name.lower(),
            "text": finding.text,
            "cure": finding.cure,
            "values": finding.values,
        }
        for finding in findings
    ]
    return json.dumps({"level": worst(findings).name.lower(), "findings": listed}, indent=1) + "\n"
