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
# # Backtracking: find, predict, steer
#
# "Wait, …": a model writes a step, sees that it is wrong, and takes it back. Where is that to be found in a text, where
# in the model before the word is said, what has the model to look at for it, and can it be made to do it, or kept from
# it?

# %% ask
import numpy as np

import workbench as wb
from workbench.studies import about_to_backtrack, backtracking, seeing_a_mistake
from workbench.studies.wrong_steps import WAIT, chance_of_wait, pairs, takes_back

model = wb.Model("pocket")
FAMILIES, LENGTH = about_to_backtrack.FAMILIES, about_to_backtrack.LENGTH
pair = pairs("swaps", 1, LENGTH, "shown")[0]  # a held-out problem, and one of its steps, written rightly and wrongly
last = len(pair.wrong) - 1
print(pair.problem.question)
for name, ids in (("right", pair.right), ("wrong", pair.wrong)):
    print(f"{name}: {model.tokenizer.decode(ids[pair.start :])}")

# %% find-text [markdown]
# ## Find
#
# pocket goes on from both. `wb.steps` cuts the chain and names the kind of each step by its words; a step back is
# "uncertainty_management". The two texts differ in one token up to there.

# %% find
went_on = model.generate(pair.right, record="residuals attention")
went_back = model.generate(pair.wrong, record="residuals attention")
for trace in (went_on, went_back):
    for step in wb.steps(trace):
        print(f"{step.start:3}:{step.stop:<3} {step.kind:23} {step.text}")
    print("answer:", trace.text(channel="final"), "\n")

# %% find-view [markdown]
# Side by side: what was likely at each token, and where the texts part.

# %% compare
wb.views.compare(went_on, went_back, names=("right", "wrong"))

# %% rate-text [markdown]
# ## How often
#
# Held-out problems, one step of each written rightly and wrongly, up to its last token. Is ". Wait" what the model
# would say next?

# %% rate
rates = {}
for family in FAMILIES:
    traces = about_to_backtrack.read(model, family)
    for name, those in (("right", traces[::2]), ("wrong", traces[1::2])):
        hits = sum(takes_back(trace) for trace in those)
        rates[family, name] = hits / len(those)
        low, high = wb.statistics.wilson_interval(hits, len(those))
        print(f"{family:9} after a {name} step: {hits} of {len(those)} ({low:.2f} to {high:.2f})")

# %% rate-holds
assert all(rates[family, "right"] < 0.1 and rates[family, "wrong"] > 0.7 for family in FAMILIES), rates

# %% predict-text [markdown]
# ## Predict
#
# A linear probe reads the residual stream at the last token of the step, before "." or "," is written: will the step be
# taken back? The texts of a pair are equal but for that token, so all must come from comparing it with what was written
# before. Token, position and length alone are the baseline; labels shuffled within each problem are the null.

# %% predict
probes = about_to_backtrack.measure(model)
for family, probe in probes.items():
    print(f"{family}: token, position and length tell {float(probe['baseline']):.2f}")
    for layer in probe["layer"].values:
        value, low, high, null, p = (float(probe[name][layer]) for name in ("accuracy", "low", "high", "null", "p"))
        print(f"   layer {layer}: {value:.2f} ({low:.2f} to {high:.2f}), shuffled {null:.2f}, p {p:.2f}")

# %% predict-holds
for family, probe in probes.items():
    accuracy = probe["accuracy"].values
    assert accuracy[-1] > 0.85 > 0.7 > accuracy[1], (family, accuracy)
    assert float(probe["gain_low"][-1]) > 0 and float(probe["p"][-1]) < 0.05, (family, probe["gain_low"].values)

assert float(probes["swaps"]["accuracy"][3]) > 0.8 and float(probes["variables"]["accuracy"][4]) < 0.95

# %% predict-figure
about_to_backtrack.draw(model)[0]

# %% heads-text [markdown]
# ## What it looks at
#
# In the text with the right value, the output of one head at the last token is taken from the text with the wrong one.
# How much of the way from "," to "." does that go? 1 is all of it.

# %% heads
gap = wb.patching.logit_diff(model, ".", ",")
sweep = wb.patching.activation_patching(model, pair.wrong, pair.right, gap, site="z", by_head=True)
layer, head = np.unravel_index(sweep.values.argmax(), sweep.shape)
print(f"from {sweep.attrs['corrupted']:+.1f} to {sweep.attrs['clean']:+.1f} logits")
print(f"head {layer}.{head} alone carries {sweep.values.max():.2f} of that")
row = wb.attention.pattern(went_back, layer=int(layer), head=int(head))[last]
for key in row.values.argsort()[::-1][:3]:
    print(f"{row.values[key]:.2f} of its attention is on {went_back.str_tokens[key]!r}, {last - key} back")

# %% heads-view
wb.views.heads(went_back, int(layer), int(head), selected=last)

# %% heads-read [markdown]
# The head that carries most looks at the very token that was written: it passes on which name that is, not how it
# compares. Patching says where a difference goes through, not what it is held against.

# %% seen-text [markdown]
# Over problems, and causally: the last token of the wrong step is kept from seeing some of the text, in all heads. Is
# ". Wait" still likely?

# %% seen
carried, waits = seeing_a_mistake.measure(model)
for family, rows in waits.items():
    mean = wb.statistics.mean_interval(rows)
    print(f"{family}, n = {len(rows)}")
    for name, value, low, high in zip(seeing_a_mistake.HIDDEN, mean.value, mean.low, mean.high):
        print(f"   {name:16} hidden: {value:.2f} ({low:.2f} to {high:.2f})")
    p = wb.statistics.westfall_young(carried[family])
    sure = [f"{i}.{j} {carried[family].mean(0)[i, j]:.2f} (p {p[i, j]:.3f})" for i, j in np.argwhere(p < 0.05)]
    print("   heads that carry it, max-T over all:", ", ".join(sure) or "none for sure")

# %% seen-holds
of = {family: dict(zip(seeing_a_mistake.HIDDEN, rows.mean(0))) for family, rows in waits.items()}
assert of["swaps"]["the token before"] < 0.4 < 0.7 < of["swaps"]["the question"], of
assert min(of["variables"].values()) > 0.6, of

# %% seen-figure
seeing_a_mistake.draw(model)[0]

# %% steer-text [markdown]
# ## Steer
#
# The mean stream at the last token of wrong steps, less that of right ones, on the problems of the probe. First on the
# one pair above: more and more of it is added there, after layer 4. A steering vector is no finding without controls:
# `wb.steering.steering_effect` adds random directions and unrelated differences of means, of the same length.

# %% steer
vector, unrelated = backtracking.vector(model, "swaps"), backtracking.unrelated(model, "swaps")
print(f"length {vector.attrs['norm']:.1f}, of a stream of {vector.attrs['stream_norm']:.1f}")
for name, ids in (("right", pair.right), ("wrong", pair.wrong)):
    found = wb.steering.steering_effect(
        model,
        [*ids, *WAIT],
        vector,
        chance_of_wait,
        control_vectors=unrelated,
        scales=[-2, 2],
        positions=[last],
        n_random_controls=2,
    )
    print(f"after the {name} step: {found['steered'].attrs['plain']:.2f}, steered {found['steered'].values.round(2)}")
    print(f"   random, from {found['random'].values.min(0).round(2)} to {found['random'].values.max(0).round(2)}")
    print(f"   unrelated {found['unrelated'].values.round(2).tolist()}")

# %% said-text [markdown]
# What does it say then? Steered at that one token, it goes on by itself.

# %% said
point, said = vector.attrs["point"], {}
for name, ids, scale in (("right", pair.right, 2), ("wrong", pair.wrong, -2)):
    with model.edit(point, wb.steer(vector, scale), positions=[last]):
        said[name] = model.generate(ids, record="")
    print(f"{name} step, {scale:+} times: {said[name].text(channel='analysis')} -> {said[name].text(channel='final')}")

# %% dose-text [markdown]
# ## Dose and response
#
# The same over problems other than those which the direction is from, beside the direction that the *other* family
# gives. The layer was chosen on other problems still.

# %% dose
p = backtracking.measure(model)  # family text problem direction scale
DOSE, at = {"variables": 4, "swaps": 2}, {scale: i for i, scale in enumerate(backtracking.SCALES.tolist())}
for f, family in enumerate(FAMILIES):
    for t, (text, scale) in enumerate((("right", DOSE[family]), ("wrong", -DOSE[family]))):
        mean = wb.statistics.mean_interval(p[f, t])
        print(f"{family}, after a {text} step: {mean.value[0, at[0]]:.2f}; at {scale:+} times, n = {mean.n}")
        for d, name in enumerate(backtracking.DIRECTIONS):
            v, low, high = (float(part[d, at[scale]]) for part in mean[:3])
            print(f"   {name:20} {v:.2f} ({low:.2f} to {high:.2f})")

# %% dose-holds
mean = p.mean(2)  # family text direction scale
assert (mean[:, 0, :, at[0]] < 0.1).all() and (mean[:, 1, :, at[0]] > 0.7).all(), mean[..., at[0]]
for f, family in enumerate(FAMILIES):
    more, less = mean[f, 0, :, at[DOSE[family]]], mean[f, 1, :, at[-DOSE[family]]]
    assert more[:2].min() > more[2:].max() + 0.15, (family, more)  # the other family's direction does it too
    assert less[0] < less[2:].min() - 0.1, (family, less)

# %% angle-text [markdown]
# The two directions, layer by layer: their cosine. They meet in the last layer, where a direction is little more than
# the logits of "." and ",".

# %% angle
for layer in range(model.config.n_layers):
    one, two = (backtracking.vector(model, family, layer) for family in FAMILIES)
    sizes = ", ".join(f"{v.attrs['norm'] / v.attrs['stream_norm']:.2f}" for v in (one, two))
    cosine = float(one.values @ two.values) / (one.attrs["norm"] * two.attrs["norm"])
    print(f"layer {layer}: cosine {cosine:+.2f}; lengths, as shares of the stream's: {sizes}")

# %% same-text [markdown]
# ## What a false "Wait" puts right
#
# Steered after a right step, over six problems a family: is the value that follows "Wait" the right one again, or
# another?

# %% same
for family in FAMILIES:
    texts = []
    for one in pairs(family, 6, LENGTH, "false alarms"):
        with model.edit(
            point, wb.steer(backtracking.vector(model, family), DOSE[family]), positions=[len(one.right) - 1]
        ):
            text = model.tokenizer.decode(model.generate(one.right, max_tokens=10, record="").tokens[len(one.right) :])
        if text.startswith(". Wait"):
            value = text.split(".")[1].split()[-1].split("=")[-1]
            texts.append(value == model.tokenizer.decode(one.right[-1:]).strip())
    print(f"{family:9} says Wait in {len(texts)} of 6, and then the same value again in {sum(texts)}")
    assert sum(texts) >= 4, (family, texts)

# %% finding [markdown]
# **Finding.** A step back can be read off the stream before it is said, far better than the token alone tells: in swaps
# from layer 3 on, if not 2, in variables plainly in the last layer only. To see a wrong name pocket needs sight of the
# token before it, where it has just predicted the right one. To see a wrong number no single stretch of the text is
# needed. What is read early can be steered early: in swaps twice the difference makes pocket take back what is right
# and keep what is wrong, which other directions of that length seldom do. In variables it takes four times the
# difference, and by then unrelated directions keep it from taking back as well, if less. Either family's direction
# makes the other take a step back; how far it also keeps the other from it in variables differed with the problems that
# it came from. A step back that was forced puts nothing wrong: the same value is written again.

# %% figure
backtracking.draw(model)[0]

# %% twenty [markdown]
# ## With your 20b
#
# A large model chooses its own mistakes, so the places come from its text: steps that are uncertain against the others.
# Take places a few tokens *before* the step, or the direction is the word "Wait". The runs cost one generation a
# direction and scale; `wb.estimate` says how long one takes, and `resume=` keeps what is finished.
#
# ```python not-run
# model = wb.Model("openai/gpt-oss-20b")
# trace = model.generate(wb.chat(question, reasoning="high"), record="blocks.12.hook_resid_post")
# chain = wb.steps(trace)
# back = [step.start - 1 for step in chain if step.kind == "uncertainty_management"]
# on = [step.start - 1 for step in chain[1:] if step.kind != "uncertainty_management"]
# vector = wb.steering.steering_vector([(trace, back)], [(trace, on)], layer=12)
# ```

# %% limits [markdown]
# ## Limits
#
# pocket was taught to take back wrong steps that others wrote, one in seven of its long texts; it seldom makes the
# mistakes itself, so all of this is about steps that were put into its mouth. The direction was found and used at one
# kind of place, the last token of a step. What is random is a mean over directions: a single one can do more. After the
# last layer a direction is little else than the logits of "." and ",", which is why layer 4 was taken; the probe of the
# last layer may read no more than that. Hiding text from one token leaves what others have copied of it.
