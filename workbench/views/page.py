"""A view as one HTML page: the model, the verification, the view itself, and what was recorded.

The page needs no network, no server and no Python. Its content security policy allows one style and one script, by
hash, and nothing else: if model text ever became markup, it could neither run nor load anything. Without scripts the
page still shows the whole transcript. All text that comes from a model or a file goes through `workbench.text`.
"""

import os
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from workbench.files import atomic_write, make_folder
from workbench.paths import expanded
from workbench.text import html, number_text, size_text
from workbench.traces import Call, Trace
from workbench.traces.authorship import token_counts
from workbench.traces.model_parts import identity_text, is_gpt_oss
from workbench.traces.spans import Span
from workbench.views.outline import color_of, messages
from workbench.views.script import HERE, script, style
from workbench.views.snapshot_html import table

if TYPE_CHECKING:
    from workbench.views.view import View

WRITER_TEXTS = {"prompt": "prompt", "model": "generated"}


class PageParts(NamedTuple):
    """The parts of a page besides the view itself, as HTML that was escaped."""

    title: str
    header: str
    without_script: str  # shown in place of the view by a browser without scripts
    details: str  # below the view


def page(view: "View") -> str:
    """The page as a string: a complete, self-contained HTML document. The same view always gives the same page.

    >>> text = page(wb.views.score_sheet(trace))
    >>> "https:" in text, text.count("<script")
    (False, 2)
    """
    css = (HERE / "page.css").read_text("utf-8") + style()
    js = script(view.module) + "renderFrozen();\n"
    data = b64encode(zlib.compress(view.reply("open", {}), 6)).decode()
    policy = (
        f"default-src 'none'; style-src '{_digest(css)}'; script-src '{_digest(js)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = view.page_parts()
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{parts.title}</title>\n"
        f"<style>{css}</style>\n</head>\n<body>\n{parts.header}\n<main>\n"
        f'<div id="view"></div>\n<div id="snapshot">{parts.without_script}</div>\n{parts.details}\n</main>\n'
        f'<script type="application/octet-stream" id="data">{data}</script>\n<script type="module">{js}</script>\n'
        "</body>\n</html>\n"
    )


def parts_of_trace(view: "View") -> PageParts:
    """The parts of the page of a trace: its question, its header, its transcript with the pictures of the view."""
    trace = view.trace
    rows = table([row for row in view.snapshot() if row.png or row.drawing or not row.text])
    title = f"{_question(trace)} · {html(trace.manifest.model['name'])}"
    return PageParts(title, _header(trace), _transcript(trace) + rows, _details(trace))


def save_page(view: "View", path: os.PathLike[str] | str) -> Path:
    """Write `page(view)` to `path` and return the path. An existing file is replaced atomically.

    Raises FileError if it cannot be written.
    """
    path = expanded(path)
    text = page(view)
    make_folder(path.parent)
    return atomic_write(path, text)


def _digest(text: str) -> str:
    """The hash of an inline style or script for the content security policy.

    As in browsers, it covers the text between the tags.
    """
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()


# The transcript, for a browser without script.


def _transcript(trace: Trace) -> str:
    str_tokens = trace.str_tokens
    return "".join(_article(str_tokens, message) for message in messages(trace.spans, len(trace)))


def _article(str_tokens: Sequence[str], message: Span) -> str:
    header, content, end = (
        html("".join(str_tokens[a:b]), newline="\n")
        for a, b in (
            (message.start, message.content_start),
            (message.content_start, message.content_stop),
            (message.content_stop, message.stop),
        )
    )
    title = [html(message.author or message.role)]
    title += [f"<b>{html(message.channel)}</b>"] if message.channel else []
    title += [f"<small>to {html(message.recipient)}</small>"] if message.recipient else []
    cut = "" if message.complete else '<p class="cut">the run ended inside this message</p>'
    empty = '<span class="quiet">(empty)</span>' if message.content_start == message.content_stop else ""
    return (
        f'<article class="m{color_of(message)}"><h3>{" ".join(title)}</h3><div class="content">'
        f'<span class="frame">{header}</span><p>{content or empty}</p><span class="frame">{end}</span>{cut}'
        "</div></article>"
    )


# The header of the page.


def _header(trace: Trace) -> str:
    m = trace.manifest
    counts = token_counts(m.written)
    written = ", ".join(f"{n:,} {WRITER_TEXTS.get(who, f'by {who}')}" for who, n in counts.items())
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
    notes += [f'<span class="trust edit">{_count(len(m.edits), "edit")} active</span>'] if m.edits else []
    size = sum(info.nbytes for info in m.tensors.values())
    method, _, digest = m.model["weights_digest"].rpartition(":")
    hash_text = "sha256 of samples" if method == "sampled-sha256" else "sha256"
    facts = [
        ("tokens", f"{len(trace):,}", html(written)),
        ("layers", f"{m.model['config']['n_layers']}", html(m.model["format"])),
        ("recorded", size_text(size), f"in {_count(len(m.tensors), 'array')}"),
        ("weights", f"<code>{html(digest[:12])}</code>", f"{hash_text}, first 12"),
        ("trace", f"<code>{m.id[:12]}</code>", html(m.created[:19].replace("T", " "))),
    ]
    cells = "".join(f"<div><dt>{label}</dt><dd>{value}<small>{more}</small></dd></div>" for label, value, more in facts)
    return (
        f'<header>\n<p class="kind">{html(m.model["name"])}, a recorded run</p>\n<h1>{_question(trace)}</h1>\n'
        f'<p class="notes">{" ".join(notes)}</p>\n<dl class="facts">{cells}</dl>\n</header>'
    )


def _question(trace: Trace) -> str:
    """The title of the page: the last user message, or the model's name if there is none."""
    user_spans = [span for span in trace.spans if span.role == "user" and span.content_start < span.content_stop]
    text = "".join(trace.str_tokens[user_spans[-1].content]).strip() if user_spans else ""
    return html(text[:160] + ("…" if len(text) > 160 else "") if text else trace.manifest.model["name"], newline="↵ ")


def _details(trace: Trace) -> str:
    m = trace.manifest
    config = m.model["config"]
    signs = {"holds": "✓ holds", "fails": "✗ fails", "not checked": "– not checked"}
    rows = "".join(
        f'<tr class="{line["status"].split()[0]}"><td>{signs[line["status"]]}</td>'
        f"<td>{html(identity_text(line['identity'], config))}</td>"
        f'<td class="number">{_number(line["max_error"])}</td><td class="number">{_number(line["tolerance"])}</td>'
        f"<td>{html(line['reason'])}</td></tr>"
        for line in m.verification
    )
    table = (
        '<table><thead><tr><th></th><th>identity</th><th class="number">maximum error</th>'
        f'<th class="number">tolerance</th><th></th></tr></thead><tbody>{rows}</tbody></table>'
        if rows
        else '<p class="quiet">No identity was checked when this trace was recorded.</p>'
    )
    parts = [
        '<section class="trusted" id="trust"><h2>Can these numbers be trusted?</h2>'
        f'<p class="quiet">Identities that hold in every run of {"gpt-oss" if is_gpt_oss(config) else "this model"}, '
        f"checked on this one. Errors are relative to "
        f"the largest value compared.</p>{table}</section>"
    ]
    if m.edits:
        parts.append(_section("Edits", "".join(_table(edit) for edit in m.edits)))
    generation = m.generation and {k: "—" if v is None else v for k, v in m.generation.items()}
    parts.append(_section("Generation", _table(generation or {"": "none: prefill only"})))
    if m.calls:
        parts.append(_section("Calls to tools", "".join(_call(call) for call in m.calls), "wide"))
    parts.append(_section("Numerics", _table(m.numerics)))
    if m.replayed_routing:
        different, compared = m.replayed_routing["different"], m.replayed_routing["compared"]
        text = f"{different:,} of {compared:,} expert choices differ between the live run and its replay."
        parts.append(_section("Routing", f"<p>{text}</p>"))
    if m.omitted:
        parts.append(_section("Left out to fit the budget", _list(m.omitted)))
    if m.notes:
        parts.append(_section("Notes", _list(m.notes)))
    identity = {
        "trace": m.id,
        "content": m.content_hash,
        "weights": m.model["weights_digest"],
        "tokenizer": m.model["tokenizer_digest"] or "—",
        **({"follows": m.follows} if m.follows else {}),
    }
    parts.append(_section("Digests", _table(identity), "wide"))
    parts.append(_section("Recorded", _arrays(trace), "wide"))
    return f'<div class="details">{"".join(parts)}</div>'


def _call(call: Call) -> str:
    """A table of one call: its arguments, its result, and how long it took."""
    answer = {"error": call.error} if call.error else {}
    answer |= {"result": "none" if call.result is None else call.result}
    times = {"started": call.started, "seconds": call.seconds}
    known = {name: value for name, value in times.items() if value is not None}
    return _table({"tool": call.tool, "arguments": call.arguments, **answer, **known})


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
    """A table of the recorded arrays, with one row for all layers of a hook point."""
    tensors, lines = trace.manifest.tensors, {}
    for name in trace.names():
        info = tensors[name]
        hook = ".".join("*" if part.isdigit() else part for part in name.split("."))
        shape = " ".join(f"{axis} {size:,}" for axis, size in zip(info.axes, info.shape, strict=True))
        lines.setdefault((hook, shape, info.dtype, info.source), []).append(info.nbytes)
    rows = "".join(
        f'<tr><td><code>{html(hook)}</code></td><td class="number">{f"{len(sizes)} ×" if len(sizes) > 1 else ""}</td>'
        f"<td>{html(shape)}</td><td>{html(dtype)}</td><td>{source}</td>"
        f'<td class="number">{size_text(sum(sizes))}</td></tr>'
        for (hook, shape, dtype, source), sizes in lines.items()
    )
    return f"<table><tbody>{rows}</tbody></table>" if rows else '<p class="quiet">No arrays.</p>'


def _number(value: float | None) -> str:
    return "–" if value is None else number_text(value, 3)


def _count(n: int, noun: str) -> str:
    plural = noun[:-1] + "ies" if noun.endswith("ty") else noun + "s"
    return f"{n:,} {noun if n == 1 else plural}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value) or "none"
    return _number(value) if isinstance(value, float) else str(value)
