// Images with boxes and masks, at full size or at the model's resolution.
"use strict";

const PIXELATED_BELOW = 256; // width in px below which enlarged images show their pixels

let atModelSize = true; // by default, the user sees no more detail than the model

const rect = ([x1, y1, x2, y2], kind) =>
  make("rect", { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1), class: kind });

/**
 * Draws boxes with a dark outline, because light lines are invisible on light tissue. Dashed gold boxes are on top, so that
 * both show where they coincide.
 */
function rects(boxes, gold) {
  const casings = [...boxes, ...gold].map((box) => rect(box, "casing"));
  return [...casings, ...boxes.map((box) => rect(box, "look")), ...gold.map((box) => rect(box, "gold"))];
}

/** Creates the numbers of boxes, inside their upper left corners. Boxes with the same corner share a label. */
function numbers(image, boxes, numberOf) {
  const size = Math.max(image.width, image.height) / 16;
  const labels = new Map(); // corner -> numbers
  boxes.forEach(([x1, y1], n) => {
    const corner = [Math.max(0, x1), Math.max(0, y1)].join();
    labels.set(corner, [...(labels.get(corner) ?? []), numberOf[n]]);
  });
  return [...labels].map(([corner, said]) => {
    const [x, y] = corner.split(",").map(Number);
    return make("text", { x: x + size / 4, y: y + size, "font-size": size, class: "number" }, [...new Set(said)].join(", "));
  });
}

/**
 * Creates the figure of an image, or an empty frame of its size if the report omits images. `numberOf` has the number of each
 * box; without it, boxes have no numbers.
 */
function picture(image, caption, alt, { boxes = [], gold = [], numberOf = null, masks = [] } = {}) {
  const view = { viewBox: `0 0 ${image.width} ${image.height}` };
  const missing = image.unrecorded ? "image not recorded" : "image omitted";
  const left = { ...view, role: "img", "aria-label": `${alt}; ${missing}` };
  const marks = [...drawnMasks(image, masks), ...rects(boxes, gold), ...(numberOf ? numbers(image, boxes, numberOf) : [])];
  const drawn = image.file
    ? [photo(image, alt), make("svg", { ...view, "aria-hidden": "true" }, marks)]
    : [make("svg", left, marks), make("p", { class: "left-out", "aria-hidden": "true" }, missing)];
  const seen = 2 * image.seen_size[0] * image.seen_size[1] < image.width * image.height;
  const note = image.unrecorded ? "size unknown" : `${pixels(image.width, image.height)}${seen ? `, seen at ${pixels(...image.seen_size)}` : ""}`;
  return make(
    "figure",
    {},
    make("div", { class: image.file ? "frame" : "frame empty" }, drawn),
    make("figcaption", {}, caption, " ", make("span", { class: "quiet" }, note)),
  );
}

function photo(image, alt) {
  const shown = make("img", { alt, width: image.width, height: image.height, decoding: "async" });
  const scale = () => {
    const small = atModelSize && image.seen !== null;
    shown.src = imageAddress(small ? image.seen : image.file);
    shown.classList.toggle("pixelated", small || image.width < PIXELATED_BELOW);
  };
  shown.addEventListener("scale", scale);
  scale();
  return shown;
}

function setModelSize(on) {
  atModelSize = on;
  for (const image of document.querySelectorAll("#episode img")) image.dispatchEvent(new Event("scale"));
  for (const box of document.querySelectorAll("input.model-size")) box.checked = on;
}

/** Creates the legend of boxes and masks, and the controls of gold masks and of image size. */
function legend(episodes) {
  const some = (test) => episodes.some(test);
  const sample = (kind) =>
    make("svg", { viewBox: "0 0 28 16", width: 28, height: 16, "aria-hidden": "true" }, rect([4, 4, 24, 12], kind));
  const control = (kind, on, set) => {
    const box = make("input", { type: "checkbox", class: kind });
    box.checked = on;
    box.addEventListener("change", () => set(box.checked));
    return box;
  };
  return make(
    "div",
    { class: "legend" },
    some((episode) => episode.turns.some((turn) => turn.boxes.length)) && make("span", {}, sample("look"), " model's box (solid)"),
    some((episode) => episode.gold.length) && make("span", {}, sample("gold"), " gold box (dashed)"),
    some((episode) => episode.turns.some((turn) => turn.masks.length)) && make("span", {}, "a colour for each object; point at a mention to light its mask"),
    some((episode) => episode.gold_masks.length) && make("label", {}, control("gold-masks", goldMasksShown, setGoldMasks), " gold masks (dashed)"),
    some((episode) => episode.images.some((image) => image.seen)) && make("label", {}, control("model-size", atModelSize, setModelSize), " images at the model's resolution"),
  );
}

const inWords = (boxes) => boxes.map((box) => box.map((value) => Math.round(value)).join(", ")).join("; ");

const imageName = (n) => (n === 0 ? "First image" : `Image ${n + 1}`);
const goldOn = (episode, n) => (n === 0 ? episode.gold : []); // gold boxes lie on the first image
const goldInWords = (gold) => gold.length > 0 && `the gold box at ${inWords(gold)}`;

/** Returns the number of a turn's look, from 1; null if the episode has fewer than two looks or this turn has none. */
function lookNumber(episode, index) {
  const place = episode.looks.findIndex(({ turn }) => turn === index);
  return place < 0 || episode.looks.length < 2 ? null : place + 1;
}

/** Creates the overview of an episode with several looks: all of them, numbered, on the images of the sample. */
function looksView(episode) {
  if (episode.looks.length < 2) return null;
  const numbered = episode.looks.map((look, n) => ({ ...look, number: n + 1 }));
  const pictures = [...new Set(numbered.map(({ on }) => on))].map((n) => {
    const here = numbered.filter(({ on }) => on === n);
    const alt = [imageName(n), ...here.map(({ number, boxes }) => `look ${number} at ${inWords(boxes)}`), goldInWords(goldOn(episode, n))];
    const numberOf = here.flatMap(({ number, boxes }) => boxes.map(() => number));
    const marks = { boxes: here.flatMap(({ boxes }) => boxes), gold: goldOn(episode, n), numberOf };
    return picture(episode.images[n], imageName(n), alt.filter(Boolean).join("; "), marks);
  });
  const modes = numbered.filter(({ mode }) => mode !== null).map(({ number, mode }) => `${number} ${mode}`);
  return make(
    "section",
    { class: "looks card", "aria-label": "Looks" },
    make("h4", {}, count(numbered.length, "look")),
    make("div", { class: "pictures" }, pictures),
    modes.length > 0 && make("p", { class: "quiet" }, modes.join(", ")),
  );
}

/**
 * Creates the figures of a turn: the image that it acted on, with its boxes, the first image with its masks, and the image that
 * its tool returned; other trainers' tools return several. The first turn also has all images of the sample.
 */
function turnPictures(episode, turn, index) {
  const pictures = [];
  const looked = turn.boxes.length > 0 || turn.image !== null;
  const number = lookNumber(episode, index);
  episode.images.forEach((image, n) => {
    const actedOn = looked && turn.on === n;
    const masked = n === 0 && turn.masks.length > 0;
    if (!actedOn && !masked && (index > 0 || image.turn !== null)) return;
    const boxes = actedOn ? turn.boxes : [];
    const gold = goldOn(episode, n);
    const masks = n === 0 ? masksOf(episode, turn) : []; // masks lie on the first image
    const said = masks.map(({ words }) => words);
    const alt = [imageName(n), boxes.length > 0 && `the model's box at ${inWords(boxes)}`, goldInWords(gold), ...said];
    const numberOf = number === null ? null : boxes.map(() => number);
    pictures.push(picture(image, imageName(n), alt.filter(Boolean).join("; "), { boxes, gold, numberOf, masks }));
  });
  episode.images.forEach((image, n) => {
    const caption = "What the tool returned";
    if (n === turn.image || image.turn === index) pictures.push(picture(image, caption, caption));
  });
  return pictures.length ? make("div", { class: turn.masks.length ? "pictures masked" : "pictures" }, pictures) : null;
}
