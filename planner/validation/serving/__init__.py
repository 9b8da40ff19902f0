"""`foreshard validate serving`: measured times of LLM servers under clients, beside forecasts.

setting   model, backend, precision, sizes of parallelism and load -> profiles and a plan
          (data: costmodel/data/published/serving.json, served_models.json)
score     one row to its forecasts: time to first token, time per token
"""
