"""`foreshard validate report`: results of `validate published` and `validate run` as one accuracy report.

results   JSON results of one or several machines -> rows, with the environment of each
figures   error and ranking figures of our forecasts and of the no-skill ones, by any label
reasons   why the worst rows are off, as far as the rows themselves tell
sources   names of published sources, and what was fitted on them
document  sections of tables and plots
writing   one HTML file, markdown, the README's part between its markers
"""
