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
    print(f"{found['status']:6} {found['worst']:.1e}  {found['identity']}")
assert trace.verified

# %% look-text [markdown]
# ## Where a head looks
#
# A row of a pattern sums to 1 minus what goes to the head's learned sink, so a head that looks nowhere shows it.

# %% look
pattern = wb.pattern(trace, layer=1, head=2)
last = pattern[-2]  # the query that writes the end of the answer
for key in last.values.argsort()[::-1][:5]:
    print(f"{last.values[key]:.2f}  position {key:2}  {trace.pieces[key]!r}")
print(f"{1 - float(last.sum()):.2f}  the sink")

# %% heads-text [markdown]
# ## Which heads matter?
#
# Silence one head at a time, let the model think again, and see whether the answer survives.

# %% heads
right = trace.text(channel="final")
needed = []
for layer in range(trace.config["n_layers"]):
    for head in range(trace.config["n_heads"]):
        with model.edit(f"blocks.{layer}.attn.hook_z", wb.ablate(head=head)):
            ablated = model.generate(ask, record="", max_tokens=80)
        if ablated.text(channel="final") != right:
            needed.append((layer, head))
            print(f"without {layer}.{head}: {ablated.text(channel='analysis')!r} -> {ablated.text(channel='final')!r}")
print(f"{len(needed)} of {trace.config['n_layers'] * trace.config['n_heads']} heads are needed for this answer")

# %% headline
assert needed == [(0, 0), (0, 1), (0, 2), (2, 0), (4, 0), (4, 1)]  # the finding below, as a check

# %% end [markdown]
# **Finding.** Six of the 24 heads are needed for this answer: three of layer 0, one of layer 2, two of layer 4. What
# breaks can be read: without 4.0 or 4.1 the carry is forgotten, and 4+3+1 becomes 4+3; without 2.0 the digits are
# found and added wrongly; without 0.2 the sum is right, and it does not know where to stop. One question is an
# anecdote: ask many before you name a head.
#
# Keep the trace, or show it to somebody without Python:

# %% keep
print(trace.save("first.trace").name, wb.views.score_sheet(trace).to_html("first.html").name)
