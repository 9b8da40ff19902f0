"""Learning from whole measured runs: what they were, what they teach, and whether it holds elsewhere.

runs      results of `validate run` and rows of published-run tables as runs with a forecast
spread    a run, and what it says that is none of the machine's
update    the Bayesian update of a profile's terms
check     runs held back, scored before and after
"""
