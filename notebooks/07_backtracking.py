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
# "Wait, …": a model generates a step, detects that it is wrong, and takes it back. How can backtracking be found in a
# text? Where in the model can it be decoded before the word is generated? What must the model attend to? And can
# backtracking be induced and suppressed?

# %% ask
import numpy as np

import workbench as wb
from workbench.studies import about_to_backtrack, backtracking, seeing_a_mistake
from workbench.studies.wrong_steps import WAIT, takes_back, wait_probability, wrong_step_pairs

model = wb.Model("pocket")
FAMILIES, LENGTH = about_to_backtrack.FAMILIES, about_to_backtrack.LENGTH
pair = wrong_step_pairs("swaps", 1, LENGTH, "shown")[0]  # a held-out problem up to one step, right and wrong
last = len(pair.wrong) - 1
print(pair.problem.question)
for name, ids in (("right", pair.right), ("wrong", pair.wrong)):
    print(f"{name}: {model.tokenizer.decode(ids[pair.start :])}")

# %% find-text [markdown]
# ## Find
#
# pocket continues both texts. `wb.steps` splits the chain into steps and classifies each by its words; backtracking is
# "uncertainty_management". The two prompts differ in one token.

# %% find
after_right = model.generate(pair.right, record="residuals attention")
after_wrong = model.generate(pair.wrong, record="residuals attention")
for trace in (after_right, after_wrong):
    for step in wb.steps(trace):
        print(f"{step.start:3}:{step.stop:<3} {step.kind:23} {step.text}")
    print("answer:", trace.text(channel="final"), "\n")

# %% find-view [markdown]
# Side by side: the predictions at each token, and where the texts diverge.

# %% compare
wb.views.compare(after_right, after_wrong, names=("right", "wrong"))

# %% rate-text [markdown]
# ## How often
#
# Held-out problems up to the last token of one step, each with the right and with a wrong value. Is ". Wait" the
# model's most likely continuation?

# %% rate
rates = {}
for family in FAMILIES:
    traces = about_to_backtrack.step_traces(model, family)
    for name, versions in (("right", traces[::2]), ("wrong", traces[1::2])):
        hits = sum(takes_back(trace) for trace in versions)
        rates[family, name] = hits / len(versions)
        low, high = wb.statistics.wilson_interval(hits, len(versions))
        print(f"{family:9} after a {name} step: {hits} of {len(versions)} ({low:.2f} to {high:.2f})")

# %% rate-holds
assert all(rates[family, "right"] < 0.1 and rates[family, "wrong"] > 0.7 for family in FAMILIES), rates

# %% predict-text [markdown]
# ## Predict
#
# A linear probe on the residual stream at the last token of the step, before "." or "," is generated: will the step be
# taken back? The texts of a pair differ only in that token, so the model must compare it with the earlier text. Token,
# position and length alone are the baseline; labels shuffled within each problem are the null.
#
# The measurement is a function of the package, `workbench.studies.about_to_backtrack.measure`. To read its code, run
# `about_to_backtrack.measure??` in a new cell.

# %% predict
probes = about_to_backtrack.measure(model)
for family, probe in probes.items():
    print(f"{family}: accuracy from token, position and length {float(probe['baseline']):.2f}")
    for layer in probe["layer"].values:
        value, low, high, null, p = (float(probe[name][layer]) for name in ("accuracy", "low", "high", "null", "p"))
        print(f"   layer {layer}: {value:.2f} ({low:.2f} to {high:.2f}), shuffled {null:.2f}, p {p:.2f}")

# %% predict-holds
for family, probe in probes.items():
    accuracy = probe["accuracy"].values
    assert accuracy[-1] > 0.85 > 0.7 > accuracy[1], (family, accuracy)
    assert float(probe["gain_low"][-1]) > 0 and float(probe["p"][-1]) < 0.05, (family, probe["gain_low"].values)

# the first layer from which the accuracy is above 0.8
decoded_from = {family: int(np.argmax(probe["accuracy"].values > 0.8)) for family, probe in probes.items()}
assert all(probes[family]["accuracy"][layer:].min() > 0.8 for family, layer in decoded_from.items()), probes
assert decoded_from["swaps"] < decoded_from["variables"], decoded_from

# %% predict-figure
about_to_backtrack.draw(model)[0]

# %% heads-text [markdown]
# ## What the model attends to
#
# In the run of the text with the right value, the output of one head at the last token is patched in from the run of
# the text with the wrong value. The metric is the logit difference between "." and ",". What share of its change from
# one run to the other does this patch produce? 1 is all of it.

# %% heads
metric = wb.patching.logit_diff(model, ".", ",")
patched = wb.patching.activation_patching(model, pair.wrong, pair.right, metric, site="z", by_head=True)
layer, head = np.unravel_index(patched.values.argmax(), patched.shape)
print(f"from {patched.attrs['corrupted']:+.1f} to {patched.attrs['clean']:+.1f} logits")
print(f"head {layer}.{head} alone carries {patched.values.max():.2f} of that")
row = wb.attention.pattern(after_wrong, layer=int(layer), head=int(head))[last]
for key in row.values.argsort()[::-1][:3]:
    print(f"{row.values[key]:.2f} of its attention is on {after_wrong.str_tokens[key]!r}, {last - key} back")

# %% heads-view
wb.views.heads(after_wrong, int(layer), int(head), selected=last)

# %% heads-read [markdown]
# The head that carries most attends to the last token itself: it passes on which name that is, not whether the name is
# right. Patching shows the path of a difference, not what the value is compared with.

# %% seen-text [markdown]
# Over problems, and causally: parts of the text are masked for the last token of the wrong step, in all heads. Is
# ". Wait" still likely?

# %% seen
carried, waits = seeing_a_mistake.measure(model)
for family, rows in waits.items():
    mean = wb.statistics.mean_interval(rows)
    print(f"{family}, n = {len(rows)}")
    for name, value, low, high in zip(seeing_a_mistake.HIDDEN, mean.value, mean.low, mean.high):
        print(f"   {name:16} hidden: {value:.2f} ({low:.2f} to {high:.2f})")
    p = wb.statistics.westfall_young(carried[family])
    heads = [f"{i}.{j} {carried[family].mean(0)[i, j]:.2f} (p {p[i, j]:.3f})" for i, j in np.argwhere(p < 0.05)]
    print("   heads that carry it, max-T over all:", ", ".join(heads) or "none is significant")

# %% seen-holds
p_wait = {family: dict(zip(seeing_a_mistake.HIDDEN, rows.mean(0))) for family, rows in waits.items()}
assert p_wait["swaps"]["the token before"] < 0.4 < 0.7 < p_wait["swaps"]["the question"], p_wait
assert min(p_wait["variables"].values()) > 0.6, p_wait

# %% seen-figure
seeing_a_mistake.draw(model)[0]

# %% steer-text [markdown]
# ## Steer
#
# The steering vector is the mean residual stream at the last token of wrong steps minus that of right ones, on the
# problems of the probe. First on the one pair above: multiples of it are added at that token, after the last layer but
# one. A steering vector proves nothing without controls: `wb.steering.steering_effect` also adds random directions and
# unrelated differences of means with the same norm.

# %% steer
vector, unrelated = backtracking.vector(model, "swaps"), backtracking.unrelated(model, "swaps")
print(f"norm {vector.attrs['norm']:.1f}; norm of the residual stream {vector.attrs['stream_norm']:.1f}")
for name, ids in (("right", pair.right), ("wrong", pair.wrong)):
    effect = wb.steering.steering_effect(
        model,
        [*ids, *WAIT],
        vector,
        wait_probability,
        control_vectors=unrelated,
        scales=[-2, 2],
        positions=[last],
        n_random_controls=2,
    )
    print(f"after the {name} step: {effect['steered'].attrs['plain']:.2f}, steered {effect['steered'].values.round(2)}")
    print(f"   random, from {effect['random'].values.min(0).round(2)} to {effect['random'].values.max(0).round(2)}")
    print(f"   unrelated {effect['unrelated'].values.round(2).tolist()}")

# %% steered-text [markdown]
# How does the model continue? It is steered at that one token only, and generates the rest by itself.

# %% steered
point = vector.attrs["point"]
for name, ids, scale in (("right", pair.right, 2), ("wrong", pair.wrong, -2)):
    with model.edit(point, wb.steer(vector, scale), positions=[last]):
        steered = model.generate(ids, record="")
    print(f"{name} step, {scale:+} times: {steered.text(channel='analysis')} -> {steered.text(channel='final')}")

# %% dose-text [markdown]
# ## Dose and response
#
# The same on problems that were not used to compute the direction, together with the direction computed on the *other*
# family.

# %% dose
p = backtracking.measure(model)  # family text problem direction scale
DOSE, at = {"variables": 4, "swaps": 2}, {scale: i for i, scale in enumerate(backtracking.SCALES.tolist())}
for f, family in enumerate(FAMILIES):
    for t, (text, scale) in enumerate((("right", DOSE[family]), ("wrong", -DOSE[family]))):
        mean = wb.statistics.mean_interval(p[f, t])
        print(f"{family}, after a {text} step: {mean.value[0, at[0]]:.2f}; at {scale:+} times, n = {mean.n}")
        for d, name in enumerate(backtracking.DIRECTIONS):
            value, low, high = (float(bound[d, at[scale]]) for bound in mean[:3])
            print(f"   {name:20} {value:.2f} ({low:.2f} to {high:.2f})")

# %% dose-holds
mean = p.mean(2)  # family text direction scale
assert (mean[:, 0, :, at[0]] < 0.1).all() and (mean[:, 1, :, at[0]] > 0.7).all(), mean[..., at[0]]
for f, family in enumerate(FAMILIES):
    induced, suppressed = mean[f, 0, :, at[DOSE[family]]], mean[f, 1, :, at[-DOSE[family]]]
    assert induced[:2].min() > induced[2:].max() + 0.15, (family, induced)  # the other family's direction does it too
    assert suppressed[0] < suppressed[2:].min() - 0.1, (family, suppressed)

# %% angle-text [markdown]
# The cosine of the two families' directions, layer by layer. They are most similar in the last layer, where a direction
# is little more than the logits of "." and ",".

# %% angle
for layer in range(model.config.n_layers):
    first, second = (backtracking.vector(model, family, layer) for family in FAMILIES)
    norms = ", ".join(f"{v.attrs['norm'] / v.attrs['stream_norm']:.2f}" for v in (first, second))
    cosine = float(first.values @ second.values) / (first.attrs["norm"] * second.attrs["norm"])
    print(f"layer {layer}: cosine {cosine:+.2f}; norms relative to the residual stream: {norms}")

# %% same-text [markdown]
# ## What follows an induced "Wait"
#
# Steered after a right step, over six problems per family: is the value after "Wait" the same right value, or another?

# %% same
for family in FAMILIES:
    same_value, steer = [], wb.steer(backtracking.vector(model, family), DOSE[family])
    for one in wrong_step_pairs(family, 6, LENGTH, "false alarms"):
        with model.edit(point, steer, positions=[len(one.right) - 1]):
            text = model.tokenizer.decode(model.generate(one.right, max_tokens=10, record="").tokens[len(one.right) :])
        if text.startswith(". Wait"):
            value = text.split(".")[1].split()[-1].split("=")[-1]
            same_value.append(value == model.tokenizer.decode(one.right[-1:]).strip())
    print(f"{family:9} generates Wait in {len(same_value)} of 6, and then the same value in {sum(same_value)}")
    assert sum(same_value) >= 4, (family, same_value)

# %% finding
from IPython.display import Markdown

Markdown(f"""**Finding.** Backtracking can be decoded from the residual stream before "Wait" is generated, far better
than from the token alone. The accuracy is above 0.8 in swaps from layer {decoded_from["swaps"]} on, in variables only
from layer {decoded_from["variables"]} on (the last is {model.config.n_layers - 1}). To detect a wrong name, pocket
needs attention to the token before it, where it has just predicted the right one. To detect a wrong number, no single
part of the text is needed.
The difference of means steers: in swaps, {DOSE["swaps"]} times the difference makes pocket take back right steps and
keep wrong ones, which other directions of that norm seldom do; in variables {DOSE["variables"]} times, and at that
dose unrelated directions suppress backtracking too, but less. The direction of either family induces backtracking in
the other. Induced backtracking does no harm: the same value is generated again.""")

# %% figure
backtracking.draw(model)[0]

# %% twenty [markdown]
# ## With your 20b
#
# A large model makes its own mistakes, so the positions come from its text: steps of uncertainty management against the
# others. Take positions a few tokens *before* the step, or the direction is the word "Wait". The runs cost one
# generation per direction and scale, so measure the time of one first; `resume=` keeps finished runs.
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
# pocket was trained to take back wrong steps that it did not generate; it seldom makes such mistakes itself, so all of
# this is about prefilled steps. The direction was computed and used at one kind
# of position, the last token of a step. The random control is a mean over directions: a single one can do more. After
# the last layer a direction is little more than the logits of "." and ",", so it is added a layer earlier; the probe
# of the last layer may decode no more than that. Masking text for one token does not remove what other positions have
# already copied from that text.
