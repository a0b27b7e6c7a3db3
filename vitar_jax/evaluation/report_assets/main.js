// The current episode, and navigation between episodes.
"use strict";

let matching = []; // entries that pass the filters, in order
let current = null;
let sideBySide = false;
let list = null;
let latestFilter = 0;

const hashOf = (key) => `#${encodeURIComponent(key).replaceAll("%2F", "/")}`;

function keyInHash() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

function rowOf(entry) {
  const several = sections.length > 1 && byId("section-filter").value === "";
  const facts = [several && entry.section, memberName(entry), entry.policy_version > 0 && `policy ${entry.policy_version}`, entry.tool_error && "⚠ tool"];
  return make(
    "a",
    { href: hashOf(entry.key) },
    mark(entry, false),
    make("span", { class: "name", title: entry.sample_id }, entry.sample_id),
    make("span", { class: "quiet facts" }, facts.filter(Boolean).join(", ")),
    make("span", { class: "quiet" }, entry.reward === null ? "" : minus(entry.reward.toFixed(2))),
  );
}

/** Applies the filters; if they exclude the current episode, shows the first match. */
async function applyFilters({ stay = false } = {}) {
  const ticket = ++latestFilter;
  const unread = wanted().length && entries.some((entry) => entry.words === undefined);
  if (unread) byId("count").textContent = "Loading all episodes…";
  try {
    const passing = await filtered();
    if (ticket !== latestFilter) return; // the user has typed more
    matching = passing;
  } catch (error) {
    byId("count").textContent = `Cannot search: ${error.message}.`;
    return;
  }
  byId("count").textContent = matching.length === entries.length ? count(entries.length, "episode") : `${count(matching.length, "episode")} of ${entries.length.toLocaleString("en")}`;
  list.fill(matching);
  if (!stay && matching.length && !matching.includes(current)) {
    if (current) history.replaceState(null, "", hashOf(matching[0].key));
    await show(matching[0]);
  } else {
    showPosition();
  }
}

function showPosition() {
  const place = matching.indexOf(current);
  byId("position").textContent = place < 0 ? (matching.length ? "excluded by the filters" : "no match") : [place + 1, matching.length].map((n) => n.toLocaleString("en")).join(" of ");
  byId("previous").disabled = place === 0 || !matching.length;
  byId("next").disabled = place === matching.length - 1;
  byId("group").disabled = !current || groupOf(current).length < 2;
}

/** Shows an entry without adding to the browser's history. */
function go(entry, since) {
  if (!entry) return;
  history.replaceState(null, "", hashOf(entry.key));
  show(entry, { since });
}

function step(by, since) {
  const place = matching.indexOf(current);
  go(place < 0 ? matching[0] : matching[place + by], since);
}

function stepMember(by, since) {
  const group = current ? groupOf(current) : [];
  go(group[group.indexOf(current) + by], since);
}

/** Scrolls to the next turn and focuses it. */
function stepTurn(by) {
  const turns = [...byId("episode").querySelectorAll(".turn")];
  const next = turns[turns.indexOf(document.activeElement) + by] ?? (by > 0 ? null : turns[0]);
  if (!next) return;
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: "start" });
}

function nextColouring() {
  const names = Object.keys(COLOURINGS);
  setColouring(names[(names.indexOf(colouring) + 1) % names.length]);
}

function setColouring(name) {
  colouring = name;
  byId("colouring").value = name;
  if (current) show(current);
}

function toggleGroup() {
  if (byId("group").disabled) return;
  sideBySide = !sideBySide;
  byId("group").setAttribute("aria-pressed", sideBySide);
  show(current);
}

async function contentOf(entry) {
  const episode = await loadEpisode(entry);
  const group = groupOf(entry);
  if (!sideBySide || group.length < 2) return episodeView(entry, episode);
  return groupView(entry, episode, await Promise.all(group.map(async (other) => [other, await loadEpisode(other)])));
}

/** Shows an episode; `since` is the time of the user's request, on the page's clock. */
async function show(entry, { scroll = false, since = performance.now() } = {}) {
  current = entry;
  list.choose(entry);
  showPosition();
  let content;
  try {
    content = await contentOf(entry);
  } catch (error) {
    content = [make("p", { class: "notice" }, `This episode cannot be shown: ${error.message}.`)];
  }
  if (entry !== current) return; // the user has moved on
  byId("episode").replaceChildren(...content.filter(Boolean));
  const member = byId("episode").querySelector(".member[aria-current]");
  if (member) member.parentElement.scrollLeft = member.offsetLeft - member.parentElement.clientWidth / 3;
  const top = byId("viewer").getBoundingClientRect().top;
  if (scroll && (top < 0 || top > innerHeight / 2)) byId("viewer").scrollIntoView();
  requestAnimationFrame(() => setTimeout(() => painted(entry, since)));
}

/** Records the time from request to display, and prefetches the adjacent episodes. */
function painted(entry, since) {
  performance.measure("episode shown", { start: since, end: performance.now() });
  if (entry !== current) return;
  const place = matching.indexOf(entry);
  for (const near of [matching[place + 1], place > 0 && matching[place - 1]]) {
    if (near) loadShard(near.shard).catch(() => {}); // reported when the episode is shown
  }
}

/** Follows the address: #section/sample/member shows an episode, #section the first of a section. */
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
  list = makeList(byId("list"), rowOf);
  setUpFilters();
  setUpKeys();
  byId("colouring").append(...Object.entries(COLOURINGS).map(([value, { name }]) => make("option", { value }, name)));
  byId("colouring").addEventListener("change", (event) => setColouring(event.target.value));
  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  let typing;
  document.querySelector(".filters").addEventListener("input", (event) => {
    clearTimeout(typing);
    typing = setTimeout(applyFilters, event.target.tagName === "SELECT" ? 0 : 150);
  });
  byId("previous").addEventListener("click", (event) => step(-1, event.timeStamp));
  byId("next").addEventListener("click", (event) => step(1, event.timeStamp));
  byId("group").addEventListener("click", toggleGroup);
  byId("show-help").addEventListener("click", () => byId("help").showModal());
  window.addEventListener("hashchange", follow);
  follow();
}

start();
