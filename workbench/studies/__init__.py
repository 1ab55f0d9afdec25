"""The measurements behind the notebooks and the figures of the docs, one module a question.

`measure(model, …)` gives what was found, `draw(model)` the figure of it and the traces behind it.
"""
