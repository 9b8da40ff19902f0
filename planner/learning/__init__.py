"""Learning from whole measured runs: what they were, what they teach, and whether it holds elsewhere.

runs      results of `validate run` and rows of published-run tables as runs with a forecast
update    the Bayesian update of a profile's terms
check     runs held back, scored before and after
"""
