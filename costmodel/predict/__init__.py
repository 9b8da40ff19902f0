"""From a model, a machine and a plan to a prediction.

pricing.py          operators -> seconds (device and host)
segment_costs.py    one sharded segment -> its pieces of work
placement.py        axes of a plan -> groups of ranks on nodes
partition.py        units -> pipeline stages of least bottleneck
planned.py          units -> a plan's stages under transfers and memory
stage_sums.py       any run of units as a stage
pools.py            what uneven stages cost on pools of equal or unlike devices
staged.py           the best pipeline of uneven, replicated stages, held against the engine
throughput.py       the same without a flush (PipeDream)
mixed.py            replicas on unlike devices, uneven shares of a batch
buckets.py          gradients -> buckets
units.py            segments -> stage units with data-parallel communication
memory.py           what each rank holds
optimizer_costs.py  the update
uncertainty.py      the interval
assemble.py         all of it for one plan
forecaster.py       one model on one machine, priced once for many plans
twin.py             a copy of it in a second process, for half the questions of a search
"""

from costmodel.predict.forecaster import Forecast, Forecaster
from costmodel.predict.prediction import HardwareUsed, Prediction, StageMemory

__all__ = ["Forecast", "Forecaster", "HardwareUsed", "Prediction", "StageMemory"]
