// An episode as it is played: the text of a turn as it grows, its boxes, the image that its tool returned, the answer.
"use strict";

const STROKE = 900; // milliseconds in which a box is drawn

const stillness = matchMedia("(prefers-reduced-motion: reduce)");

/** An image as `picture` takes it. */
const shownImage = ({ image_url, width, height }, turn) => ({
  file: image_url, width, height, seen: null, seen_size: [width, height], turn,
});

const imageAddress = (address) => address;

/** Returns the size of an image that the server sent. */
async function sizeOf(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return { image_url: address, width: image.naturalWidth, height: image.naturalHeight };
}

class Play {
  constructor(question, options, images) {
    const letters = options.map((text, n) => [String.fromCharCode(65 + n), text]);
    const none = { gold: [], gold_masks: [], rewards: [], looks: [], turns: [] };
    this.episode = { ...none, question, options: letters, answer: "", correct: null, rule: "", predicted: null };
    this.episode.images = images.map((image) => shownImage(image, null));
    this.growing = null; // element with the text of the turn in progress
    this.view = byId("episode");
    this.view.replaceChildren(questionView(this.episode));
    this.begin();
  }

  /** Begins a turn: shows the images that it sees first. */
  begin() {
    const { images, turns } = this.episode;
    const name = `Turn ${turns.length + 1}`;
    this.growing = make("p", { class: "said growing", dir: "auto" });
    const first = turns.length === 0 && images.map((image, n) => picture(image, imageName(n), imageName(n)));
    const pictures = first && first.length > 0 && make("div", { class: "pictures" }, first);
    const card = make("section", { class: "turn card", "aria-label": name, "aria-busy": "true" }, make("h4", {}, name), pictures, this.growing);
    this.view.append(card);
    this.follow(card);
    tell(`${name}: the model writes.`);
  }

  /** Takes an event of the server. */
  async take(event) {
    if (event.type === "text") this.write(event.text);
    else if (event.type === "turn") await this.endTurn(event);
  }

  write(text) {
    if (!this.growing) this.begin();
    const atEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
    this.growing.append(text);
    if (atEnd) scrollTo(0, document.documentElement.scrollHeight);
  }

  async endTurn(event) {
    if (!this.growing) this.begin();
    const { episode } = this;
    const index = episode.turns.length;
    if (event.image_url) episode.images.push(shownImage(await sizeOf(event.image_url), index));
    const { text, thought, error, start } = event;
    const action = event.action && JSON.stringify(event.action);
    const on = Math.max(event.call?.image ?? 0, 0);
    const boxes = event.boxes_original;
    episode.turns.push({ text, thought, error, start, action, boxes, image: event.image, on: on < episode.images.length ? on : 0, masks: event.shown_masks ?? [] });
    const card = turnView(episode, episode.turns[index], index);
    this.growing.closest(".card").replaceWith(card);
    this.growing = null;
    for (const box of card.querySelectorAll("rect")) drawn(box);
    for (const mask of card.querySelectorAll("path, text.label")) mask.classList.add("appear");
    if (event.image !== null) card.querySelector(".pictures figure:last-child").classList.add("appear", "late");
    this.follow(card.querySelector(".pictures figure:last-child") ?? card);
    const masks = episode.turns[index].masks.length;
    const seen = [boxes.length > 0 && `a box at ${inWords(boxes)}`, masks > 0 && count(masks, "mask")].filter(Boolean).join(", ");
    tell([`Turn ${index + 1} has ended`, seen, error && error[1], event.image !== null && "a tool returned an image"].filter(Boolean).join(", "));
  }

  /** Shows the answer. `address` is that of the episode, if the server keeps it. */
  end(event, address) {
    const { episode } = this;
    if (event.episode) {
      event.episode.images.forEach((image, n) => {
        episode.images[n] = { ...image, file: episode.images[n].file, seen: null };
      });
      Object.assign(episode, { ...event.episode, images: episode.images });
    }
    // The legend of masks, and the numbers of looks, are known only now.
    if (episode.turns.some(({ masks }) => masks.length) || episode.looks.length > 1) {
      const turns = episode.turns.map((turn, index) => turnView(episode, turn, index));
      this.view.replaceChildren(...[questionView(episode), legend([episode]), looksView(episode), ...turns].filter(Boolean));
    }
    episode.predicted = event.predicted_answer;
    const said = episode.predicted === null ? "No answer" : spelled(episode.predicted, episode.options);
    const ended = `Ended ${END_REASONS[event.end_reason] ?? event.end_reason}.`;
    const save = make("a", { href: `${address}/trajectories.zip`, download: "" }, "Save the trajectory");
    const report = make("a", { href: `${address}/report`, target: "_blank", rel: "noopener" }, "Open in the report");
    const card = make(
      "section",
      { class: "outcome card appear", "aria-label": "Answer" },
      make("p", { class: "answer" }, make("span", {}, "Answer"), make("strong", { dir: "auto" }, said)),
      make("p", { class: "quiet" }, ended),
      event.episode ? make("p", { class: "links" }, save, report) : null,
    );
    this.view.append(card);
    this.follow(card);
    tell(`Answer: ${said}. ${ended}`);
  }

  /** Ends the turn in progress where it is. */
  stop() {
    this.growing?.classList.add("stopped");
    this.growing?.closest(".card").removeAttribute("aria-busy");
  }

  follow(element) {
    element.scrollIntoView({ block: "nearest", behavior: stillness.matches ? "auto" : "smooth" });
  }
}

/** Draws a box from its first corner to its last one, as by hand. */
function drawn(box) {
  if (stillness.matches) return;
  const { width, height } = { width: box.getAttribute("width"), height: box.getAttribute("height") };
  box.animate(
    [
      { width: "0px", height: "0px" },
      { width: `${width}px`, height: `${height}px` },
    ],
    { duration: STROKE, easing: "cubic-bezier(.3, 0, .2, 1)" },
  );
}
