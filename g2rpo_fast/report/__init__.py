"""Runs side by side on one HTML page: what one looks at while they train, and shows when they are done."""

from g2rpo_fast.report.page import page
from g2rpo_fast.report.runs import Run, read_runs

__all__ = ["Run", "page", "read_runs"]
