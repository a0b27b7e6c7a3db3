// The view of one episode: question, turns and outcome.
"use strict";

const END_REASONS = {
  answered: "with an answer",
  turn_limit: "at the turn limit",
  overflow: "at the limit of tokens or images",
  too_long: "because a turn was too long",
};

/** Appends the option's text to an answer that is an option's letter. */
function spelled(answer, options) {
  const option = options.find(([letter]) => letter.toLowerCase() === String(answer).trim().toLowerCase());
  return option ? `${option[0]} ${option[1]}` : String(answer);
}

function questionView(episode, predicted = episode.predicted) {
  const same = (letter, answer) => answer !== null && letter.toLowerCase() === answer.trim().toLowerCase();
  const options = episode.options.map(([letter, text]) =>
    make(
      "li",
      {},
      make("span", { class: "letter" }, letter),
      make("span", { dir: "auto" }, text),
      same(letter, episode.answer) && make("span", { class: "chip" }, "gold"),
      same(letter, predicted) && make("span", { class: "chip strong" }, "model"),
    ),
  );
  return make(
    "section",
    { class: "question card", "aria-label": "Question" },
    make("p", { class: "asked", dir: "auto" }, episode.question),
    options.length > 0 && make("ul", { class: "options" }, options),
    episode.answer !== "" &&
      !episode.options.some(([letter]) => same(letter, episode.answer)) &&
      make("p", {}, "Gold answer: ", make("strong", { dir: "auto" }, episode.answer)),
  );
}

/** Creates the chips of a turn's look: its number, and an expert's mode and confidence. */
function lookChips(episode, index) {
  const number = lookNumber(episode, index);
  const { mode, confidence } = episode.looks.find(({ turn }) => turn === index) ?? { mode: null, confidence: null };
  const said = [number !== null && `look ${number}`, mode, confidence !== null && `confidence ${confidence.toFixed(2)}`];
  return said.filter(Boolean).flatMap((text) => [" ", make("span", { class: "chip" }, text)]);
}

function turnView(episode, turn, index) {
  const traced = turn.masks.length > 0;
  const read = traced || turn.thought !== null || turn.action !== null;
  const raw = written(episode, turn);
  const error = turn.error && make("p", { class: "error" }, make("span", { "aria-hidden": "true" }, "⚠ "), `${turn.error[1]} (${turn.error[0]})`);
  const section = make(
    "section",
    { class: "turn card", "aria-label": `Turn ${index + 1}`, tabindex: -1 },
    make("h4", {}, `Turn ${index + 1}`, lookChips(episode, index)),
    turnPictures(episode, turn, index),
    traced && labelled("Trace", traceView(episode, turn)),
    traced && masksTable(episode, turn),
    !traced && turn.thought !== null && labelled("Thought", make("p", { class: "said", dir: "auto" }, turn.thought)),
    turn.action !== null && labelled("Action", make("pre", { class: "written" }, turn.action)),
    error && labelled("Error", error),
    turn.observation !== undefined && labelled("Answered with", make("pre", { class: "written", dir: "auto" }, turn.observation)),
    read ? make("details", { open: colouring !== "plain" }, make("summary", {}, "As written"), raw) : labelled("As written", raw),
  );
  return lightMasks(section);
}

/** Creates the table of the reward's parts: each with its value and a bar of proportional length. */
function rewardView(rewards) {
  if (rewards === null) return make("p", {}, "No reward: one of its parts could not be computed.");
  if (!rewards.length) return null;
  const total = rewards.reduce((sum, [, value]) => sum + value, 0);
  const most = Math.max(...rewards.map(([, value]) => Math.abs(value)), 1e-9);
  const row = ([name, value]) => {
    const bar = make("span", { class: value < 0 ? "bar down" : "bar", "aria-hidden": "true" });
    bar.style.width = `${(100 * Math.abs(value)) / most}%`;
    return make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value === null ? "–" : number(value)), make("td", { class: "bars" }, bar));
  };
  const sum = make("tr", { class: "sum" }, make("th", { scope: "row" }, "Reward"), make("td", {}, number(total)), make("td", {}));
  return make("table", { class: "rewards", "aria-label": "Reward by part" }, make("tbody", {}, rewards.map(row), sum));
}

function outcomeView(episode) {
  const { options, predicted } = episode;
  const said = predicted === null ? make("span", {}, "none ") : make("strong", { dir: "auto" }, spelled(predicted, options), " ");
  return make(
    "section",
    { class: "outcome card", "aria-label": "Outcome" },
    make("p", { class: "answer" }, "Answer: ", said, mark(episode), episode.rule && make("span", { class: "quiet" }, ` by ${episode.rule}`)),
    make("p", { class: "quiet" }, `Ended ${END_REASONS[episode.end_reason] || episode.end_reason}`),
    rewardView(episode.rewards),
    episode.advantage !== null && make("p", { class: "quiet" }, `Advantage within its group: ${number(episode.advantage)}`),
  );
}

/** Creates links to other episodes of the same sample, in its group and in other sections. */
function elsewhereView(entry) {
  const others = entries.filter((other) => other.sample_id === entry.sample_id && other !== entry);
  if (!others.length) return null;
  const links = others.map((other) => {
    const names = [
      other.at !== entry.at && other.section,
      other.policy_version !== entry.policy_version && `policy ${other.policy_version}`,
      (other.at === entry.at || other.member !== entry.member || other.stream !== entry.stream) && memberName(other),
    ];
    return make("li", {}, make("a", { href: hashOf(other.key) }, mark(other, false), ` ${names.filter(Boolean).join(", ")}`));
  });
  return make("nav", { class: "elsewhere", "aria-label": "The same question elsewhere" }, make("span", { class: "quiet" }, "Same question: "), make("ul", {}, links));
}

function episodeHead(entry, episode) {
  const said = facets.filter((key) => entry[key] !== undefined).map((key) => `${facetName(key)} ${entry[key]}`);
  const stream = episode.stream.replace("_", " ") + (episode.intervention ? ` (${episode.intervention})` : "");
  const played = [episode.protocol, stream, `policy ${episode.policy_version}`, `member ${episode.member}`];
  return make(
    "header",
    {},
    make("h3", {}, episode.sample_id, " ", mark(episode)),
    make("p", { class: "quiet" }, [entry.section, ...played, ...said].join(" · ")),
    elsewhereView(entry),
  );
}

function episodeView(entry, episode) {
  return [
    episodeHead(entry, episode),
    questionView(episode),
    legend([episode]),
    colourLegend(episode),
    looksView(episode),
    ...episode.turns.map((turn, index) => turnView(episode, turn, index)),
    outcomeView(episode),
    allTokens(episode),
  ];
}
