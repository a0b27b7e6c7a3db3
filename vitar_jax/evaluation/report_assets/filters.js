// Filters and orders the listed episodes.
"use strict";

const SELECTS = {
  "section-filter": (entry, value) => sections[entry.at].slug === value,
  "answer-filter": (entry, value) => (value === "none" ? entry.predicted === null : verdictOf(entry) === value),
  "tool-filter": (entry, value) => (value === "failed") === (entry.tool_error !== null),
  "protocol-filter": (entry, value) => entry.protocol === value,
  "stream-filter": (entry, value) => entry.stream === value,
  "data-filter": (entry, value) => {
    const [key, wanted] = JSON.parse(value);
    return entry[key] === wanted;
  },
};
const ORDERS = {
  "": null,
  low: (a, b) => (a.reward ?? Infinity) - (b.reward ?? Infinity) || a.n - b.n,
  high: (a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity) || a.n - b.n,
};

/** Fills the selects, and hides those without a choice. */
function setUpFilters() {
  const option = (value, name) => make("option", { value }, name);
  const offer = (id, options) => {
    byId(id).append(...options);
    byId(id).closest("label").hidden = options.length < 2;
  };
  offer("section-filter", sections.map(({ slug, name }) => option(slug, name)));
  const values = (key) => [...new Set(entries.map((entry) => entry[key]))].filter((value) => value !== undefined);
  offer("protocol-filter", values("protocol").map((name) => option(name, name)));
  offer("stream-filter", values("stream").map((name) => option(name, capital(name.replace("_", " ")))));
  const groups = facets.map((key) => {
    const options = values(key).map((value) => option(JSON.stringify([key, value]), String(value)));
    return make("optgroup", { label: facetName(key) }, options);
  });
  byId("data-filter").append(...groups);
  byId("data-filter").closest("label").hidden = !groups.length;
  for (const choice of [...byId("answer-filter").options]) {
    if (["partly", "unscored"].includes(choice.value) && !entries.some((entry) => verdictOf(entry) === choice.value)) choice.remove();
  }
  const rewards = new Set(entries.map((entry) => entry.reward));
  for (const id of ["reward-filter", "order"]) byId(id).hidden = rewards.size < 2;
}

const wanted = () => byId("text-filter").value.toLowerCase().split(/\s+/).filter(Boolean);

/** Returns the entries that pass all filters, in order. The first text search loads all episodes. */
async function filtered() {
  const chosen = Object.entries(SELECTS).filter(([id]) => byId(id).value !== "");
  const words = wanted();
  if (words.length) await readWords();
  const [least, most] = ["least-reward", "most-reward"].map((id) => byId(id).valueAsNumber);
  const passing = entries.filter(
    (entry) =>
      chosen.every(([id, passes]) => passes(entry, byId(id).value)) &&
      (Number.isNaN(least) || (entry.reward !== null && entry.reward >= least)) &&
      (Number.isNaN(most) || (entry.reward !== null && entry.reward <= most)) &&
      words.every((word) => entry.words.includes(word)),
  );
  const order = ORDERS[byId("order-filter").value];
  return order ? passing.sort(order) : passing;
}

/** Fills `entry.words`, the text that the text filter searches. */
async function readWords() {
  await Promise.all(
    entries.map(async (entry) => {
      if (entry.words !== undefined) return;
      const episode = await loadEpisode(entry);
      const turns = episode.turns.flatMap((turn) => [turn.thought, turn.text, ...(turn.error || [])]);
      const parts = [entry.key, episode.question, ...episode.options.flat(), episode.answer, episode.predicted, ...turns];
      entry.words = [...parts, episode.end_reason].filter(Boolean).join("\n").toLowerCase();
    }),
  );
}
