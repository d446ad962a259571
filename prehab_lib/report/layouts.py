"""How a table of scores is laid out: which field runs across, and what the table is told apart by.

Most tables are methods by removed fraction. A further layout is one entry of LAYOUTS.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prehab_lib.tasks import glue, rules

SPLIT = (
    "paper_table",
    "dataset",
    "model",
    "split",
)  # values that differ here make tables of their own


@dataclass(frozen=True)
class Layout:
    """Scores of several tasks: a column a task, a block a removed fraction.

    name: ends the name of the table's file. title: what the scores are. tasks: values of the record
    field `dataset`, in the order of the columns -> the metric, None for any. paper_table: records
    of this table alone, None for any. average: fn(task -> score) -> the last column, for rows that
    have every task; None for no such column. average_note: how it is computed, one sentence.
    """

    name: str
    title: str
    tasks: Mapping[str, str | None] = field(default_factory=dict)
    paper_table: str | None = None
    average: Callable[[Mapping[str, float]], float] | None = None
    average_note: str = ""

    def takes(self, record: dict) -> bool:
        """Whether a record belongs into a table of this layout."""
        task = record.get("dataset")
        return (
            task in self.tasks
            and self.tasks[task] in (None, record["metric"])
            and self.paper_table in (None, record.get("paper_table"))
        )


LAYOUTS = (
    Layout(
        "III",
        "scores by task",
        {column: task.metric for task in glue.GLUE.values() for column in task.scored},
        paper_table="III",
        average=glue.average,
        average_note="Average: the mean of eight tasks, MNLI's two columns merged first; the paper's row of the uncompressed "
        "model is the plain mean of nine columns.",
    ),
    # Names are read from the source: the module behind them costs seconds of torch.
    Layout(
        "prose",
        "scores by embedded task",
        dict.fromkeys(rules.table_keys("tasks.prose_tasks", "PROSE")),
    ),
)


def of(record: dict) -> Layout | None:
    """The first layout that takes a record, None for a table by removed fraction."""
    return next((layout for layout in LAYOUTS if layout.takes(record)), None)
