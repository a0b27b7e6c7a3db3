// Tokens, coloured by the sampler's probability, by the loss mask, or by the advantage.
"use strict";

const LIKELY = [0.9, 0.5, 0.1, 0.01]; // above the first: no colour; below the last: strongest colour
const STRONG = [0.1, 0.5, 1.5]; // absolute advantages at which the colour gets stronger

let colouring = "plain";

const COLOURINGS = {
  plain: { name: "no colour", legend: [], kind: () => null },
  probability: {
    name: "probability",
    legend: [
      ["p0", "over 90 %"],
      ["p1", "over 50 %"],
      ["p2", "over 10 %"],
      ["p3", "over 1 %"],
      ["p4", "at most 1 %"],
      ["unsampled", "not sampled"],
    ],
    kind: (token) => (token.logprob === null ? "unsampled" : `p${LIKELY.filter((p) => Math.exp(token.logprob) < p).length}`),
  },
  mask: {
    name: "loss mask",
    legend: [
      ["learnt", "trained on"],
      ["context", "context, or not trained on"],
    ],
    kind: (token) => (token.learnt ? "learnt" : "context"),
  },
  advantage: {
    name: "advantage",
    legend: [
      ["up3", "made more likely"],
      ["down3", "made less likely"],
      ["context", "not trained on"],
    ],
    kind: (token, { advantage }) => {
      if (!token.learnt || advantage === null) return "context";
      const strength = STRONG.filter((size) => Math.abs(advantage) >= size).length;
      return strength && `${advantage > 0 ? "up" : "down"}${strength}`;
    },
  },
};

/** Creates one span per token of a run. */
function spans(episode, run) {
  const { kind } = COLOURINGS[colouring];
  return run.text.map((text, n) => {
    const token = { logprob: run.logprobs ? run.logprobs[n] : null, learnt: run.mask[n] === "1" };
    const likely = token.logprob === null ? "not sampled" : `probability ${percent(Math.exp(token.logprob))}`;
    const title = `${likely}, ${token.learnt ? "trained on" : "not trained on"}`;
    return make("span", { class: kind(token, episode) || null, title }, text.replaceAll("\n", "↵\n"));
  });
}

const percent = (p) => (p >= 0.001 ? `${(100 * p).toFixed(1)} %` : `${(100 * p).toExponential(0)} %`);

/** Creates the model's text of a turn, coloured by token if the report has tokens and a colouring is selected. */
function written(episode, turn) {
  const run = colouring !== "plain" && episode.tokens?.find((segment) => segment.start === turn.start);
  return make("pre", { class: "written tokens", dir: "auto" }, run ? spans(episode, run) : turn.text || "(empty)");
}

/** Creates the list of all tokens of an episode; its content is created when it is opened. */
function allTokens(episode) {
  if (!episode.tokens) return null;
  const total = episode.tokens.reduce((sum, run) => sum + (run.text ? run.text.length : run.count), 0);
  const shown = make("pre", { class: "written tokens" });
  const details = make("details", { class: "all-tokens" }, make("summary", {}, `All ${count(total, "token")}, as the model read and wrote them`), shown);
  details.addEventListener("toggle", () => {
    if (!details.open || shown.firstChild) return;
    const chip = (run) => make("span", { class: "chip" }, `image ${run.image + 1}: ${count(run.count, "token")}`);
    shown.append(...episode.tokens.flatMap((run) => (run.text ? spans(episode, run) : [chip(run)])));
  });
  return details;
}

/** Creates the legend of colours, or explains why this episode has none. */
function colourLegend(episode) {
  if (colouring === "plain") return null;
  if (!episode.tokens) return make("p", { class: "quiet" }, "This report contains no tokens.");
  const missing = {
    probability: !episode.tokens.some((run) => run.logprobs) && "No tokens of this episode were sampled.",
    advantage: episode.advantage === null && "This episode was not trained on.",
  }[colouring];
  if (missing) return make("p", { class: "quiet" }, missing);
  const keys = COLOURINGS[colouring].legend.map(([kind, words]) => make("span", { class: "tokens" }, make("span", { class: kind }, words)));
  return make("p", { class: "legend" }, keys);
}
