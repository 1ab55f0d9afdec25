// Types of what the modules of workbench/views pass to each other. Nothing here is sent to a browser.

/** A typed array of a payload, with the sizes of its axes. */
type Numbers = Float32Array & { shape?: number[] };

interface Message {
  start: number;
  stop: number;
  content: number;
  end: number;
  who: string;
  channel: string;
  name: string;
  to: string;
  complete: boolean;
  color: number;
}

interface Step {
  start: number;
  stop: number;
  kind: string;
  color: number;
}

/** What Python sends: the result of `common` in view.py, and the fields that each view adds. */
interface Payload {
  view: string;
  call: string;
  args: string;
  trace: string;
  foot: string;
  hint: string;
  layers: number;
  written: [number, number, string][];
  token_texts: string[];
  messages: Message[];
  steps: Step[];
  window: [number, number] | null;
  selected: { pos: number; layer?: number; head?: number } | null;
  selected_range: [number, number] | null;
  arrays: Record<string, Numbers>;
  // biome-ignore lint/suspicious/noExplicitAny: each view has fields of its own
  [field: string]: any;
}

/** The state of a view. All views of a trace share hover to query; layer to only are its own until it is linked. */
interface State {
  hover: number;
  row: number;
  key: number;
  cell: string;
  pin: number;
  first: number;
  stop: number;
  query: string;
  layer: number;
  head: number;
  from: number;
  to: number;
  only: string;
}

interface Bus {
  state: State;
  set(patch: Partial<State>): void;
  notify(keys: string[]): void;
  on(f: (state: State, keys: Set<string>) => void, signal: AbortSignal): void;
  size(): number;
  link?(on: boolean): void;
  linked?: number;
}

type Colors = Record<string, string>;

interface Theme {
  of: Colors;
  changed: Set<() => void>;
}

interface TextLook {
  fill: string;
  size?: number;
  align?: "start" | "center" | "end";
  bold?: boolean;
  mono?: boolean;
  width?: number;
}

/** Draws on a canvas or writes SVG. */
interface Pen {
  rect(x: number, y: number, w: number, h: number, fill: string, alpha?: number): void;
  text(x: number, y: number, text: string | number, look: TextLook): void;
  arc(
    x1: number,
    x2: number,
    y: number,
    h: number,
    stroke: string,
    width: number,
    alpha: number,
  ): void;
  image(x: number, y: number, w: number, h: number, picture: HTMLCanvasElement): void;
}

/** The positions from:to, laid out between x0 and x0 + width. */
interface Axis {
  from: number;
  to: number;
  x0: number;
  width: number;
  columns: number;
  cell: number;
  shared: boolean;
  x(position: number): number;
  at(x: number): number;
  column(c: number): [number, number];
}

interface Mark {
  x: number;
  y: number;
  w: number;
  h: number;
  pin?: boolean;
}

/** A canvas that is redrawn only when its content changes. */
interface PlotOptions {
  size(width: number): number;
  draw(pen: Pen, width: number, y0: number): void;
  hit?(x: number, y: number): Partial<State> | null;
  mark?(state: State, width: number): Mark[];
  on?: string[];
  axis?(width?: number): Axis;
  label?: string;
  parent?: Element;
}

interface Figure {
  mark?(state: State, width: number): Mark[];
  size(width: number): number;
  draw(pen: Pen, width: number, y0: number): void;
  paint?(): void;
}

interface Plot extends Figure {
  paint(): void;
  box: HTMLElement;
}

interface View {
  bar: HTMLElement;
  body: HTMLElement;
  figures: Figure[];
  plot(options: PlotOptions): Plot;
  on(target: EventTarget, type: string, f: (event: PointerEvent & KeyboardEvent) => void): void;
  button(text: string, title: string, f: () => void): HTMLButtonElement;
  /** Shows a text below the plots and in the tooltip. */
  describe(text: string): void;
  updateReadout(): void;
  search(): [number, number][];
}

/** The header and arrays that the view's `query` gives; rejected with Python's error. */
// biome-ignore lint/suspicious/noExplicitAny: each view has queries of its own
type QueryPython = (kind: string, request?: Record<string, any>) => Promise<any>;

interface ViewContext {
  el: HTMLElement;
  data: Payload;
  tokens: import("../../workbench/views/token_index.js").Tokens;
  bus: Bus;
  signal: AbortSignal;
  theme: Theme;
  queryPython: QueryPython;
  standalone: boolean;
}

interface FrameOptions {
  label: string;
  args?(state: State): string;
  readout?(position: number, state: State): string[];
  keys?(event: KeyboardEvent): boolean;
}

/** A plot of named cells. */
interface Cells {
  title: string;
  // biome-ignore lint/suspicious/noExplicitAny: texts or numbers
  rows: any[];
  // biome-ignore lint/suspicious/noExplicitAny: texts or numbers
  columns: any[];
  at(row: number, column: number): number;
  low: number;
  high: number;
  colors: Uint32Array;
  unit: string;
  note?: string;
  height?: number;
  widest?: number;
  wide?: number;
  side?: number;
  highlightedRow?: number;
}

interface MatrixOptions {
  label: string;
  cells(width?: number): Cells;
  describe(row: number, column: number): string;
  link?(row: number, column: number): Partial<State>;
  pick?(row: number, column: number): void;
  pinned?(): number[];
  on?: string[];
}

interface StripOptions {
  label: string;
  title(axis: Axis): string;
  size(width: number): number;
  draw(pen: Pen, axis: Axis, y: number, height: number): void;
  row?(y: number, width: number): number;
  on?: string[];
  pooled?: boolean;
}

/** The strongest links of steps: ends (link 2: step, key_step) and strength (link), the largest last. */
interface Links {
  ends: ArrayLike<number>;
  strength: ArrayLike<number>;
}

/** The model that anywidget passes to `render`. */
interface WidgetModel {
  // biome-ignore lint/suspicious/noExplicitAny: the value of a trait
  get(key: string): any;
  // biome-ignore lint/suspicious/noExplicitAny: as above
  set(key: string, value: any): void;
  save_changes(): void;
  // biome-ignore lint/suspicious/noExplicitAny: a message of Python, or a change of a trait
  on(event: string, f: (...args: any[]) => void): void;
  // biome-ignore lint/suspicious/noExplicitAny: as above
  off(event: string, f: (...args: any[]) => void): void;
  send(message: { id: string; kind: string; request: Record<string, unknown> }): void;
}

/** Properties that the views add to elements. */
interface HTMLElement {
  /** The position that a span of the transcript shows. */
  place?: number;
}
interface Element {
  /** The tokens of a part of the transcript. */
  stretch?: { el: HTMLElement; start: number; stop: number; message: Message };
}

/** The name of the script that a live view loads, with its digest. */
declare const SCRIPT: string;
