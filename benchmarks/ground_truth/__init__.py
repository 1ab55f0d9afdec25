"""Which method finds what a reasoning step uses? Scored against the true graphs of pocket's problems.

    python -m benchmarks.ground_truth            # development seed; figures in out/ground_truth/development
    python -m benchmarks.ground_truth --confirm  # the confirm seed, which is run once at the end

A method gives a score for each pair of a later and an earlier step (a matrix). The truth is whether the later step is
computed from the earlier one's value. AUROC is the probability that a used pair scores higher than an unused pair.
"""
