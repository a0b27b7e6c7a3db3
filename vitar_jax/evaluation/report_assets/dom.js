// Creates elements and formats numbers.
// All text of models and data sets goes through `make`, which adds strings as text nodes, never as HTML.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = ["svg", "rect", "text", "path", "title"];

const byId = (id) => document.getElementById(id);

/** Creates an element with attributes and children; ignores attributes and children that are null or false. */
function make(tag, attributes = {}, ...children) {
  const element = DRAWN.includes(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== false));
  return element;
}

const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const pixels = (width, height) => `${width}\u00a0×\u00a0${height}\u00a0px`;
const capital = (text) => text[0].toUpperCase() + text.slice(1);
const minus = (text) => text.replace("-", "−");
const number = (value) => minus(String(Math.round(value * 1000) / 1000));

function labelled(label, ...content) {
  return make("div", { class: "labelled" }, make("h5", {}, label), ...content);
}

const SIGNS = { right: "✓", partly: "◐", wrong: "✗", unscored: "–" };

const verdictOf = ({ correct }) => (correct === null ? "unscored" : correct >= 1 ? "right" : correct > 0 ? "partly" : "wrong");

/** Creates the mark of the primary rule's verdict: a symbol and, if `withWord`, a word; otherwise the word is its label. */
function mark({ correct, predicted }, withWord = true) {
  const kind = verdictOf({ correct });
  const sign = SIGNS[kind];
  const words = { right: "right", partly: `${Math.round(100 * correct)} % right`, wrong: "wrong", unscored: "not scored" };
  const word = predicted === null && kind === "wrong" ? "no answer" : words[kind];
  if (withWord) return make("span", { class: `verdict ${kind}` }, make("span", { "aria-hidden": "true" }, sign), ` ${word}`);
  return make("span", { class: `sign ${kind}`, role: "img", "aria-label": word }, sign);
}
