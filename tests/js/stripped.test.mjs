// Each module, stripped by workbench.views.script, has the syntax tree of its source.
// SOURCES names a JSON file of pairs [source, stripped]. Run by tests/views/test_modules.py.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { parse } from "acorn";

const OPTIONS = /** @type {const} */ ({ ecmaVersion: "latest", sourceType: "module" });

/** The syntax tree without positions, imports and exports. */
function tree(text) {
  const clean = (value) => {
    if (Array.isArray(value))
      return value.filter((v) => v?.type !== "ImportDeclaration").map(clean);
    if (value === null || typeof value !== "object" || value instanceof RegExp)
      return String(value);
    if (value.type === "ExportNamedDeclaration") return clean(value.declaration);
    const entries = Object.entries(value).filter(([key]) => key !== "start" && key !== "end");
    return Object.fromEntries(entries.map(([key, v]) => [key, clean(v)]));
  };
  return clean(parse(text, OPTIONS).body);
}

for (const [name, source, stripped] of JSON.parse(readFileSync(process.env.SOURCES, "utf8"))) {
  test(name, () => {
    assert.deepEqual(tree(stripped), tree(source));
    if (name.endsWith("_view")) {
      const comments = [];
      parse(stripped, { ...OPTIONS, onComment: comments });
      assert.deepEqual(comments, []);
    }
  });
}
