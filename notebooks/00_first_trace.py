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
# # First trace
#
# Ask a small gpt-oss a question, look at its chain of thought, and find out which heads it needs. It runs on a laptop,
# offline, in under a minute.

# %% ask
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

import workbench as wb

model = wb.Model("pocket")  # or a folder, or "openai/gpt-oss-20b" from the Hugging Face cache
ask = wb.chat("What is 247+138?", reasoning="high")
trace = model.generate(ask)
trace

# %% thought-text [markdown]
# ## The chain of thought
#
# The Harmony format has one channel for the chain of thought and one for the answer. The chain of thought is split into
# steps; each step has its range of tokens.

# %% steps
for step in wb.steps(trace):
    print(f"{step.start:3}:{step.stop:<3} {step.kind:20} {step.text!r}")
print("answer:", trace.text(channel="final"))

# %% trust-text [markdown]
# ## Can the numbers be trusted?
#
# Every trace is verified while it is recorded: certain identities hold exactly for the model, and for each of them the
# largest violation is listed, relative to the largest value involved.

# %% trust
for check in trace.verification:
    print(f"{check['status']:6} {check['max_error']:.1e}  {check['identity']}")
assert trace.verified

# %% look-text [markdown]
# ## Where a head attends
#
# A row of an attention pattern sums to 1 minus the mass on the head's learned sink, so a head that attends to no token
# is visible. In the view, click a head to select it, or a row to pin its query.

# %% look
pattern = wb.attention.pattern(trace, layer=1, head=2)
last = pattern[-2]  # the query that predicts the end of the answer
for key in last.values.argsort()[::-1][:5]:
    print(f"{last.values[key]:.2f}  position {key:2}  {trace.str_tokens[key]!r}")
print(f"{1 - float(last.sum()):.2f}  the sink")
wb.views.heads(trace, layer=1, head=2)

# %% heads-text [markdown]
# ## Which heads matter for this question?
#
# Ablate one head at a time, generate again, and check whether the answer is the same. If it is not, the new text is
# printed.

# %% heads
answer, needed_here = trace.text(channel="final"), []
for layer in range(trace.config["n_layers"]):
    for head in range(trace.config["n_heads"]):
        with model.edit(f"blocks.{layer}.attn.hook_z", wb.ablate(head=head)):
            ablated = model.generate(ask, record="", max_tokens=60)
        if ablated.text(channel="final") != answer:
            needed_here.append((layer, head))
            print(f"without {layer}.{head}: {ablated.text(channel='analysis')!r} -> {ablated.text(channel='final')!r}")
print(f"{len(needed_here)} of {trace.config['n_layers'] * trace.config['n_heads']} heads are needed for this answer")

# %% many-text [markdown]
# ## Which heads matter in general?
#
# One question is an anecdote, so here are thirty held-out additions: with a head ablated, is each solution still
# reproduced token by token? One forward pass is enough: greedy decoding reproduces a text if and only if each of its
# tokens is the most likely one at its position. Null: if a head had no role in these texts, ablating it would repair a
# text as often as it breaks one. The p-values are adjusted for all heads: p is the probability of at least one false
# positive among them.
#
# The measurement is a function of the package, `workbench.studies.needed_heads.measure`. To read its code, run
# `needed_heads.measure??` after the next cell.

# %% many
from workbench.studies import needed_heads

ablations = needed_heads.measure(model)
needed = [tuple(map(int, at)) for at in np.argwhere((ablations["p"] < 0.05).values)]
print(f"with all heads, {float(ablations['intact'].mean()):.2f} of {ablations.sizes['text']} are reproduced")
for at in sorted(needed, key=lambda at: float(ablations["reproduced"][at])):
    share, low, high, p = (float(ablations[name][at]) for name in ("reproduced", "low", "high", "p"))
    print(f"without {at[0]}.{at[1]}: {share:.2f} ({low:.2f} to {high:.2f}), p = {p:.4f};", end=" ")
    print(f"most frequent first change: {ablations['first'].values[at]}")
print(f"{len(needed)} of {ablations['p'].size} heads are needed")

# %% many-holds
assert float(ablations["intact"].mean()) > 0.9, ablations["intact"]
assert 3 <= len(needed) <= ablations["p"].size // 2, needed  # a few heads, not most of them
assert {(0, 0), (0, 1), (0, 2)} <= set(needed), needed

# %% heads-figure
needed_heads.draw(model)[0]

# %% finding-text [markdown]
# ## Finding
#
# A few heads are needed. Without some of them the answer to this question is lost. Others are needed over all additions
# but not for this answer, so this one question would have missed them: below is the one of these that most texts need,
# and what pocket generates here without it.

# %% finding
general, here = set(needed), set(needed_here)
# needed over all additions, but not for this answer
head = min(general - here, key=lambda at: float(ablations["reproduced"][at]))
share, low, high = (float(ablations[name][head]) for name in ("reproduced", "low", "high"))
with model.edit(f"blocks.{head[0]}.attn.hook_z", wb.ablate(head=head[1])):
    ablated = model.generate(ask, record="", max_tokens=90)
print(
    f"{len(general)} of {ablations['p'].size} heads are needed over n = {ablations.sizes['text']} held-out additions,"
)
print(f"{len(here)} are needed for this answer, and {len(general & here)} for both.")
print(f"Without {head[0]}.{head[1]}, {share:.2f} ({low:.2f} to {high:.2f}) are reproduced token by token;", end=" ")
print(f"with all heads {float(ablations['intact'].mean()):.2f}. This question:")
print(f"{ablated.text(channel='analysis')!r} -> {ablated.text(channel='final')!r}")

# %% finding-holds
assert here & general and general - here, (here, general)
assert high < 0.8 < float(ablations["intact"].mean()), head

# %% keep-text [markdown]
# ## Save the trace
#
# A trace is saved as one folder. It can be opened without torch, it names the model and the edits it was recorded with,
# and it can be verified again. The page is one file that opens in a browser, without Python and without a network.

# %% keep
folder = Path(mkdtemp())
trace.save(folder / "first.trace")
loaded = wb.load(folder / "first.trace")
assert loaded.id == trace.id and (loaded["logprob"][1:] == trace["logprob"][1:]).all()
holding = [check for check in wb.verify(loaded) if check["status"] == "holds"]
print(f"{len(holding)} identities hold, without the model; worst {max(check['max_error'] for check in holding):.1e}")
print(wb.views.score_sheet(loaded).to_html(folder / "first.html").name)

# %% yours [markdown]
# ## With your 20b
#
# ```python not-run
# model = wb.Model("openai/gpt-oss-20b")  # or a folder
# ```
#
# Everything above except pocket's own additions then runs on your model. `wb.estimate(ask, model)` predicts the size of
# a trace before the run. gpt-oss-20b has 24 layers with 64 heads each, and each edit needs a run: ablate whole layers
# first.

# %% limits [markdown]
# ## Limits
#
# Ablating a head also removes its average output, so a head that only writes a constant would count as needed. Heads
# can replace each other, and a head that is not needed alone may be needed when another one is ablated too. And pocket
# is small: which heads it needs for addition says nothing about a large model. The method carries over.
