// The members of a group side by side: the same question, each with its own turns, answer and reward. Experts come last.
"use strict";

function groupView(entry, episode, members) {
  const columns = members.map(([other, played]) =>
    make(
      "section",
      { class: `member ${other.stream}`, "aria-label": capital(memberName(other)), "aria-current": other === entry && "true" },
      make("h4", {}, make("a", { href: hashOf(other.key) }, capital(memberName(other))), " ", mark(played)),
      outcomeView(played),
      looksView(played),
      played.turns.map((turn, index) => turnView(played, turn, index)),
    ),
  );
  const region = { class: "members", tabindex: 0, role: "region", "aria-label": "Members of the group" };
  return [
    episodeHead(entry, episode),
    questionView(episode, null),
    legend(members.map(([, played]) => played)),
    colourLegend(episode),
    make("div", region, columns),
  ];
}
