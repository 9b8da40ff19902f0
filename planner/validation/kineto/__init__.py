"""`foreshard validate trace`: profiler traces of real steps beside the forecast of those steps.

events.py       what is kept of a trace: ranges, operators, kernels, collectives
reader.py       trace files -> events, one RankTrace per file
nesting.py      which event lies inside which, and the time that is its own
attribution.py  module, phase and step of every event; backward events by the forward ones they belong to
module_names.py module paths for traces that only name classes, or nothing
operators.py    operator calls with their host and kernel time; time per module
activity.py     where each rank's step went: kernels, communication, bubble, optimizer, host; overlap
forecast.py     the same tables as predicted
score.py        both beside each other, and the verdict
recording.py    traces with module names from the project's own real runs
"""
