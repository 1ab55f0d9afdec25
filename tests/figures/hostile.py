"""Texts that look like markup, a formula, a template or a spreadsheet's formula, or that are invisible."""

HOSTILE = [
    "<script>alert(1)</script>",
    "</title><img src=x onerror=alert(2)>",
    "<b>bold</b>",
    "<a href='javascript:alert(3)'>x</a>",
    "&lt;b&gt; &amp; &#65;",
    "$x_1$",
    r"$\frac{1}{0}$ \alpha",
    "%{x} %{customdata[0]}",
    "{x}",
    "=HYPERLINK(1)",
    "a,b\"c'd",
    "\u202ecod.exe\u2066",
    "\x00\x1b[31m",
    "\u200b\ufeff",
    "]]><!-- --",
    "\ud800",
    "",
    " ",
    "\n\t",
    "中文 🤖",
]

SETS = [HOSTILE[:7], HOSTILE[7:14], HOSTILE[13:]]  # seven in each, the number that a figure needs
