// The episodes of a report: a list with filters, and a viewer of one episode.
// Everything a model, or a data set, wrote goes through `make`, which adds strings as text nodes: never as HTML.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const PIXELATED_BELOW = 256; // px of width: enlarged images this small show their pixels
const END_REASONS = {
  answered: "with an answer",
  turn_limit: "at the turn limit",
  overflow: "as tokens or images ran out",
};

const byId = (id) => document.getElementById(id);

/** An element with attributes and children; children that are null or false are left out. */
function make(tag, attributes = {}, ...children) {
  const drawn = ["svg", "rect"].includes(tag);
  const element = drawn ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== false));
  return element;
}

// ---- Data: scripts that push what they hold ----

let sections = [];
let entries = []; // one an episode, in the report's order
let entryOfKey = new Map();
const shards = new Map(); // name -> promise of its episodes
const arrivals = new Map(); // name -> episodes pushed by a script that has just run

function receive(record) {
  if (record.entries) {
    sections = record.sections;
    entries = record.entries;
    entryOfKey = new Map(entries.map((entry) => [entry.key, entry]));
  } else {
    arrivals.set(record.shard, record.episodes);
  }
}

function loadShard(name) {
  if (!shards.has(name)) {
    const loaded = new Promise((resolve, reject) => {
      const script = make("script", { src: `data/${name}.js` });
      script.onload = () => {
        script.remove();
        if (arrivals.has(name)) resolve(arrivals.get(name));
        else reject(new Error(`data/${name}.js is damaged`));
      };
      script.onerror = () => reject(new Error(`data/${name}.js is missing`));
      document.head.append(script);
    });
    shards.set(name, loaded);
  }
  return shards.get(name);
}

const loadEpisode = async (entry) => (await loadShard(entry.shard))[entry.place];

/** Fills `entry.words`, what the text filter searches, for all episodes. */
async function loadWords() {
  await Promise.all(
    entries.map(async (entry) => {
      if (entry.words !== undefined) return;
      const episode = await loadEpisode(entry);
      const turns = episode.turns.flatMap((turn) => [turn.thought, turn.text, ...(turn.error || [])]);
      const options = episode.options.flat();
      const parts = [entry.key, episode.question, ...options, episode.answer, episode.predicted, ...turns];
      entry.words = [...parts, episode.end_reason].filter(Boolean).join("\n").toLowerCase();
    }),
  );
}

// ---- Small parts ----

const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const pixels = (width, height) => `${width}\u00a0×\u00a0${height}\u00a0px`;
const number = (value) => String(Math.round(value * 1000) / 1000);

function verdict(entry) {
  if (entry.correct) return { kind: "right", sign: "✓", word: "right" };
  if (entry.predicted === null) return { kind: "wrong", sign: "✗", word: "no answer" };
  return { kind: "wrong", sign: "✗", word: "wrong" };
}

function mark(entry, withWord = true) {
  const { kind, sign, word } = verdict(entry);
  if (withWord) return make("span", { class: `verdict ${kind}` }, make("span", { "aria-hidden": "true" }, sign), ` ${word}`);
  return make("span", { class: `sign ${kind}`, role: "img", "aria-label": word }, sign);
}

/** A letter with the text of its option, where it is one. */
function spelled(answer, options) {
  const option = options.find(([letter]) => letter.toLowerCase() === String(answer).trim().toLowerCase());
  return option ? `${option[0]} ${option[1]}` : String(answer);
}

function labelled(label, ...content) {
  return make("div", { class: "labelled" }, make("h5", {}, label), ...content);
}

const rect = ([x1, y1, x2, y2], kind) =>
  make("rect", { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1), class: kind });

/** Boxes over a dark casing, as light lines are lost on light tissue; the dashes on top, so that both show where they coincide. */
function rects(boxes, gold) {
  const casings = [...boxes, ...gold].map((box) => rect(box, "casing"));
  return [...casings, ...boxes.map((box) => rect(box, "look")), ...gold.map((box) => rect(box, "gold"))];
}

function picture(image, caption, alt, boxes = [], gold = []) {
  const small = image.width < PIXELATED_BELOW;
  const size = { width: image.width, height: image.height };
  const attributes = { src: `images/${image.file}`, alt, ...size, class: small ? "pixelated" : null };
  const shown = make("img", { ...attributes, decoding: "async" });
  if (image.seen) {
    shown.dataset.full = image.file;
    shown.dataset.seen = image.seen;
  }
  const overlay = make(
    "svg",
    { viewBox: `0 0 ${image.width} ${image.height}`, "aria-hidden": "true" },
    ...rects(boxes, gold),
  );
  const seen = image.seen ? `, seen at ${pixels(...image.seen_size)}` : "";
  const note = make("span", { class: "quiet" }, ` ${pixels(image.width, image.height)}${seen}`);
  return make("figure", {}, make("div", { class: "frame" }, shown, overlay), make("figcaption", {}, caption, note));
}

const inWords = (boxes) => boxes.map((box) => box.map((value) => Math.round(value)).join(", ")).join("; ");

// ---- One episode ----

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

function turnView(episode, turn, index) {
  const read = turn.thought !== null || turn.action !== null;
  const written = make("pre", { class: "written", dir: "auto" }, turn.text || "(nothing)");
  return make(
    "section",
    { class: "turn", "aria-label": `Turn ${index + 1}` },
    make("h4", {}, `Turn ${index + 1}`),
    turnPictures(episode, turn, index),
    turn.thought !== null && labelled("Thought", make("p", { class: "said", dir: "auto" }, turn.thought)),
    turn.action !== null && labelled("Action", make("pre", { class: "written" }, turn.action)),
    turn.error && labelled("Error", make("p", { class: "error" }, make("span", { "aria-hidden": "true" }, "⚠ "), `${turn.error[1]} (${turn.error[0]})`)),
    read ? make("details", {}, make("summary", {}, "As written"), written) : labelled("As written", written),
  );
}

function questionView(episode) {
  const same = (letter, answer) => answer !== null && letter.toLowerCase() === answer.trim().toLowerCase();
  const options = episode.options.map(([letter, text]) =>
    make(
      "li",
      {},
      make("span", { class: "letter" }, letter),
      make("span", { dir: "auto" }, text),
      same(letter, episode.answer) && make("span", { class: "chip" }, "reference"),
      same(letter, episode.predicted) && make("span", { class: "chip strong" }, "model"),
    ),
  );
  return make(
    "section",
    { class: "question", "aria-label": "Question" },
    make("p", { class: "asked", dir: "auto" }, episode.question),
    options.length > 0 && make("ul", { class: "options" }, options),
    make("p", {}, "Reference answer: ", make("strong", { dir: "auto" }, spelled(episode.answer, episode.options))),
  );
}

function outcomeView(episode) {
  const { options, predicted } = episode;
  const said = predicted === null ? make("span", {}, "none ") : make("strong", { dir: "auto" }, spelled(predicted, options), " ");
  const total = episode.rewards.reduce((sum, [, value]) => sum + value, 0);
  const parts = episode.rewards.map(([name, value]) => make("span", { class: "part" }, `${name} ${number(value)}`));
  return make(
    "section",
    { class: "outcome", "aria-label": "Outcome" },
    make("p", { class: "answer" }, "Answer: ", said, mark(episode)),
    make("p", { class: "quiet" }, `Ended ${END_REASONS[episode.end_reason] || episode.end_reason}`),
    parts.length > 0 && make("p", { class: "rewards" }, `Reward ${number(total)}`, make("span", { class: "quiet" }, " = "), parts),
  );
}

/** Links to the same sample in other sections and by other members of its group. */
function elsewhereView(entry) {
  const others = entries.filter((other) => other.sample_id === entry.sample_id && other !== entry);
  if (!others.length) return null;
  const links = others.map((other) => {
    const names = [
      other.section !== entry.section && sections[other.section].name,
      (other.section === entry.section || other.member !== entry.member) && `member ${other.member}`,
    ];
    return make("li", {}, make("a", { href: hashOf(other.key) }, mark(other, false), ` ${names.filter(Boolean).join(", ")}`));
  });
  return make("nav", { class: "elsewhere", "aria-label": "The same question elsewhere" }, make("span", { class: "quiet" }, "Same question: "), make("ul", {}, links));
}

function legend(episode) {
  const sample = (kind) =>
    make("svg", { viewBox: "0 0 28 16", width: 28, height: 16, "aria-hidden": "true" }, rect([4, 4, 24, 12], kind));
  const smaller = episode.images.some((image) => image.seen);
  const box = make("input", { type: "checkbox", id: "as-seen" });
  box.checked = atModelSize;
  box.addEventListener("change", () => setModelSize(box.checked));
  return make(
    "div",
    { class: "legend" },
    episode.turns.some((turn) => turn.boxes.length) && make("span", {}, sample("look"), " model's box (solid)"),
    episode.gold.length > 0 && make("span", {}, sample("gold"), " gold box (dashed)"),
    smaller && make("label", {}, box, " images as small as the model saw them"),
  );
}

let atModelSize = true; // the reader should not see more than the model did, unless asking to

function setModelSize(on) {
  atModelSize = on;
  for (const image of document.querySelectorAll("img[data-seen]")) {
    image.src = `images/${on ? image.dataset.seen : image.dataset.full}`;
    image.classList.toggle("pixelated", on);
  }
}

function episodeView(entry, episode) {
  const facts = [sections[entry.section].name, episode.protocol, episode.stream.replace("_", " "), `policy ${episode.policy_version}`, `member ${episode.member}`];
  return [
    make("h3", {}, episode.sample_id, " ", mark(episode)),
    make("p", { class: "quiet" }, facts.join(" · ")),
    elsewhereView(entry),
    questionView(episode),
    legend(episode),
    ...episode.turns.map((turn, index) => turnView(episode, turn, index)),
    outcomeView(episode),
  ];
}

// ---- The list, and moving through it ----

let matching = []; // entries that pass the filters
let current = null;
const rows = new Map(); // entry -> its <li>

const hashOf = (key) => `#${encodeURIComponent(key).replaceAll("%2F", "/")}`;

function keyInHash() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

function makeRows() {
  for (const entry of entries) {
    const link = make(
      "a",
      { href: hashOf(entry.key) },
      mark(entry, false),
      make("span", { class: "name" }, entry.sample_id),
      make("span", { class: "quiet where" }, sections[entry.section].name),
    );
    rows.set(entry, make("li", {}, link));
  }
  byId("list").append(...rows.values());
}

let latestFilter = 0;

/** Applies the filters; where they leave the current episode out, the first that is left is shown. */
async function applyFilters({ stay = false } = {}) {
  const ticket = ++latestFilter;
  const section = byId("section-filter").value;
  const outcome = byId("outcome-filter").value;
  const words = byId("text-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length && entries.some((entry) => entry.words === undefined)) {
    byId("count").textContent = "Reading all episodes…";
    try {
      await loadWords();
    } catch (error) {
      byId("count").textContent = `Cannot search: ${error.message}.`;
      return;
    }
    if (ticket !== latestFilter) return; // the reader has typed on
  }
  const passes = {
    "": () => true,
    right: (entry) => entry.correct,
    wrong: (entry) => !entry.correct,
    none: (entry) => entry.predicted === null,
    error: (entry) => entry.error,
  }[outcome];
  matching = entries.filter(
    (entry) =>
      (section === "" || sections[entry.section].slug === section) &&
      passes(entry) &&
      words.every((word) => entry.words.includes(word)),
  );
  const kept = new Set(matching);
  for (const [entry, row] of rows) row.hidden = !kept.has(entry);
  byId("count").textContent = matching.length === entries.length ? count(entries.length, "episode") : `${count(matching.length, "episode")} of ${entries.length.toLocaleString("en")}`;
  byId("list").classList.toggle("one-section", section !== "" || sections.length === 1);
  if (!stay && matching.length && !kept.has(current)) {
    if (current) history.replaceState(null, "", hashOf(matching[0].key));
    await show(matching[0]);
  } else {
    showPosition();
  }
}

function showPosition() {
  const place = matching.indexOf(current);
  byId("position").textContent = place < 0 ? (matching.length ? "outside the filter" : "no match") : `${place + 1} of ${matching.length.toLocaleString("en")}`;
  byId("previous").disabled = place === 0 || !matching.length;
  byId("next").disabled = place === matching.length - 1;
}

function step(by) {
  const place = matching.indexOf(current);
  const next = place < 0 ? matching[0] : matching[place + by];
  if (next) location.hash = hashOf(next.key);
}

async function show(entry, { scroll = false } = {}) {
  if (current) rows.get(current).firstChild.removeAttribute("aria-current");
  current = entry;
  const link = rows.get(entry).firstChild;
  link.setAttribute("aria-current", "true");
  keepInView(byId("list"), rows.get(entry));
  showPosition();
  let content;
  try {
    content = episodeView(entry, await loadEpisode(entry));
  } catch (error) {
    content = [make("p", { class: "notice" }, `This episode cannot be shown: ${error.message}.`)];
  }
  if (entry !== current) return; // the reader has moved on
  byId("episode").replaceChildren(...content);
  setModelSize(atModelSize);
  const top = byId("viewer").getBoundingClientRect().top;
  if (scroll && (top < 0 || top > innerHeight / 2)) byId("viewer").scrollIntoView();
}

/** Scrolls `list` alone, where `scrollIntoView` would move the page too. */
function keepInView(list, row) {
  const top = row.offsetTop - list.offsetTop;
  if (top < list.scrollTop || top + row.offsetHeight > list.scrollTop + list.clientHeight) {
    list.scrollTop = top - list.clientHeight / 3;
  }
}

/** Goes where the address says: #section/sample/member is an episode, #section alone its first. */
async function follow() {
  const key = keyInHash();
  const entry = entryOfKey.get(key);
  if (!entry && sections.some((section) => section.slug === key)) {
    byId("section-filter").value = key;
    byId("episodes").scrollIntoView();
  }
  await applyFilters({ stay: Boolean(entry) });
  if (entry) await show(entry, { scroll: true });
}

function start() {
  const pushed = window.report || [];
  window.report = { push: receive };
  pushed.forEach(receive);
  byId("section-filter").append(...sections.map(({ slug, name }) => make("option", { value: slug }, name)));
  makeRows();

  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  byId("section-filter").addEventListener("change", () => applyFilters());
  byId("outcome-filter").addEventListener("change", () => applyFilters());
  let typing;
  byId("text-filter").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(applyFilters, 150);
  });
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  document.addEventListener("keydown", (event) => {
    const busy = event.target.closest?.("input, select, .scroll");
    if (busy || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  window.addEventListener("hashchange", follow);
  follow();
}

start();
