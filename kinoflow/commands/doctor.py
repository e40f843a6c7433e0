"""kinoflow doctor."""

from __future__ import annotations

from dataclasses import asdict

from kinoflow.console import show
from kinoflow.doctor import as_text, examine


def command(json: bool = False) -> None:
    """What this machine can and cannot do, and the remedy for each.

    Args:
        json: Print JSON.
    """
    findings = examine()
    show({"findings": [asdict(finding) for finding in findings]}, json, as_text(findings))
