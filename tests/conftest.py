"""Shared by all tests: one thread for torch, and an honest account of what was skipped."""

import os

import pytest
import torch

import envs  # noqa: F401 (decides how MuJoCo renders, before MuJoCo is loaded)

torch.set_num_threads(1)  # tests run beside each other and their networks are small


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List every skip with its reason; a skipped test proves nothing."""
    for report in terminalreporter.stats.get("skipped", []):
        terminalreporter.write_line(f"SKIPPED {report.nodeid}: {report.longrepr[2]}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail when more tests were skipped than ``KINOFLOW_SKIPS`` allows."""
    allowed = os.environ.get("KINOFLOW_SKIPS")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(reporter.stats.get("skipped", [])) if reporter else 0
    if allowed is not None and skipped > int(allowed):
        print(f"\n{skipped} tests were skipped, {allowed} may be; install what they need")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
