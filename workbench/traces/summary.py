"""The text of `trace.summary()`: the run, its arrays, and whether they verify."""

from collections.abc import Sequence

from workbench import hooks
from workbench.text import visible
from workbench.traces.authorship import MODEL, PROMPT, token_counts
from workbench.traces.calls import Call
from workbench.traces.listing import one_line, question_and_answer
from workbench.traces.manifest import Manifest


def state(manifest: Manifest) -> str:
    """Whether the identities hold: "verified (9 identities)", "not verified", or those that failed."""
    by: dict[str, list[str]] = {"holds": [], "fails": [], "not checked": []}
    for line in manifest.verification:
        by[line["status"]].append(line["identity"])
    if by["fails"]:
        return f"FAILED: {', '.join(by['fails'])}"
    count = len(by["holds"])
    return f"verified ({count} {'identity' if count == 1 else 'identities'})" if count else "not verified"


def sources(manifest: Manifest, names: Sequence[str]) -> str:
    """The origins of these arrays, joined by commas."""
    return ", ".join(sorted({manifest.tensors[name].source for name in names}))


def _by_writer(manifest: Manifest) -> str:
    """How many tokens were generated, and how many each tool put in."""
    counts = token_counts(manifest.written)
    tools = [f"{count} by {who}" for who, count in counts.items() if who not in (PROMPT, MODEL)]
    return ", ".join([f"{counts[MODEL]} of them generated", *tools])


def _call_line(call: Call) -> str:
    """One line on a call: tool, arguments, result, time, error."""
    answer = "no result" if call.result is None else one_line(call.result)
    time = "" if call.seconds is None else f" ({call.seconds:.3g} s)"
    return f"call      {call.tool}: {one_line(call.arguments)} → {call.error or answer}{time}"


def summary(manifest: Manifest, names: Sequence[str]) -> str:
    """Several lines of text: the run, the arrays in the order of `names`, and whether the trace verifies."""
    tensors, count = manifest.tensors, len(manifest.tokens)
    question, answer = (text or "—" for text in question_and_answer(manifest))
    lines = [
        f"model     {manifest.model['name']} ({manifest.model['format']})",
        f"tokens    {count}, {_by_writer(manifest)}; {manifest.status}",
        f"question  {question}",
        f"answer    {answer}",
        f"id        {manifest.id}, recorded {manifest.created}",
        *([f"follows   {manifest.follows}"] if manifest.follows else []),
        "numerics  " + ", ".join(f"{key} {value}" for key, value in sorted(manifest.numerics.items())),
        f"size      {sum(info.nbytes for info in tensors.values()):,} bytes in {len(tensors)} arrays",
        f"trust     {state(manifest)}",
    ]
    lines += [
        f"          {line['status']}: {line['identity']}" + (f" ({line['reason']})" if line["reason"] else "")
        for line in manifest.verification
    ]
    if manifest.replayed_routing:
        different, compared = manifest.replayed_routing["different"], manifest.replayed_routing["compared"]
        lines.append(f"routing   {different} of {compared} expert choices differ between the live run and the replay")
    lines += [_call_line(call) for call in manifest.calls]
    lines += [f"edit      {edit['identity']}" for edit in manifest.edits]
    lines += [f"left out  {text}" for text in manifest.omitted]
    lines += [f"note      {text}" for text in manifest.notes]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(hooks.point_of(name), []).append(name)
    for point, members in groups.items():
        info = tensors[members[0]]
        shape = " ".join(f"{axis} {size}" for axis, size in zip(info.axes, info.shape, strict=True))
        layers = f"{len(members)} x " if "*" in point else ""
        lines.append(f"  {hooks.short_name(point):<16} {layers}[{shape}] {info.dtype}, {sources(manifest, members)}")
    return "\n".join(visible(line) for line in lines)
