"""`foreshard validate published`: measured whole runs of papers, reports and one's own, beside forecasts.

rows.py      the table's columns
model_map    family and sizes -> model argument (data: costmodel/data/published/families.json)
setting      gpu, links, framework -> profiles (data: costmodel/data/published/*.json)
conventions  what a source's metric counts
inference    rows of prefill, decode and forward passes
score        one row to one prediction
"""
