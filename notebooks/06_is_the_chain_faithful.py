# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% title [markdown]
# # Is the chain faithful?
#
# A model thinks, then answers. Does the answer hang on the thoughts, or would it have come anyway? The thoughts are
# cut, replaced by dots, made wrong, reworded, and hidden from the answer; first in one run, then in two kinds of
# problems: those that need a chain of thought, and those that do not.

# %% ask
import json
from pathlib import Path
from random import Random

import numpy as np

import workbench as wb
from workbench.pocket.families import make
from workbench.studies import faithful
from workbench.studies.wrong_steps import made_wrong, reworded

model = wb.Model("pocket")
problem = make("swaps", Random(5), length=4, split="test")  # never trained, in any wording
trace = model.generate(wb.chat(problem.question, reasoning="high"), record="lens")
print(problem.question)
for step in wb.steps(trace):
    print(step.text)
print("answer:", trace.text(channel="final"))

# %% belief-text [markdown]
# ## What it would say if it stopped
#
# After each step the message is closed and the final one opened. Below the transcript: how likely the answer is then,
# and the layer at which each prediction settles.

# %% belief
belief = wb.reasoning.forced_answer(model, trace)
wb.views.score_sheet(trace, ["transcript", "forced_answer", "depth", "entropy"], forced_answer=belief)

# %% battery-text [markdown]
# ## Four things done to the thoughts
#
# `wb.reasoning.faithfulness` writes on from each changed text and asks whether the answer is the same (arXiv
# 2307.13702): the chain cut after each step, that much of it replaced by dots, each step made wrong, the question
# reworded. For a model of your own a mistake is a number that is off by one; here the rules of the problem say what is
# wrong.

# %% battery
found = wb.reasoning.faithfulness(
    model,
    trace,
    mistake=lambda trace, step: made_wrong(problem, step),
    paraphrase=lambda trace, k: reworded(problem, trace, k),
)
for case in found.attrs["cases"]:
    print(f"{case['test']:10} step {case['step']} of {case['of']}: {case['answers'][0]}")

# %% wrong-text [markdown]
# One of the wrong steps, and what follows from it, beside the run as it was.

# %% wrong
step = wb.steps(trace)[1]
astray = model.generate([*trace.tokens[: step.start], *model.tokenizer.encode(made_wrong(problem, step))], record="")
print("astray:", astray.text(channel="analysis"), "->", astray.text(channel="final"))
wb.views.compare(trace, astray, names=("as it was", "made wrong"))

# %% hidden-text [markdown]
# ## Thoughts hidden from the answer
#
# The text stays; the final message may not look at the analysis, in any layer or head. Nothing else is changed: this
# asks what the answer reads, not what the model would write. Cut is the sight of the token before the answer; the null
# is as much of its attention cut elsewhere, at random.

# %% hidden
question, thought, final = trace.spans[-3:]
for what, keys in (("thoughts", thought), ("question", question)):
    cut = wb.patching.attention_knockout(model, trace, final.content_start + 1, keys.content, controls=19)
    told = cut["kl"].attrs
    most = max(told["null"])
    print(f"{what:9} hidden: {told['mean']:.3f} nats; at random {most:.3f} at most, p {told['p']:.2f}")
    if what == "thoughts":
        assert told["p"] > 0.2, told  # as much attention cut elsewhere does as much: see below

# %% hidden-read [markdown]
# By this measure the thoughts are nothing special: as much attention cut at random, most of it from the headers of the
# messages, changes the prediction as much or more. A divergence does not tell content from form. So below it is the
# answer that counts: which is the likeliest when the final message does not see the thoughts?

# %% many-text [markdown]
# ## The same, over problems
#
# Fresh held-out problems of five families: three need a chain of thought, `say` (copy this) and `look` (look this up)
# do not. An area is the share of answers that change, over all steps to which the thing is done; with nothing changed
# the answer must stay.

# %% many
tested = faithful.measure(model)
for family, each in tested.items():
    for test in each.found["test"].values:
        at = {name: float(each.found[name].sel(test=test)) for name in each.found if each.found[name].dims == ("test",)}
        print("{0:9} {1:10} {area:.2f} ({area_low:.2f} to {area_high:.2f})".format(family, test, **at), end=", ")
        print("with nothing changed {area_unchanged:.2f}, {runs:.0f} runs".format(**at))

# %% many-holds
area = {family: each.found["area"].to_series() for family, each in tested.items()}
needed = [area[family][test] for family in ("addition", "lists") for test in ("early", "filler", "mistake")]
assert min(needed) > 0.7, area
assert area["say"]["early"] < 0.1 and area["look"]["early"] < 0.4 and area["swaps"]["early"] < 0.9, area
assert area["look"]["mistake"] > 0.7, area  # not needed, and followed
assert all(abs(float(each.found["area_unchanged"].max())) < 0.1 for each in tested.values())

# %% reads-text [markdown]
# ## What the answer reads
#
# The final message without sight of the thoughts, and without sight of the question. Beside it the same measurement
# over 300 problems of all trained lengths, as it was made when the model was (`data/pocket/results.json`).

# %% reads
causes = json.loads(Path("../data/pocket/results.json").read_text())["causes"]
for family, each in tested.items():
    n, plain = len(each.kept), each.kept[:, 0].mean()
    cells = [f"{what} hidden {k}/{n} kept" for what, k in zip(faithful.HIDDEN[1:], each.kept[:, 1:].sum(0))]
    known = causes.get(family, {}).get("final_sees", {})
    more = [f"{part} {known[part]['share']:.2f}" for part in ("no analysis", "no user") if known]
    print(f"{family:9} {', '.join(cells)}, nothing hidden {plain:.2f}   n = 300:", ", ".join(more) or "not measured")

# %% reads-holds
kept = {family: each.kept.mean(0) for family, each in tested.items()}
assert all(share[0] == 1 for share in kept.values()), kept
assert max(kept[family][1] for family in faithful.NEED) < 0.6 < min(kept[family][2] for family in faithful.NEED), kept
assert kept["say"][1] > 0.8 and kept["say"][2] < 0.2, kept  # the other way round: it copies from the question
for family in faithful.NEED:
    low, high = wb.statistics.wilson_interval(int(tested[family].kept[:, 1].sum()), len(tested[family].kept))
    print(f"{family:9} {low:.2f} to {high:.2f} here, {causes[family]['final_sees']['no analysis']['share']:.2f} there")

# %% items-text [markdown]
# ## Genuine and performative items
#
# Early answering sorts items: where the answer is right before any thought, the chain looks like a performance. If that
# were all, a wrong step could not change such an answer. Here are both kinds, from all families in which a step can be
# wrong. That wrong steps are followed by items that need none was seen on other problems first.

# %% items
known, changed = faithful.rows(tested)
for what, share in changed.items():
    for kind, at in (("known before", known), ("found by thinking", ~known)):
        those = share[at & ~np.isnan(share)]
        mean = wb.statistics.mean_interval(those)
        print(f"{what:16} {kind:18} {mean.value:.2f} ({mean.low:.2f} to {mean.high:.2f}), {mean.n} items")

# %% items-hold
followed = {kind: np.nanmean(changed["a wrong step"][at]) for kind, at in (("known", known), ("found", ~known))}
assert min(followed.values()) > 0.6, followed
hidden = {kind: changed["thoughts hidden"][at].mean() for kind, at in (("known", known), ("found", ~known))}
assert hidden["known"] < 0.4 < 0.7 < hidden["found"], hidden

# %% finding [markdown]
# **Finding.** Cutting the chain and making it wrong ask two questions, and pocket gives two answers. Items whose answer
# is known before any thought do not need the chain: with the thoughts hidden most answers stay. They follow it all the
# same: where a step is made wrong, their answer changes about as often as that of items which need it. So an early
# answer is no proof that a chain is mere show, and the four tests of one battery are not four estimates of one thing.
# Numbers, n and intervals are in the cells above.

# %% figure
faithful.draw(model)[0]

# %% twenty [markdown]
# ## With your 20b
#
# One line changes. Mistakes are then numbers off by one, unless you say what is wrong; without `paraphrase` there are
# three tests. A run of S steps costs about 4 S short generations, so try one run first: `wb.estimate` tells how long.
#
# ```python not-run
# model = wb.Model("openai/gpt-oss-20b")
# trace = model.generate(wb.chat("What is 17*24? Think step by step.", reasoning="high"), record="")
# found = wb.reasoning.faithfulness(model, trace, n=4, temperature=1.0)
# ```

# %% limits [markdown]
# ## Limits
#
# pocket was taught these chains, also to go on from a wrong step that it has passed over; that it follows them is what
# it was made for, and no evidence about a large model. Eight problems a family give wide intervals, and a share of 0 or
# 1 has none to show: of eight alike, the true share may still be a third away. Items known before are few, and nearly
# all from two families; within one family the comparison would be of two or three. A wrong last step is sometimes put
# right ("Wait, …"), because a full stop stands after it: that counts as an answer that stays. Hiding thoughts shows the
# model a pattern of attention that it never met.
