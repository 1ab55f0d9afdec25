"""One run as one HTML page: who ran, whether it can be trusted, what was said, and what went on at every token.

The page needs no network, no server and no script to be read; script only joins a token to its column in the lanes.
All text that a model or a file chose goes through `workbench.visible`. Knows no model, and computes no analysis.
"""

import os
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from workbench.segments import KINDS, steps
from workbench.spans import Span
from workbench.traces import Trace
from workbench.views import page_lanes as lanes
from workbench.visible import html

_HERE = Path(__file__).parent
_LIKELY, _RARE = np.log(0.5), np.log(0.1)
_COLOURS = {kind: f"k{place}" for place, kind in enumerate(kind for kind in KINDS if kind != "unknown")}  # in page.css
_ROLES = {"system", "developer", "user", "assistant", "tool"}
_CHANNELS = {"analysis", "commentary", "final"}


def page(trace: Trace) -> str:
    """The page as a string: a complete HTML document of one file, the same for the same trace.

    >>> "<script>alert" in page(trace_of_a_hostile_model)  # doctest: +SKIP
    False
    """
    css, js = (_HERE / "page.css").read_text("utf-8"), (_HERE / "page.js").read_text("utf-8")
    policy = (
        f"default-src 'none'; style-src '{_digest(css)}'; script-src '{_digest(js)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    run = _Run(trace)
    name = html(trace.manifest.model["name"])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_question(trace)} · {name}</title>\n"
        f"<style>{css}</style>\n</head>\n<body>\n"
        f"{_header(trace)}\n<main>\n{_transcript(run)}\n{_lanes(run)}\n{_details(trace)}\n</main>\n"
        f'<output id="readout" aria-live="polite" hidden></output>\n<script>{js}</script>\n</body>\n</html>\n'
    )


def save_page(trace: Trace, path: os.PathLike | str) -> Path:
    """Writes `page(trace)` to `path`, in place of what was there; gives the path.

    >>> save_page(trace, "first.html")  # doctest: +SKIP
    PosixPath('first.html')
    """
    path = Path(path)
    text = page(trace)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def _digest(text: str) -> str:
    """As a browser computes it: over what stands between the tags."""
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()


class _Run:
    """What the transcript and the lanes both need of a trace, read once."""

    def __init__(self, trace: Trace):
        self.trace = trace
        self.n = len(trace)
        self.pieces = trace.pieces
        self.words = trace.words
        self.messages = list(_messages(trace.spans, self.n))
        self.steps = [step for step in steps(trace) if 0 <= step.start < step.stop <= self.n]
        self.counts = Counter(step.kind for step in self.steps)
        # a kind has the same colour on every page
        self.kinds = {kind: _COLOURS.get(kind, "k8") for kind in sorted(self.counts, key=[*KINDS, *self.counts].index)}
        self.layers = trace.config["n_layers"]
        self.logprob = self._lane("logprob", (self.n,))
        self.entropy = self._lane("entropy", (self.n,))
        self.margin = self._lane("margin", (self.layers, self.n))
        self.resid_norm = self._lane("resid_norm", (self.layers, self.n))
        self.sink = self._sinks()
        self.depth = self._depth()
        self.top_ids = trace["top_ids"] if "top_ids" in trace else np.empty((0, 0), int)
        self.top_logprobs = trace["top_logprobs"] if "top_logprobs" in trace else np.empty((0, 0))

    def _lane(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        return _fitted(self.trace[name], shape) if name in self.trace else None

    def _sinks(self) -> np.ndarray | None:
        """Mean over the heads [layer pos]; NaN in layers that were not recorded."""
        rows = np.full((self.layers, self.n), np.nan)
        for layer in range(self.layers):
            if ("sink", layer) in self.trace:
                mass = self.trace["sink", layer]
                row = _fitted(mass.mean(0), (self.n,)) if mass.ndim == 2 and len(mass) else None
                if row is not None:
                    rows[layer] = row
        return rows if np.isfinite(rows).any() else None

    def _depth(self) -> np.ndarray | None:
        """The first layer from which on the lens's first choice is the model's own [pos]."""
        if "lens_ids" not in self.trace:
            return None
        ids = self.trace["lens_ids"]
        if ids.ndim != 3 or not ids.size or ids.shape[1] > self.n:
            return None
        same = ids[:, :, 0] == ids[-1, :, 0]
        settled = np.logical_and.accumulate(same[::-1])[::-1]
        return _fitted(settled.argmax(0), (self.n,))


def _fitted(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """As float64 in that shape, NaN where the last positions are missing; None for anything else than a lane."""
    if values.ndim != len(shape) or values.shape[:-1] != shape[:-1] or values.shape[-1] > shape[-1]:
        return None
    whole = np.full(shape, np.nan)
    whole[..., : values.shape[-1]] = values
    return whole


def _messages(spans: list[Span], n: int) -> Iterator[Span]:
    """The spans in order; positions that none of them covers, as unparsed ones."""
    at = 0
    for span in sorted(spans, key=lambda s: s.start):
        if span.stop <= at:
            continue
        if span.start > at:
            yield Span(at, span.start, at, span.start, "unparsed")
        begin = max(span.start, at)
        yield replace(
            span, start=begin, content_start=max(span.content_start, begin), content_stop=max(span.content_stop, begin)
        )
        at = span.stop
    if at < n:
        yield Span(at, n, at, n, "unparsed")


# The head of the page.


def _header(trace: Trace) -> str:
    m = trace.manifest
    generated = len(trace) - m.prompt_length
    checked = [line for line in m.verification if line["status"] != "not checked"]
    holds = sum(line["status"] == "holds" for line in checked)
    if not checked:
        trust = '<a href="#trust" class="trust open">not verified</a>'
    elif holds == len(checked):
        trust = (
            f'<a href="#trust" class="trust holds">✓ {_count(holds, "identity")} hold{"s" if holds == 1 else ""}</a>'
        )
    else:
        trust = f'<a href="#trust" class="trust fails">✗ {len(checked) - holds} of {len(checked)} identities fail</a>'
    notes = [trust]
    notes += ['<span class="trust fails">partial: the run was stopped</span>'] if m.status == "partial" else []
    notes += [f'<span class="trust edit">{_count(len(m.edits), "edit")} in force</span>'] if m.edits else []
    size = sum(info.nbytes for info in m.tensors.values())
    facts = [
        ("tokens", f"{len(trace):,}", f"{m.prompt_length:,} given, {generated:,} generated"),
        ("layers", f"{m.model['config']['n_layers']}", html(m.model["format"])),
        ("recorded", _bytes(size), f"in {_count(len(m.tensors), 'array')}"),
        ("weights", f"<code>{html(m.model['weights_digest'].removeprefix('sha256:')[:12])}</code>", "sha256, first 12"),
        ("trace", f"<code>{m.id[:12]}</code>", html(m.created[:19].replace("T", " "))),
    ]
    cells = "".join(f"<div><dt>{label}</dt><dd>{value}<small>{more}</small></dd></div>" for label, value, more in facts)
    return (
        f'<header>\n<p class="kind">{html(m.model["name"])}, a recorded run</p>\n<h1>{_question(trace)}</h1>\n'
        f'<p class="notes">{" ".join(notes)}</p>\n<dl class="facts">{cells}</dl>\n</header>'
    )


def _question(trace: Trace) -> str:
    """What was asked last, or else the name of the model: the title of the page."""
    asked = [span for span in trace.spans if span.role == "user" and span.content_start < span.content_stop]
    text = "".join(trace.pieces[asked[-1].content]).strip() if asked else ""
    return html(text[:160] + ("…" if len(text) > 160 else "") if text else trace.manifest.model["name"], newline=" ")


def _details(trace: Trace) -> str:
    m = trace.manifest
    signs = {"holds": "✓ holds", "fails": "✗ fails", "not checked": "– not checked"}
    rows = "".join(
        f'<tr class="{line["status"].split()[0]}"><td>{signs[line["status"]]}</td><td>{html(line["identity"])}</td>'
        f'<td class="number">{_number(line["worst"])}</td><td class="number">{_number(line["tolerance"])}</td>'
        f"<td>{html(line['why'])}</td></tr>"
        for line in m.verification
    )
    table = (
        '<table><thead><tr><th></th><th>identity</th><th class="number">worst error</th>'
        f'<th class="number">tolerance</th><th></th></tr></thead><tbody>{rows}</tbody></table>'
        if rows
        else '<p class="quiet">Nothing was checked when this trace was recorded.</p>'
    )
    parts = [
        '<section class="trusted" id="trust"><h2>Can these numbers be trusted?</h2>'
        '<p class="quiet">What must hold in every run of gpt-oss, checked on this one. Errors are relative to the '
        f"largest value compared.</p>{table}</section>"
    ]
    if m.edits:
        parts.append(_section("Edits", "".join(_table(edit) for edit in m.edits)))
    generation = m.generation and {k: "—" if v is None else v for k, v in m.generation.items()}
    parts.append(_section("Generation", _table(generation or {"": "none: the text was only read"})))
    parts.append(_section("Numerics", _table(m.numerics)))
    if m.routes:
        told = f"{m.routes['differ']:,} of {m.routes['compared']:,} expert choices differ, live run against replay."
        parts.append(_section("Routes", f"<p>{told}</p>"))
    if m.gave_way:
        parts.append(_section("Left out to fit the budget", _list(m.gave_way)))
    if m.notes:
        parts.append(_section("Notes", _list(m.notes)))
    identity = {
        "trace": m.id,
        "content": m.content_hash,
        "weights": m.model["weights_digest"],
        "tokenizer": m.model["tokenizer_digest"] or "—",
    }
    parts.append(_section("Digests", _table(identity), "wide"))
    parts.append(_section("Recorded", _arrays(trace), "wide"))
    return f'<div class="details">{"".join(parts)}</div>'


def _section(title: str, inside: str, name: str = "") -> str:
    return f'<section class="{name}"><h2>{title}</h2>{inside}</section>'


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<div><dt>{html(str(key))}</dt><dd>{html(_plain(value))}</dd></div>" for key, value in values.items()
    )
    return f'<dl class="table">{rows}</dl>'


def _list(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{html(line)}</li>" for line in lines) + "</ul>"


def _arrays(trace: Trace) -> str:
    """One line for all layers of a hook point."""
    tensors, lines = trace.manifest.tensors, {}
    for name in trace.names():
        info = tensors[name]
        word = ".".join("*" if part.isdigit() else part for part in name.split("."))
        shape = " ".join(f"{axis} {size:,}" for axis, size in zip(info.axes, info.shape, strict=True))
        lines.setdefault((word, shape, info.dtype, info.source), []).append(info.nbytes)
    rows = "".join(
        f'<tr><td><code>{html(word)}</code></td><td class="number">{f"{len(sizes)} ×" if len(sizes) > 1 else ""}</td>'
        f"<td>{html(shape)}</td><td>{html(dtype)}</td><td>{source}</td>"
        f'<td class="number">{_bytes(sum(sizes))}</td></tr>'
        for (word, shape, dtype, source), sizes in lines.items()
    )
    return f"<table><tbody>{rows}</tbody></table>" if rows else '<p class="quiet">No arrays.</p>'


# What was said.


def _transcript(run: _Run) -> str:
    title = _titles(run)
    by_start = {step.start: (number, step) for number, step in enumerate(run.steps, 1)}
    owner = np.zeros(run.n, int)
    for number, step in enumerate(run.steps, 1):
        owner[step.start : step.stop] = number

    def tokens(start: int, stop: int) -> str:
        return "".join(_token(run, position, title(position)) for position in range(start, stop))

    def content(message: Span) -> Iterator[str]:
        for number, group in groupby(range(message.content_start, message.content_stop), key=lambda p: int(owner[p])):
            positions = list(group)
            inside = tokens(positions[0], positions[-1] + 1)
            if number == 0:
                yield inside
                continue
            kind = run.steps[number - 1].kind
            mark = f'<sup aria-hidden="true">{number}</sup>' if positions[0] in by_start else ""
            yield f'<span class="step {run.kinds[kind]}">{mark}{inside}</span>'

    drawn = []
    for message in run.messages:
        said = "".join(content(message))
        if message.content_start == message.content_stop:
            said = '<span class="quiet">(empty)</span>'
        cut = "" if message.complete else '<p class="cut">the run ended inside this message</p>'
        head = tokens(message.start, message.content_start)
        tail = tokens(message.content_stop, message.stop)
        drawn.append(
            f'<article class="{_look(message)}"><h3>{_label(message)}</h3><div class="said">'
            f'{f"<span class=frame>{head}</span>" if head else ""}<div class="content">{said}</div>'
            f"{f'<span class=frame>{tail}</span>' if tail else ''}{cut}</div></article>"
        )
    legend = "".join(
        f'<li><span class="swatch {colour}"></span>{_words(kind)} <b>{run.counts[kind]}</b></li>'
        for kind, colour in run.kinds.items()
    )
    legend = f'<li class="name">steps of the analysis</li>{legend}' if legend else ""
    if run.logprob is not None and run.n > run.trace.prompt_length:
        legend += (
            '<li class="name">written with probability</li>'
            '<li><span class="t s1">under ½</span></li><li><span class="t s2">under ⅒</span></li>'
        )
    long = " long" if run.n > 600 else ""
    return (
        '<section class="transcript"><h2>Transcript</h2>'
        f'<ul class="legend">{legend}</ul><div id="transcript" class="messages{long}">{"".join(drawn)}</div></section>'
    )


def _token(run: _Run, position: int, title: str) -> str:
    name = "t"
    if run.logprob is not None and position >= run.trace.prompt_length:
        value = run.logprob[position]
        name = "t s2" if value < _RARE else "t s1" if value < _LIKELY else "t"
    text = html(run.pieces[position], newline="\n").replace("\n", "<i></i>\n") or '<i class="nothing"></i>'
    return f'<span class="{name}" title="{title}">{text}</span>'


def _titles(run: _Run) -> Callable[[int], str]:
    """Position -> what a reader sees when the mouse rests on the token, escaped."""

    @cache
    def word(token: int) -> str:
        return f"“{html(run.words[token], newline='↵')}”" if token in run.words else f"#{token}"

    def likeliest(position: int, count: int) -> str:
        ids, chances = run.top_ids[position][:count].tolist(), np.exp(run.top_logprobs[position][:count]).tolist()
        return ", ".join(f"{word(token)} {_chance(chance)}" for token, chance in zip(ids, chances, strict=False))

    given = run.trace.prompt_length
    sinks = None if run.sink is None else _mean(run.sink)
    known = min(len(run.top_ids), len(run.top_logprobs), run.n)
    ids = run.trace.tokens

    def title(position: int) -> str:
        here = "given" if position < given else "generated"
        lines = [f"{word(ids[position])} · position {position} · id {ids[position]} · {here}"]
        facts = []
        if run.logprob is not None and np.isfinite(run.logprob[position]):
            value = run.logprob[position]
            facts.append(f"log-probability {_number(value)} (p {_chance(float(np.exp(value)))})")
        if run.entropy is not None and np.isfinite(run.entropy[position]):
            facts.append(f"entropy of the next {_number(run.entropy[position])}")
        if facts:
            lines.append(" · ".join(facts))
        if 0 < position <= known and run.top_ids.shape[1:] != (0,) and run.top_ids[position - 1][0] != ids[position]:
            lines.append(f"likelier here: {likeliest(position - 1, 1)}")
        if position < known:
            lines.append(f"next: {likeliest(position, 3)}")
        facts = []
        if sinks is not None and np.isfinite(sinks[position]):
            facts.append(f"sink mass {_number(sinks[position])}")
        if run.margin is not None and np.isfinite(run.margin[:, position]).any():
            layer = int(np.nanargmin(run.margin[:, position]))
            facts.append(f"smallest router margin {_number(run.margin[layer, position])} in layer {layer}")
        if run.depth is not None and np.isfinite(run.depth[position]):
            facts.append(f"settled from layer {int(run.depth[position])} on")
        if facts:
            lines.append(" · ".join(facts))
        return "&#10;".join(lines)

    return title


def _label(message: Span) -> str:
    words = [html(message.author or message.role)]
    words += [f"<b>{html(message.channel)}</b>"] if message.channel else []
    words += [f"<small>to {html(message.recipient)}</small>"] if message.recipient else []
    return " ".join(words)


def _look(message: Span) -> str:
    """Classes of ours: what a model wrote as its role or channel never becomes one."""
    role = message.role if message.role in _ROLES else "other"
    channel = message.channel if message.channel in _CHANNELS else "none"
    return f"r-{role} c-{channel}"


# What went on.


def _lanes(run: _Run) -> str:
    if run.n == 0:
        return '<section class="lanes"><h2>Lanes</h2><p class="quiet">This trace has no tokens.</p></section>'
    n = run.n
    kept = min(n, lanes.COLUMNS)

    def at(position: int) -> float:
        return position * kept / n

    rows = [
        _row("messages", "", lanes.ribbon(n, [(m.start, m.stop, _look(m), _plain_label(m)) for m in run.messages]), ""),
    ]
    if run.steps:
        blocks = [(s.start, s.stop, run.kinds[s.kind], _words(s.kind)) for s in run.steps]
        rows.append(_row("steps", "", lanes.ribbon(n, blocks), ""))
    rows += [
        _bars("log-probability", "of the token, in nats", run.logprob, "min", "logprob", top=0.0),
        _bars("entropy", "of the next token, in nats", run.entropy, "max", "entropy", bottom=0.0),
        _bars(
            "settles at layer",
            "from where on the lens says what the model says",
            run.depth,
            "max",
            "lens",
            bottom=0.0,
            top=float(max(run.layers - 1, 1)),
        ),
        _heat("sink mass", "mean over the heads", run.sink, "max", "sink", "sink", bottom=0.0),
        _heat(
            "router margin",
            "last chosen expert − first not chosen, in logits",
            run.margin,
            "min",
            "margin",
            "margin",
            bottom=0.0,
        ),
        _heat("residual norm", "log₁₀ of the L2 norm of resid_post", _log(run.resid_norm), "max", "resid_norm", "norm"),
        _row("position", "", lanes.axis(n), ""),
    ]
    looks = [(at(m.start), at(m.stop), _look(m)) for m in run.messages]
    ticks = [at(p) for p in sorted({s.start for s in run.steps} | {s.stop for s in run.steps})]
    shaded = lanes.bands(kept, [(a, b, look) for a, b, look in looks], ticks if len(ticks) <= 160 else [])
    note = ""
    if n > lanes.COLUMNS:
        note = f" {n:,} tokens share {lanes.COLUMNS:,} columns; each lane says which of a column's values it keeps."
    return (
        '<section class="lanes"><h2>Token by token</h2>'
        '<p class="quiet">One column a token; layers go upwards. Shaded by message, a hairline where a step begins.'
        f'{note}</p><div id="lanes" class="plots"><div class="under">{shaded}</div>{"".join(rows)}'
        '<div class="over"><svg id="mark" aria-hidden="true"><rect width="0" height="100%"/></svg></div>'
        "</div></section>"
    )


def _row(label: str, unit: str, plot: str, scale: str, name: str = "") -> str:
    small = f"<small>{unit}</small>" if unit else ""
    return (
        f'<div class="lane {name}"><div class="label">{label}{small}</div><div class="plot">{plot}</div>'
        f'<div class="scale">{scale}</div></div>'
    )


def _missing(label: str, unit: str, record: str) -> str:
    if record == "lens":
        hint = 'record="lens" records it'
    else:
        hint = f'workbench records "{record}" with every record=, "auto" too'
    return _row(label, unit, f'<p class="quiet missing">not in this trace; {hint}</p>', "", "absent")


def _bars(
    label: str,
    unit: str,
    values: np.ndarray | None,
    keep: str,
    record: str,
    *,
    bottom: float | None = None,
    top: float | None = None,
) -> str:
    if values is None:
        return _missing(label, unit, record)
    cells = lanes.columns(values, keep)
    low, high = lanes.spread(cells)
    low, high = low if bottom is None else bottom, high if top is None else top
    plot = lanes.bars(cells, low, high, hang=bottom is None)
    scale = f"<span>{_number(high)}</span><span>{_number(low)}</span>"
    return _row(label, unit + _shared(values, keep), plot, scale, "tall")


def _heat(
    label: str, unit: str, values: np.ndarray | None, keep: str, record: str, name: str, *, bottom: float | None = None
) -> str:
    if values is None:
        return _missing(label, unit, record)
    cells = lanes.columns(values, keep)
    if len(cells) > lanes.ROWS:
        cells = lanes.columns(cells.T, keep, lanes.ROWS).T
    low, high = lanes.spread(cells)
    low = low if bottom is None else min(bottom, low)
    ends = f'<span class="ends">{lanes.key()}<span>{_number(low)}</span><span>{_number(high)}</span></span>'
    scale = f"<span>layer {len(values) - 1}</span>{ends}<span>layer 0</span>"
    return _row(label, unit + _shared(values, keep), lanes.heat(cells, low, high), scale, f"map {name}")


def _shared(values: np.ndarray, keep: str) -> str:
    return f"; downsampled ({keep})" if values.shape[-1] > lanes.COLUMNS else ""


def _words(kind: str) -> str:
    return html(kind.replace("_", " "))


def _plain_label(message: Span) -> str:
    return html(message.channel or message.author or message.role)


def _log(values: np.ndarray | None) -> np.ndarray | None:
    if values is None:
        return None
    return np.log10(np.where(values > 0, values, np.nan))


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the layers that hold a number at all."""
    there = np.isfinite(values)
    return np.where(there, values, 0).sum(0) / np.where(there.any(0), there.sum(0), np.nan)


# Numbers as text.


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}".replace("-", "−")


def _chance(p: float) -> str:
    return "1.00" if p >= 0.9995 else f"{p:.2f}" if p >= 0.01 else f"{p:.1g}"


def _count(n: int, what: str) -> str:
    many = what[:-1] + "ies" if what.endswith("ty") else what + "s"
    return f"{n:,} {what if n == 1 else many}"


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:,.3g} {unit}" if unit != "bytes" else f"{size:,} bytes"
        size /= 1000
    return ""


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value) or "none"
    return _number(value) if isinstance(value, float) else str(value)


__all__ = ["page", "save_page"]
