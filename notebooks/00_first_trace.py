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
# Ask a small gpt-oss a question, look at how it thinks, and find out which of its heads it cannot do without.
# It runs on a laptop, offline, in under a minute.

# %% ask
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

import workbench as wb

model = wb.Model("pocket")  # or a folder, or "openai/gpt-oss-20b" from the hub's cache
ask = wb.chat("What is 247+138?", reasoning="high")
trace = model.generate(ask)
trace

# %% thought-text [markdown]
# ## What it thought
#
# Harmony keeps thinking and answering in two channels. The chain of thought falls into steps, each with its tokens.

# %% steps
for step in wb.steps(trace):
    print(f"{step.start:3}:{step.stop:<3} {step.kind:20} {step.text!r}")
print("answer:", trace.text(channel="final"))

# %% trust-text [markdown]
# ## Can the numbers be trusted?
#
# Every trace is checked against the model's own identities as it is made: the largest violation, relative to the
# largest value involved.

# %% trust
for found in trace.verification:
    print(f"{found['status']:6} {found['max_error']:.1e}  {found['identity']}")
assert trace.verified

# %% look-text [markdown]
# ## Where a head looks
#
# A row of a pattern sums to 1 minus what goes to the head's learned sink, so a head that looks nowhere shows it. In the
# view, click a head, or a row to keep its query.

# %% look
pattern = wb.attention.pattern(trace, layer=1, head=2)
last = pattern[-2]  # the query that writes the end of the answer
for key in last.values.argsort()[::-1][:5]:
    print(f"{last.values[key]:.2f}  position {key:2}  {trace.str_tokens[key]!r}")
print(f"{1 - float(last.sum()):.2f}  the sink")
wb.views.heads(trace, layer=1, head=2)

# %% heads-text [markdown]
# ## Which heads matter here?
#
# Silence one head at a time, let the model think again, and see whether the answer survives. What breaks can be read.

# %% heads
right, needed = trace.text(channel="final"), []
for layer in range(trace.config["n_layers"]):
    for head in range(trace.config["n_heads"]):
        with model.edit(f"blocks.{layer}.attn.hook_z", wb.ablate(head=head)):
            without = model.generate(ask, record="", max_tokens=60)
        if without.text(channel="final") != right:
            needed.append((layer, head))
            print(f"without {layer}.{head}: {without.text(channel='analysis')!r} -> {without.text(channel='final')!r}")
print(f"{len(needed)} of {trace.config['n_layers'] * trace.config['n_heads']} heads are needed for this answer")

# %% many-text [markdown]
# ## Which heads matter always?
#
# One question is an anecdote. So thirty held-out additions: with a head silenced, is each still written word by word?
# One pass tells, for greedy text is the text that was read exactly if each of its tokens is the likeliest in its place.
# Null: if a head did nothing, silencing it would mend a text as often as it breaks one. The p-values are for all heads
# together, so that one false alarm among them has that probability.

# %% many
from workbench.studies import needed_heads

found = needed_heads.measure(model)
missed = [tuple(map(int, at)) for at in np.argwhere((found["p"] < 0.05).values)]
print(f"with all heads {float(found['whole'].mean()):.2f} of {found.sizes['text']} are written word by word")
for at in sorted(missed, key=lambda at: float(found["kept"][at])):
    kept, low, high, p = (float(found[name][at]) for name in ("kept", "low", "high", "p"))
    print(f"without {at[0]}.{at[1]}: {kept:.2f} ({low:.2f} to {high:.2f}), p = {p:.4f};", end=" ")
    print(f"most often first: {found['first'].values[at]}")
print(f"{len(missed)} of {found['p'].size} heads are missed")

# %% many-holds
assert float(found["whole"].mean()) > 0.9, found["whole"]
assert abs(len(missed) - 7) <= 3, missed
assert {(0, 0), (0, 1), (0, 2), (5, 0)} <= set(missed), missed

# %% heads-figure
needed_heads.draw(model)[0]

# %% finding-text [markdown]
# ## Finding
#
# A few heads cannot be done without. Some of them cost the answer. Others change the text and not the answer, so this
# one question would have passed them over. Without the head below most sums are doubted: after a step that is right
# comes a full stop in place of the comma, and "Wait".

# %% finding
always, once = set(missed), set(needed)
spared = min(always - once, key=lambda at: float(found["kept"][at]))  # missed over all, not needed for this answer
kept, low, high = (float(found[name][spared]) for name in ("kept", "low", "high"))
with model.edit(f"blocks.{spared[0]}.attn.hook_z", wb.ablate(head=spared[1])):
    without = model.generate(ask, record="", max_tokens=90)
print(f"{len(always)} of {found['p'].size} heads are missed over n = {found.sizes['text']} held-out additions,")
print(f"{len(once)} are needed for this answer, and {len(always & once)} are both.")
print(f"Without {spared[0]}.{spared[1]} {kept:.2f} ({low:.2f} to {high:.2f}) are still written word by word;", end=" ")
print(f"with all heads {float(found['whole'].mean()):.2f}. This question:")
print(f"{without.text(channel='analysis')!r} -> {without.text(channel='final')!r}")

# %% finding-holds
assert once & always and spared == (5, 0) and high < 0.6, (once, always, spared)
assert without.text(channel="final") == right and "Wait" in without.text(channel="analysis")

# %% keep-text [markdown]
# ## Keep it
#
# A trace is one file. It opens without torch, says which model and which edits it comes from, and can be checked again.
# The page opens in a browser, without Python and without a network.

# %% keep
folder = Path(mkdtemp())
trace.save(folder / "first.trace")
again = wb.load(folder / "first.trace")
assert again.id == trace.id and (again["logprob"][1:] == trace["logprob"][1:]).all()
held = [found for found in wb.verify(again) if found["status"] == "holds"]
print(f"{len(held)} identities hold again, without the model; worst {max(found['max_error'] for found in held):.1e}")
print(wb.views.score_sheet(again).to_html(folder / "first.html").name)

# %% yours [markdown]
# ## With your 20b
#
# ```python not-run
# model = wb.Model("openai/gpt-oss-20b")  # or a folder
# ```
#
# Everything above but pocket's own additions then runs on your model. `wb.estimate(ask, model)` says before a run how
# large its trace would be. It has 24 layers of 64 heads, and each edit is a run of its own: silence layers first.

# %% limits [markdown]
# ## Limits
#
# Silencing a head takes its average away too, so a head that only writes a constant would be missed as well. Heads can
# stand in for each other, and one that is not missed alone may be missed together with another. And pocket is small:
# which of its heads add says nothing about a large model. How it is found out is the same.
