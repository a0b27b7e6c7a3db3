// The images to ask about: chosen, dropped or pasted, and shown as the server opens them.
"use strict";

const chosen = []; // {file, image_url, width, height}, in the order of the question

/** Reads a file as a data URL. */
function inline(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name}: cannot be read`));
    reader.readAsDataURL(file);
  });
}

/** Opens files on the server, which also reads formats that browsers do not, and adds them. */
async function addImages(files) {
  for (const file of files) {
    tell(`Opening ${file.name}…`);
    try {
      const response = await send("page/preview", "application/octet-stream", file);
      chosen.push({ file, ...(await response.json()) });
      tell(`Added ${file.name}.`);
      complain("");
    } catch (error) {
      tell("");
      complain(`${file.name}: ${error.message.replace(/^image: /, "")}`);
    }
    showChosen();
  }
}

function removeImage(place) {
  const [{ file }] = chosen.splice(place, 1);
  showChosen();
  tell(`Removed ${file.name}.`);
  (byId("chosen").querySelectorAll("button")[place] ?? byId("files")).focus();
}

function showChosen() {
  const items = chosen.map(({ file, image_url, width, height }, place) => {
    const remove = make("button", { type: "button", "aria-label": `Remove ${file.name}` }, "Remove");
    remove.addEventListener("click", () => removeImage(place));
    const name = make("span", { class: "name", title: file.name }, file.name);
    return make("li", {}, make("img", { src: image_url, alt: `${file.name}, ${pixels(width, height)}` }), name, remove);
  });
  byId("chosen").replaceChildren(...items);
  byId("files").nextElementSibling.textContent = chosen.length ? "Add an image" : "Choose an image";
}

function setUpImages() {
  const drop = byId("drop");
  byId("files").addEventListener("change", async (event) => {
    const files = [...event.target.files];
    event.target.value = ""; // so that the same file can be chosen again
    await addImages(files);
  });
  const over = (on) => (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    drop.classList.toggle("over", on);
  };
  // Anywhere on the page, because a browser would open a file that misses the field.
  document.addEventListener("dragover", over(true));
  document.addEventListener("dragleave", over(false));
  document.addEventListener("drop", (event) => {
    over(false)(event);
    addImages([...(event.dataTransfer?.files ?? [])]);
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) event.preventDefault();
    addImages(files);
  });
}
