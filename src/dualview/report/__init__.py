"""Pages: one HTML file that shows a model, what its surrogate is worth, and why it predicted what it did."""

from dualview.report.page import write_report

__all__ = ["write_report"]
