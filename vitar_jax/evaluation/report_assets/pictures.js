// Images with boxes, at full size or at the model's resolution.
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

/** Creates the figure of an image, or an empty frame of its size if the report omits images. */
function picture(image, caption, alt, boxes = [], gold = []) {
  const view = { viewBox: `0 0 ${image.width} ${image.height}` };
  const left = { ...view, role: "img", "aria-label": `${alt}; image omitted` };
  const drawn = image.file
    ? [photo(image, alt), make("svg", { ...view, "aria-hidden": "true" }, rects(boxes, gold))]
    : [make("svg", left, rects(boxes, gold)), make("p", { class: "left-out", "aria-hidden": "true" }, "image omitted")];
  const seen = 2 * image.seen_size[0] * image.seen_size[1] < image.width * image.height;
  const note = `${pixels(image.width, image.height)}${seen ? `, seen at ${pixels(...image.seen_size)}` : ""}`;
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

/** Creates the legend of boxes and the control of image size. */
function legend(episodes) {
  const some = (test) => episodes.some(test);
  const sample = (kind) =>
    make("svg", { viewBox: "0 0 28 16", width: 28, height: 16, "aria-hidden": "true" }, rect([4, 4, 24, 12], kind));
  const box = make("input", { type: "checkbox", class: "model-size" });
  box.checked = atModelSize;
  box.addEventListener("change", () => setModelSize(box.checked));
  return make(
    "div",
    { class: "legend" },
    some((episode) => episode.turns.some((turn) => turn.boxes.length)) && make("span", {}, sample("look"), " model's box (solid)"),
    some((episode) => episode.gold.length) && make("span", {}, sample("gold"), " gold box (dashed)"),
    some((episode) => episode.images.some((image) => image.seen)) && make("label", {}, box, " images at the model's resolution"),
  );
}

const inWords = (boxes) => boxes.map((box) => box.map((value) => Math.round(value)).join(", ")).join("; ");

/**
 * Creates the figures of a turn: the image that it acted on, with its boxes, and the image that its tool returned. The first
 * turn also has all images of the sample.
 */
function turnPictures(episode, turn, index) {
  const pictures = [];
  const looked = turn.boxes.length > 0 || turn.image !== null;
  episode.images.forEach((image, n) => {
    const actedOn = looked && turn.on === n;
    if (!actedOn && (index > 0 || image.turn !== null)) return;
    const boxes = actedOn ? turn.boxes : [];
    const gold = n === 0 ? episode.gold : []; // gold boxes lie on the first image
    const name = n === 0 ? "First image" : `Image ${n + 1}`;
    const alt = [
      name,
      boxes.length ? `the model's box at ${inWords(boxes)}` : null,
      gold.length ? `the gold box at ${inWords(gold)}` : null,
    ];
    pictures.push(picture(image, name, alt.filter(Boolean).join("; "), boxes, gold));
  });
  if (turn.image !== null) {
    const caption = "What the tool returned";
    pictures.push(picture(episode.images[turn.image], caption, caption));
  }
  return pictures.length ? make("div", { class: "pictures" }, pictures) : null;
}
