// Keyboard shortcuts: one table defines the keys and fills the help.
"use strict";

const KEYS = [
  { keys: ["ArrowRight", "j"], names: "→ or J", does: "next episode", run: (since) => step(1, since) },
  { keys: ["ArrowLeft", "k"], names: "← or K", does: "previous episode", run: (since) => step(-1, since) },
  { keys: ["m"], names: "M", does: "next member of the group", run: (since) => stepMember(1, since) },
  { keys: ["M"], names: "Shift + M", does: "previous member of the group", run: (since) => stepMember(-1, since) },
  { keys: ["t"], names: "T", does: "next turn", run: () => stepTurn(1) },
  { keys: ["T"], names: "Shift + T", does: "previous turn", run: () => stepTurn(-1) },
  { keys: ["o"], names: "O", does: "light the mask of the next object in the text", run: () => stepMention(1) },
  { keys: ["O"], names: "Shift + O", does: "light the mask of the previous object", run: () => stepMention(-1) },
  { keys: ["d"], names: "D", does: "toggle the dashed gold masks", run: () => setGoldMasks(!goldMasksShown) },
  { keys: ["c"], names: "C", does: "next colouring of tokens", run: () => nextColouring() },
  { keys: ["g"], names: "G", does: "toggle the side-by-side view of the group", run: () => toggleGroup() },
  { keys: ["s"], names: "S", does: "toggle between the model's resolution and full size", run: () => setModelSize(!atModelSize) },
  { keys: ["/"], names: "/", does: "search; Esc returns to the episode", run: () => byId("text-filter").focus() },
  { keys: ["?"], names: "?", does: "show this help; Esc closes it", run: () => byId("help").showModal() },
];

function setUpKeys() {
  const rows = KEYS.map(({ names, does }) => make("tr", {}, make("th", { scope: "row" }, make("kbd", {}, names)), make("td", {}, does)));
  byId("help-keys").append(...rows);
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.isComposing || byId("help").open) return;
    const typing = event.target.closest?.("input:not([type=checkbox]), select");
    if (typing && event.key === "Escape") byId("viewer").focus();
    // Arrow keys scroll elements that are wider than the page.
    if (typing || (event.target.closest?.(".scroll, .members") && event.key.startsWith("Arrow"))) return;
    const known = KEYS.find(({ keys }) => keys.includes(event.key));
    if (!known) return;
    event.preventDefault();
    known.run(event.timeStamp);
  });
}
