"""Shared by all tests: one thread for torch, and an honest account of what was skipped."""

import pytest
import torch

torch.set_num_threads(1)  # tests run beside each other and their networks are small


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List every skip with its reason; a skipped test proves nothing."""
    for report in terminalreporter.stats.get("skipped", []):
        terminalreporter.write_line(f"SKIPPED {report.nodeid}: {report.longrepr[2]}")
