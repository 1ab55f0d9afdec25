// @ts-check
// The tokens as text, colored by channel and step, or by one number per token.
import { mix } from "./drawing.js";
import { register } from "./mount.js";
import { number } from "./token_index.js";
import { legend, transcript } from "./transcript.js";
import { frame } from "./view_frame.js";

register("tokens", (ctx) => {
  const { data, tokens, theme } = ctx,
    { values, logprob } = data.arrays,
    { low, high, label, unit } = data.scale ?? {};
  const signed = low < 0 && high > 0,
    magnitude = Math.max(-low, high); // white is 0 if the values have both signs
  const color = (v, c) => {
    if (!Number.isFinite(v)) return null;
    const share = signed ? Math.abs(v) / magnitude : (v - low) / (high - low || 1);
    return mix(
      c.paper,
      signed ? (v < 0 ? c.minus : c.plus) : c.k0,
      0.62 * Math.max(0, Math.min(1, share)),
    );
  };
  const readout = (i) => [
    ...(logprob && Number.isFinite(logprob[i])
      ? [`log-probability ${number(logprob[i])} nats (p ${number(Math.exp(logprob[i]))})`]
      : []),
    ...(values ? [`${label} ${number(values[i])} ${unit}`.trim()] : []),
  ];
  const view = frame(ctx, { label: "tokens", args: () => data.args, readout });
  if (values) {
    const draw = (pen, _width, y) => {
      const c = theme.of;
      pen.text(0, y + 13, [label, unit].filter(Boolean).join(", "), {
        fill: c.ink,
        bold: true,
        width: 220,
      });
      for (let k = 0; k < 60; k++)
        pen.rect(280 + k * 2, y + 3, 2, 12, color(low + ((high - low) * k) / 59, c));
      pen.text(275, y + 13, number(low), { fill: c.soft, align: "end", size: 11 });
      pen.text(405, y + 13, number(high), { fill: c.soft, size: 11 });
    };
    view.plot({ size: () => 22, draw, label: "color scale" });
  } else legend(view, tokens, logprob);
  transcript(view, ctx, { tall: data.tall, tint: values && ((i, c) => color(values[i], c)) });
});
