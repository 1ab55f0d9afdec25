"""The measurements behind the notebooks and the figures of the docs, one module per question.

`measure(model, …)` returns the measurements; `draw(model)` returns their figure and the traces they were computed from.
"""
