"""From a model, a machine and a plan to a prediction.

pricing.py          operators -> seconds (device and host)
segment_costs.py    one sharded segment -> its pieces of work
placement.py        axes of a plan -> groups of ranks on nodes
partition.py        units -> pipeline stages
buckets.py          gradients -> buckets
units.py            segments -> stage units with data-parallel communication
memory.py           what each rank holds
optimizer_costs.py  the update
uncertainty.py      the interval
assemble.py         all of it for one plan
forecaster.py       one model on one machine, priced once for many plans
"""

from costmodel.predict.forecaster import Forecast, Forecaster
from costmodel.predict.prediction import HardwareUsed, Prediction, StageMemory

__all__ = ["Forecast", "Forecaster", "HardwareUsed", "Prediction", "StageMemory"]
