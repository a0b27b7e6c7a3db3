// Masks: their outlines over the image, and the mentions in a turn's text that light them. Each object has one colour.
"use strict";

const COLOURS = 8; // classes object-0 to object-7 of the style
const MARKUP = /(<\/?(?:think|answer|action|ve[ra])>)/;

const outlines = new WeakMap(); // mask -> its outline

let goldMasksShown = true;

/** Decodes COCO's compressed string of run lengths: 5 bits per character; from the fourth run on, differences. */
function runsOf(counts) {
  const runs = [];
  let value = 0;
  let shift = 0;
  for (let n = 0; n < counts.length; n++) {
    const bits = counts.charCodeAt(n) - 48;
    value |= (bits & 31) << shift;
    shift += 5;
    if (bits & 32) continue;
    if (bits & 16) value -= 2 ** shift;
    runs.push(value + (runs.length > 2 ? runs[runs.length - 2] : 0));
    value = shift = 0;
  }
  return runs;
}

/** Returns the edges of each column, from top to bottom: pixels begin at even places and end at odd ones. */
function columnEdges([height, width], counts) {
  const columns = Array.from({ length: width }, () => []);
  let place = 0;
  runsOf(counts).forEach((run, n) => {
    const end = place + run;
    while (n % 2 === 1 && place < end) {
      const x = Math.floor(place / height);
      const next = Math.min(end, (x + 1) * height);
      columns[x].push(place - x * height, next - x * height);
      place = next;
    }
    place = end;
  });
  return columns;
}

/** Returns the values that occur in exactly one of two sorted lists, sorted. */
function inOne(a, b) {
  const found = [];
  for (let i = 0, j = 0; i < a.length || j < b.length; ) {
    if (j === b.length || a[i] < b[j]) found.push(a[i++]);
    else if (i === a.length || b[j] < a[i]) found.push(b[j++]);
    else i++, j++;
  }
  return found;
}

/**
 * Returns the outline of a mask as a path in pixels of the mask, to fill by the rule "evenodd", and a point inside of the
 * mask for its label. The corners of one column are joined in pairs by vertical lines, those of one row by horizontal ones.
 */
function outline(mask) {
  if (outlines.has(mask)) return outlines.get(mask);
  const columns = columnEdges(mask.size, mask.counts);
  const xs = [];
  const ys = [];
  for (let x = 0; x <= columns.length; x++) {
    for (const y of inOne(columns[x - 1] ?? [], columns[x] ?? [])) xs.push(x), ys.push(y);
  }
  const byRow = xs.map((_, n) => n).sort((a, b) => ys[a] - ys[b] || xs[a] - xs[b]);
  const across = [];
  for (let n = 0; n < byRow.length; n += 2) {
    across[byRow[n]] = byRow[n + 1];
    across[byRow[n + 1]] = byRow[n];
  }
  const seen = new Set();
  let path = "";
  xs.forEach((_, first) => {
    if (seen.has(first)) return;
    path += `M${xs[first]} ${ys[first]}`;
    for (let corner = first; !seen.has(corner); ) {
      const below = corner ^ 1; // corners of a column are stored in pairs
      seen.add(corner).add(below);
      corner = across[below];
      path += `V${ys[below]}H${xs[corner]}`;
    }
    path += "Z";
  });
  const runs = columns.flatMap((edges, x) => edges.flatMap((y, n) => (n % 2 ? [] : [[x + 0.5, y, edges[n + 1] - y]])));
  const longest = runs.reduce((most, [, , length]) => Math.max(most, length), 0);
  const central = runs.filter(([, , length]) => length === longest);
  const [x, y] = central[central.length >> 1] ?? [];
  const inside = central.length ? [x, y + longest / 2] : null;
  outlines.set(mask, { path, inside });
  return outlines.get(mask);
}

/** Returns the class of each object's colour, by name, in the order in which the episode first mentions them. */
function objectColours(episode) {
  const names = episode.turns.flatMap((turn) => turn.masks.map(({ name }) => name));
  return new Map([...new Set(names)].map((name, n) => [name, `object-${n % COLOURS}`]));
}

const objectName = ({ name }) => name ?? "unnamed object";
const shortName = ({ name }) => name?.replace(/^obj(?=\d)/, "") ?? "?";

/** Returns the size of a mask in words; says so if it has no pixel, or if there is no mask. */
function sizeInWords({ area }) {
  if (area === null) return "no mask";
  return area ? `${area.toLocaleString("en")}\u00a0px` : "no pixel";
}

const maskInWords = (mask) => `mask of ${objectName(mask)}, ${sizeInWords(mask)}`;
const goldMaskInWords = ({ name, caption, ...mask }) => `gold mask of ${name}${caption && ` (${caption})`}, ${sizeInWords(mask)}`;

/** Returns the masks of a turn and those of its sample as `drawnMasks` takes them. */
function masksOf(episode, turn) {
  const colours = objectColours(episode);
  const own = turn.masks.map((mask, n) => ({ mask, key: String(n), kind: colours.get(mask.name), words: maskInWords(mask) }));
  const gold = episode.gold_masks.map((mask, n) => ({ mask, key: `gold-${n}`, kind: "gold", words: goldMaskInWords(mask) }));
  return [...own, ...gold];
}

/** Draws masks on their image: the small ones over the large ones, and the dashed gold ones over all. */
function drawnMasks(image, masks) {
  const visible = masks.filter(({ mask }) => mask.area).sort((a, b) => (a.kind === "gold") - (b.kind === "gold") || b.mask.area - a.mask.area);
  const drawn = visible.map(({ mask, key, kind, words }) => {
    const d = outline(mask).path;
    const line = make("path", { d, class: `mask ${kind}`, "data-mask": key }, make("title", {}, words));
    return [make("path", { d, class: "casing", "data-casing": key }), line];
  });
  const size = Math.max(image.width, image.height) / 18;
  const named = visible.filter(({ kind }, n) => kind !== "gold" && visible.findIndex((other) => other.kind === kind) === n);
  const labels = named.map(({ mask, key, kind }) => {
    const [x, y] = outline(mask).inside;
    return make("text", { x, y: y + size / 3, "font-size": size, class: `label ${kind}`, "data-mask": key }, shortName(mask));
  });
  return [...drawn.flat(), ...labels];
}

/** Creates a mention of an object that lights its mask. */
const mention = ({ key, kind, words }, ...content) =>
  make("button", { type: "button", class: `mention ${kind}`, "data-mask": key, title: words, "aria-label": words }, ...content);

/** Creates the text of a turn, in which every mention of an object that has a mask lights it. */
function traceView(episode, turn) {
  const text = [...turn.text]; // by code points
  const plain = (start, end) =>
    text.slice(start, end).join("").split(MARKUP).filter(Boolean).map((part) => (MARKUP.test(part) ? make("span", { class: "markup" }, part) : part));
  const said = [];
  let place = 0;
  for (const one of masksOf(episode, turn)) {
    if (!one.mask.span) continue;
    const [start, end] = one.mask.span;
    const missing = !one.mask.area && make("span", { class: "missing" }, ` ${sizeInWords(one.mask)}`);
    said.push(...plain(place, start), mention(one, text.slice(start, end).join(""), missing));
    place = end;
  }
  return make("p", { class: "said trace", dir: "auto" }, said, plain(place));
}

/** Creates the table of a turn's masks and of the gold masks. */
function masksTable(episode, turn) {
  const row = (one) => {
    const { part = "gold", score = null, caption = "" } = one.mask;
    const cells = [part ?? "–", sizeInWords(one.mask), score === null ? "–" : number(score)];
    const name = one.kind === "gold" ? [objectName(one.mask), caption].filter(Boolean).join(" ") : objectName(one.mask);
    return make("tr", {}, make("th", { scope: "row" }, mention(one, name)), cells.map((cell) => make("td", {}, cell)));
  };
  const heads = ["Object", "Part", "Area", "Predicted IoU"].map((head) => make("th", { scope: "col" }, head));
  const table = make("table", { class: "masks" }, make("thead", {}, make("tr", {}, heads)), make("tbody", {}, masksOf(episode, turn).map(row)));
  // A mention that could not be found in the text is only here.
  const open = turn.masks.some(({ span }) => span === null);
  return make("details", { open }, make("summary", {}, count(turn.masks.length, "mask")), make("div", { class: "scroll" }, table));
}

/** Lights the mask whose mention has the focus or is under the pointer, in the section of its turn, and dims the others. */
function lightMasks(section) {
  const near = (element) => (section.contains(element) ? element.closest("[data-mask]")?.dataset.mask : null);
  const light = ({ type, target }) => {
    const pointed = type.endsWith("out") ? null : near(target);
    const key = pointed ?? (type === "focusout" ? null : near(document.activeElement)) ?? null;
    section.classList.toggle("lighting", key !== null);
    for (const element of section.querySelectorAll("[data-mask], [data-casing]")) {
      element.classList.toggle("lit", key !== null && [element.dataset.mask, element.dataset.casing].includes(key));
    }
  };
  for (const name of ["mouseover", "mouseout", "focusin", "focusout"]) section.addEventListener(name, light);
  return section;
}

function setGoldMasks(on) {
  goldMasksShown = on;
  byId("episode").classList.toggle("without-gold-masks", !on);
  for (const box of document.querySelectorAll("input.gold-masks")) box.checked = on;
}

/** Focuses the next mention of an object in the episode. */
function stepMention(by) {
  const mentions = [...byId("episode").querySelectorAll(".trace .mention")];
  const place = mentions.indexOf(document.activeElement);
  const next = place < 0 ? mentions.at(by > 0 ? 0 : -1) : mentions[place + by];
  next?.focus();
}
