"""Tables and figures of runs."""

from ostinato.report.plots import accuracy_curve, accuracy_heatmap, compare_curves
from ostinato.report.tables import markdown_table, read_summary, run_table, summary_csv, task_line

__all__ = [
    "accuracy_curve",
    "accuracy_heatmap",
    "compare_curves",
    "markdown_table",
    "read_summary",
    "run_table",
    "summary_csv",
    "task_line",
]
