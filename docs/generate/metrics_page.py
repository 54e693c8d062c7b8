"""Every metric of metrics.jsonl and every column of the terminal."""

from __future__ import annotations

from g2rpo_fast.metric_names import COLUMNS, METRICS
from generate.as_markdown import code, prose, table


def metrics_page() -> str:
    rows = [
        (
            "<br>".join(map(code, metric.names)),
            prose(metric.unit),
            prose(metric.what),
            prose(metric.over),
            prose(metric.source),
        )
        for metric in METRICS
    ]
    return table(("metric", "unit", "what it is", "mean over", "measured by"), rows)


def columns_page() -> str:
    rows = [
        (code(column.heading), prose(column.what), ", ".join(map(code, column.reads))) for column in COLUMNS
    ]
    return table(("column", "what it is", "reads"), rows)
