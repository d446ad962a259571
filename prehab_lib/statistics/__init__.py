"""What calibration data can say about a layer: each file's table of statistics, put together.

`stats.collect` looks up here what it is asked for.  A new statistic is a function or class and one
line in the table of its file: sums over a layer's inputs in `inputs`, over per-sample gradients in
`fisher`.  One that takes a pass of its own adds its table to `PASSES`.
"""

from prehab_lib.statistics.fisher import LOSS_STATISTICS
from prehab_lib.statistics.inputs import INPUT_STATISTICS
from prehab_lib.statistics.logit_gram import LOGIT_STATISTICS

# name -> function (model, modules, batches, wanted names, **settings) -> layer -> {name: value}
PASSES = LOSS_STATISTICS | LOGIT_STATISTICS
KNOWN = [*INPUT_STATISTICS, "influence", *sorted(PASSES)]
