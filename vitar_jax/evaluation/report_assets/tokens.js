// Tokens, coloured by how likely the sampler found them, by what is learnt from, or by how the advantage pulls.
"use strict";

const LIKELY = [0.9, 0.5, 0.1, 0.01]; // above the first: no colour; below the last: the strongest
const STRONG = [0.1, 0.5, 1.5]; // sizes of an advantage from which its colour is next stronger

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
      ["p4", "less likely"],
      ["unsampled", "not sampled"],
    ],
    kind: (token) => (token.logprob === null ? "unsampled" : `p${LIKELY.filter((p) => Math.exp(token.logprob) < p).length}`),
  },
  mask: {
    name: "loss mask",
    legend: [
      ["learnt", "learnt from"],
      ["context", "read, or not learnt from"],
    ],
    kind: (token) => (token.learnt ? "learnt" : "context"),
  },
  advantage: {
    name: "advantage",
    legend: [
      ["up3", "made likelier"],
      ["down3", "made less likely"],
      ["context", "not learnt from"],
    ],
    kind: (token, { advantage }) => {
      if (!token.learnt || advantage === null) return "context";
      const strength = STRONG.filter((size) => Math.abs(advantage) >= size).length;
      return strength && `${advantage > 0 ? "up" : "down"}${strength}`;
    },
  },
};

/** Each of a run of tokens as a span. */
function spans(episode, run) {
  const { kind } = COLOURINGS[colouring];
  return run.text.map((text, n) => {
    const token = { logprob: run.logprobs ? run.logprobs[n] : null, learnt: run.mask[n] === "1" };
    const likely = token.logprob === null ? "not sampled" : `probability ${percent(Math.exp(token.logprob))}`;
    const title = `${likely}, ${token.learnt ? "learnt from" : "not learnt from"}`;
    return make("span", { class: kind(token, episode) || null, title }, text.replaceAll("\n", "↵\n"));
  });
}

const percent = (p) => (p >= 0.001 ? `${(100 * p).toFixed(1)} %` : `${(100 * p).toExponential(0)} %`);

/** What the model wrote in a turn, coloured where there are tokens and a colouring. */
function written(episode, turn) {
  const run = colouring !== "plain" && episode.tokens?.find((segment) => segment.start === turn.start);
  return make("pre", { class: "written tokens", dir: "auto" }, run ? spans(episode, run) : turn.text || "(nothing)");
}

/** All that the model read and wrote, token by token; made when it is opened. */
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

/** What colours mean, and what they say of this episode as a whole. */
function colourLegend(episode) {
  if (colouring === "plain") return null;
  if (!episode.tokens) return make("p", { class: "quiet" }, "This report was written without its tokens.");
  const missing = {
    probability: !episode.tokens.some((run) => run.logprobs) && "No token was sampled.",
    advantage: episode.advantage === null && "Nothing was learnt from this episode.",
  }[colouring];
  if (missing) return make("p", { class: "quiet" }, missing);
  const keys = COLOURINGS[colouring].legend.map(([kind, words]) => make("span", { class: "tokens" }, make("span", { class: kind }, words)));
  return make("p", { class: "legend" }, keys);
}
