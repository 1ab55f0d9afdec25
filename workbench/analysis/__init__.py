"""Functions from Traces to labelled arrays. They know nothing of models, and never run one."""
