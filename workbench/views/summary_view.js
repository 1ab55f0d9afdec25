// @ts-check
// The runs of a store as a table: rows exist while they are in sight, a title sorts, words filter, and a click opens the
// score sheet of a run below the table. All texts enter the page as textContent.
import { copyText } from "./clipboard.js";
import { mount, register } from "./mount.js";
import { isForNotebook, leaveView, letShortcutsThrough } from "./notebook_keys.js";
import "./score_sheet_view.js";
import { number } from "./token_index.js";
import { make } from "./view_frame.js";

const ROW_TALL = 24, // as in views.css
  EXTRA_ROWS = 6, // above and below those in sight
  LANES_AT_ONCE = 60,
  LANES_DELAY = 60, // milliseconds without scrolling until lanes are requested
  LANES_KEPT = 5000;

register("summary", (ctx) => {
  const { el, data, bus, signal, theme, queryPython } = ctx,
    { state } = bus,
    { ids, columns, lanes, bins, arrays } = data,
    n = ids.length,
    size = lanes.length * bins;
  const values = columns.map((_, c) => arrays[`column:${c}`]);
  const textAt = (c, row) =>
    columns[c].texts ? columns[c].texts[values[c][row]] : number(values[c][row]);
  const on = (target, type, f) => target.addEventListener(type, f, { signal });
  const button = (text, title, f) => {
    const made = make("button", { type: "button", textContent: text, title, label: title });
    on(made, "click", f);
    return made;
  };

  // The order of the rows: those that pass the filter, sorted by a column.
  let order = Uint32Array.from({ length: n }, (_, i) => i),
    sortedBy = -1,
    descending = false,
    haystacks = null;
  const haystack = () => {
    haystacks ??= Array.from({ length: n }, (_, row) =>
      [ids[row], ...columns.map((column, c) => (column.texts ? textAt(c, row) : ""))]
        .join("\n")
        .toLowerCase(),
    );
    return haystacks;
  };
  const rankOf = (c) => {
    const { texts } = columns[c];
    if (!texts) return (row) => values[c][row];
    const places = new Uint32Array(texts.length);
    texts
      .map((text, i) => [text.toLowerCase(), i])
      .sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0))
      .forEach(([, i], rank) => {
        places[i] = rank;
      });
    return (row) => places[values[c][row]];
  };
  const arrange = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let rows = Array.from({ length: n }, (_, i) => i);
    if (words.length)
      rows = rows.filter((row) => words.every((word) => haystack()[row].includes(word)));
    if (sortedBy >= 0) {
      const rank = rankOf(sortedBy),
        sign = descending ? -1 : 1;
      rows.sort((a, b) => {
        const [x, y] = [rank(a), rank(b)];
        if (Number.isNaN(x) || Number.isNaN(y)) return +Number.isNaN(x) - +Number.isNaN(y); // last in both orders
        return sign * (x - y) || a - b;
      });
    }
    order = Uint32Array.from(rows);
    count.textContent =
      rows.length === n
        ? `${n.toLocaleString("en")} runs`
        : `${rows.length.toLocaleString("en")} of ${n.toLocaleString("en")} runs`;
    grid.setAttribute("aria-rowcount", String(rows.length + 1));
    filler.style.height = `${rows.length * ROW_TALL}px`;
    paint(true);
  };

  // The lanes that are known: levels of a row, in the order of `lanes`.
  const known = new Map(),
    requested = new Set();
  const levelsOf = (row) => arrays.lanes?.subarray(row * size, (row + 1) * size) ?? known.get(row);
  let lanesTimer = 0;
  const requestLanes = (rows) => {
    clearTimeout(lanesTimer);
    const missing = rows.filter((row) => !levelsOf(row) && !requested.has(row));
    if (!missing.length || arrays.lanes) return;
    lanesTimer = setTimeout(async () => {
      const batch = missing.slice(0, LANES_AT_ONCE);
      for (const row of batch) requested.add(row);
      try {
        const reply = await queryPython("lanes", { rows: batch });
        if (known.size > LANES_KEPT) known.clear();
        batch.forEach((row, i) => {
          known.set(row, reply.arrays.lanes.subarray(i * size, (i + 1) * size));
        });
      } catch (error) {
        readout.textContent = error.message;
        return; // these rows are not requested again
      }
      for (const row of batch) requested.delete(row);
      if (!signal.aborted) paint();
    }, LANES_DELAY);
  };
  const drawLane = (canvas, levels, lane) => {
    const scale = globalThis.devicePixelRatio || 1,
      wide = Math.round(bins * scale),
      tall = Math.round((ROW_TALL - 6) * scale),
      pen = canvas.getContext("2d");
    if (canvas.width !== wide || canvas.height !== tall)
      Object.assign(canvas, { width: wide, height: tall });
    pen.clearRect(0, 0, wide, tall);
    if (!levels) return;
    pen.fillStyle = theme.of.bar;
    const fromTop = lanes[lane].keep === "min"; // a log-probability hangs from 0
    for (let b = 0; b < bins; b++) {
      const level = levels[lane * bins + b];
      if (!level) continue;
      const share = (level - 1) / 254,
        h = Math.max(1, Math.round((fromTop ? 1 - share : share) * tall));
      pen.fillRect(
        Math.round(b * scale),
        fromTop ? 0 : tall - h,
        Math.max(1, Math.round((b + 1) * scale) - Math.round(b * scale)),
        h,
      );
    }
  };

  // The elements.
  const search = make("input", {
    type: "search",
    placeholder: "filter  /",
    label: "filter the runs by words",
  });
  const count = make("span", { className: "wb-count", role: "status" }),
    announcement = make("div", { className: "wb-announcement", role: "status" }),
    code = make("input", {
      className: "wb-code",
      readOnly: true,
      hidden: true,
      label: "Python",
    }),
    readout = make("div", { className: "wb-readout" }),
    sheet = make("div", { className: "wb-sheet" }),
    filler = make("div", { className: "wb-filler" });
  const widths = [
    ...columns.map(({ kind, name }) =>
      kind === "id"
        ? "76px"
        : ["question", "answer", "edits"].includes(name)
          ? "minmax(90px, 2fr)"
          : kind === "text"
            ? "minmax(60px, 1fr)"
            : "minmax(56px, 0.5fr)",
    ),
    ...lanes.map(() => `${bins + 8}px`),
  ].join(" ");
  const titles = columns.map((column, c) => {
    const title = make("button", {
      type: "button",
      className: column.kind === "number" ? "wb-number" : "",
      textContent: column.title,
      label: column.title, // without the arrow
      title: `sort by ${column.title}`,
    });
    on(title, "click", () => {
      descending = sortedBy === c ? !descending : column.kind === "number";
      sortedBy = c;
      titles.forEach((each, i) => {
        each.parentElement.setAttribute(
          "aria-sort",
          i !== c ? "none" : descending ? "descending" : "ascending",
        );
      });
      arrange();
    });
    return title;
  });
  const head = make(
    "div",
    { className: "wb-run wb-titles", role: "row" },
    ...titles.map((title) => make("div", { role: "columnheader" }, title)),
    ...lanes.map(({ name, unit, low, high }) =>
      make("div", {
        role: "columnheader",
        className: "wb-lane",
        textContent: name,
        title: `${name}, ${number(low)} to ${number(high)} ${unit}, over the tokens; several tokens of a column show their extreme`,
      }),
    ),
  );
  head.style.gridTemplateColumns = widths;
  const list = make("div", { className: "wb-list", role: "rowgroup" }, filler),
    grid = make("div", { className: "wb-runs", role: "grid", label: "runs" }, head, list);

  // Rows: one element for each row in sight, used again for others while scrolling.
  const elements = [];
  const elementAt = (i) => {
    if (!elements[i]) {
      const cells = columns.map(({ kind }) =>
          make("div", { role: "gridcell", className: kind === "number" ? "wb-number" : "" }),
        ),
        canvases = lanes.map(({ name }) =>
          make("canvas", { role: "img", label: `${name} over the tokens` }),
        ),
        row = make(
          "div",
          { className: "wb-run", role: "row" },
          ...cells,
          ...canvases.map((canvas) => make("div", { role: "gridcell" }, canvas)),
        );
      row.style.gridTemplateColumns = widths;
      filler.append(row);
      elements[i] = { row, cells, canvases, shown: -1, place: -1, levels: null };
    }
    return elements[i];
  };
  let frameRequest = 0;
  const paint = (all = false) => {
    const tall = list.clientHeight || 400,
      first = Math.max(0, Math.floor(list.scrollTop / ROW_TALL) - EXTRA_ROWS),
      last = Math.min(order.length, Math.ceil((list.scrollTop + tall) / ROW_TALL) + EXTRA_ROWS),
      needed = last - first;
    const inSight = [];
    for (let i = 0; i < needed; i++) {
      const place = first + i,
        row = order[place],
        element = elementAt(place % Math.max(needed, elements.length)),
        levels = levelsOf(row) ?? null;
      inSight.push(row);
      if (element.place !== place) {
        element.place = place;
        element.row.style.transform = `translateY(${place * ROW_TALL}px)`;
        element.row.setAttribute("aria-rowindex", String(place + 2));
      }
      if (element.shown !== row) {
        element.shown = row;
        element.cells.forEach((cell, c) => {
          const text = textAt(c, row);
          cell.textContent = text;
          cell.title = text;
        });
        element.row.classList.toggle(
          "wb-unverified",
          verified >= 0 && textAt(verified, row) === "no",
        );
      } else if (!all && element.levels === levels) {
        mark(element);
        continue;
      }
      element.levels = levels;
      element.canvases.forEach((canvas, lane) => {
        drawLane(canvas, levels, lane);
      });
      mark(element);
    }
    for (const element of elements) {
      const there = element.place >= first && element.place < last;
      element.row.hidden = !there;
      if (!there) element.place = element.shown = -1;
    }
    requestLanes(inSight);
  };
  const verified = columns.findIndex(({ name }) => name === "verified");
  const mark = ({ row, shown }) => {
    row.setAttribute("aria-selected", String(shown >= 0 && shown === state.pin));
    row.classList.toggle("wb-pinned-run", shown >= 0 && shown === state.pin);
  };
  const schedulePaint = () => {
    if (!frameRequest)
      frameRequest = requestAnimationFrame(() => {
        frameRequest = 0;
        paint();
      });
  };

  // Selecting and opening.
  const describe = () => {
    const row = state.pin;
    readout.textContent =
      row < 0 || row >= n
        ? data.hint
        : columns
            .map(({ title }, c) => `${title}: ${textAt(c, row)}`)
            .filter((line) => !line.endsWith(": "))
            .join(" · ");
  };
  let opened = null;
  const close = () => {
    opened?.abort();
    opened = null;
    sheet.replaceChildren();
  };
  const open = async (row) => {
    close();
    const own = new AbortController();
    opened = own;
    signal.addEventListener("abort", () => own.abort(), { signal: own.signal });
    sheet.textContent = `opening ${ids[row].slice(0, 8)} …`;
    try {
      const payload = await queryPython("sheet", { row });
      if (own.signal.aborted) return;
      const place = make("div");
      sheet.replaceChildren(place);
      mount(place, payload, { signal: own.signal, queryPython });
    } catch (error) {
      if (!own.signal.aborted) sheet.textContent = error.message;
    }
  };
  const scrollTo = (row) => {
    const place = order.indexOf(row);
    if (place < 0) return;
    const y = place * ROW_TALL;
    if (y < list.scrollTop) list.scrollTop = y;
    else if (y + ROW_TALL > list.scrollTop + list.clientHeight)
      list.scrollTop = y + ROW_TALL - list.clientHeight;
  };
  const select = (row) => {
    bus.set({ pin: row });
    scrollTo(row);
  };
  const move = (by) => {
    if (!order.length) return;
    const at = order.indexOf(state.pin);
    select(order[at < 0 ? 0 : Math.max(0, Math.min(order.length - 1, at + by))]);
  };
  const python = () => {
    code.value = state.pin < 0 ? `${data.call})` : `store["${ids[state.pin]}"]`;
    code.hidden = !code.hidden;
    if (code.hidden) return;
    code.select();
    copyText(code.value).finally(() => code.select());
  };
  const closeOrLeave = () => {
    if (opened) close();
    else if (state.pin >= 0) bus.set({ pin: -1 });
    else leaveView(el);
  };
  const copyId = async () => {
    if (state.pin < 0) return;
    const copied = await copyText(ids[state.pin]);
    announcement.textContent = copied ? `copied: ${ids[state.pin]}` : "not copied";
  };

  const bar = make(
    "div",
    { className: "wb-bar", role: "toolbar", label: "runs: tools" },
    search,
    count,
    make("span", { className: "wb-gap" }),
    button("Python", "Python code of the selected run, or of this table", python),
    button("full", "full screen (f)", () => fullScreen()),
  );
  const fullScreen = () =>
    document.fullscreenElement ? document.exitFullscreen() : el.requestFullscreen?.();
  Object.assign(el, { tabIndex: 0 });
  el.setAttribute("role", "group");
  el.setAttribute(
    "aria-label",
    "runs. Up and down select a run, Enter opens its score sheet, slash filters, Escape closes, a further Escape leaves.",
  );
  el.classList.add("wb-summary");
  letShortcutsThrough(el, search, signal);
  el.append(bar, code, grid, readout, announcement, sheet);

  on(search, "input", arrange);
  on(list, "scroll", schedulePaint);
  on(list, "click", (event) => {
    const target = /** @type {Element} */ (event.target).closest(".wb-run"),
      element = elements.find(({ row }) => row === target);
    if (!element || element.shown < 0) return;
    el.focus({ preventScroll: true });
    if (element.shown === state.pin && opened) {
      close();
      bus.set({ pin: -1 });
      return;
    }
    const row = element.shown;
    bus.set({ pin: row });
    open(row);
  });
  on(el, "keydown", (event) => {
    if (isForNotebook(event, search)) return;
    event.stopPropagation(); // a letter that is no key of a view must not delete cells of the notebook
    if (event.target === search) {
      if (event.key === "Escape") {
        search.value = "";
        arrange();
        el.focus();
      }
      return;
    }
    if (event.target instanceof HTMLButtonElement && [" ", "Enter"].includes(event.key)) return;
    const inSight = Math.max(1, Math.floor(list.clientHeight / ROW_TALL) - 1);
    const action = {
      ArrowDown: () => move(1),
      ArrowUp: () => move(-1),
      PageDown: () => move(inSight),
      PageUp: () => move(-inSight),
      Home: () => move(-n),
      End: () => move(n),
      Enter: () => state.pin >= 0 && open(state.pin),
      Escape: closeOrLeave,
      c: copyId,
      f: fullScreen,
      "/": () => search.focus(),
    }[event.key];
    if (!action) return;
    action();
    event.preventDefault();
  });
  bus.on((_, keys) => {
    if (!keys.has("pin")) return;
    for (const element of elements) mark(element);
    describe();
    announcement.textContent = state.pin < 0 ? "" : readout.textContent;
  }, signal);
  const repaint = () => paint(true);
  theme.changed.add(repaint);
  const observer = new ResizeObserver(schedulePaint);
  observer.observe(list);
  signal.addEventListener("abort", () => {
    observer.disconnect();
    theme.changed.delete(repaint);
    clearTimeout(lanesTimer);
    close();
  });
  describe();
  arrange();
  if (state.pin >= 0) scrollTo(state.pin);
});
