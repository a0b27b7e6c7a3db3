// The report's data: scripts call `report` with JSON text. Episodes are stored in shards, each loaded on first use.
"use strict";

let sections = []; // {slug, name}
let entries = []; // one table row per episode, in the report's order, with its index, section, shard and place
let facets = []; // keys of rows whose metadata can be filtered by
let entryOfKey = new Map();
const groups = new Map(); // entries of the same sample, played with the same policy version
const arrived = new Map(); // shard number -> its episodes
const asked = new Map(); // shard number -> promise of its episodes
let inlined = {}; // images of a single-file report: path in the folder -> data URL

const report = {
  index(text) {
    const given = JSON.parse(text);
    ({ sections, facets } = given);
    entries = given.rows.map((row, n) => {
      const [section, shard, place] = given.places[n];
      return { ...row, n, at: section, shard, place };
    });
    entryOfKey = new Map(entries.map((entry) => [entry.key, entry]));
    for (const entry of entries) {
      const group = groups.get(groupKey(entry));
      if (group) group.push(entry);
      else groups.set(groupKey(entry), [entry]);
    }
    const streamOrder = (entry) => ["on_policy", "counterfactual", "expert"].indexOf(entry.stream);
    for (const group of groups.values()) group.sort((a, b) => streamOrder(a) - streamOrder(b) || a.member - b.member);
  },
  shard(number, text) {
    arrived.set(Number(number), JSON.parse(text));
  },
  images(text) {
    inlined = JSON.parse(text);
  },
};

const groupKey = (entry) => JSON.stringify([entry.at, entry.policy_version, entry.group_id]);
const groupOf = (entry) => groups.get(groupKey(entry));
const memberName = (entry) => `${entry.stream === "on_policy" ? "member" : entry.stream} ${entry.member}`;
const facetName = (key) => key.replace("metadata/", "").replaceAll("_", " ");
const imageAddress = (name) => inlined[`images/${name}`] ?? `images/${name}`;

function loadShard(number) {
  if (!asked.has(number)) {
    asked.set(number, arrived.has(number) ? Promise.resolve(arrived.get(number)) : runShard(number));
  }
  return asked.get(number);
}

function runShard(number) {
  const file = `data/${String(number).padStart(3, "0")}.js`;
  return new Promise((resolve, reject) => {
    const script = make("script", { src: file });
    script.onload = () => {
      script.remove();
      if (arrived.has(number)) resolve(arrived.get(number));
      else reject(new Error(`${file} is damaged`));
    };
    script.onerror = () => reject(new Error(`${file} is missing`));
    document.head.append(script);
  });
}

const loadEpisode = async (entry) => (await loadShard(entry.shard))[entry.place];
