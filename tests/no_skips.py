"""The whole suite as CI runs it, `python -m tests.no_skips`: a skipped test is a failure."""

from __future__ import annotations

import sys

import pytest


class NoSkips:
    """A pytest plug-in that turns every skip into a failure."""

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item):  # type: ignore[no-untyped-def]
        outcome = yield
        report = outcome.get_result()
        if report.skipped:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped, but CI has all that it needs: {report.longrepr}"


if __name__ == "__main__":
    sys.exit(pytest.main(["--durations=15", *sys.argv[1:]], plugins=[NoSkips()]))
