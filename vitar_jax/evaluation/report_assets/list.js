// A virtual list: only visible rows have elements.
"use strict";

const SPARE = 6; // extra rows beyond each edge, so that a short scroll shows no gap

/**
 * Shows items in the scrolling element `container`, whose first child is the list.
 * `draw(item)` creates the content of a row. The height of each row is the style's --row, in rem.
 */
function makeList(container, draw) {
  const list = container.firstElementChild;
  const rows = new Map(); // visible item -> its <li>
  let items = [];
  let chosen = null;

  const rowHeight = () => parseFloat(getComputedStyle(list).getPropertyValue("--row")) * parseFloat(getComputedStyle(document.documentElement).fontSize);

  function place() {
    const height = rowHeight();
    const first = Math.max(0, Math.floor(container.scrollTop / height) - SPARE);
    const last = Math.min(items.length, Math.ceil((container.scrollTop + container.clientHeight) / height) + SPARE);
    const wanted = new Set(items.slice(first, last));
    for (const [item, row] of rows) {
      if (wanted.has(item)) continue;
      row.remove();
      rows.delete(item);
    }
    let next = list.firstElementChild;
    for (let n = first; n < last; n++) {
      const item = items[n];
      if (!rows.has(item)) rows.set(item, make("li", {}, draw(item)));
      const row = rows.get(item);
      row.style.top = `${n * height}px`;
      row.setAttribute("aria-setsize", items.length);
      row.setAttribute("aria-posinset", n + 1);
      if (item === chosen) row.firstChild.setAttribute("aria-current", "true");
      else row.firstChild.removeAttribute("aria-current");
      if (row === next) next = next.nextElementSibling;
      else list.insertBefore(row, next); // existing rows are not moved, so that they keep the focus
    }
    list.style.height = `${items.length * height}px`;
  }

  /** Scrolls to an item unless it is visible. */
  function reveal(item) {
    const n = items.indexOf(item);
    const top = n * rowHeight();
    const out = top < container.scrollTop || top + rowHeight() > container.scrollTop + container.clientHeight;
    if (n >= 0 && out) container.scrollTop = top - container.clientHeight / 3;
  }

  container.addEventListener("scroll", place, { passive: true });
  new ResizeObserver(place).observe(container);
  return {
    fill(newItems) {
      items = newItems;
      list.style.height = `${items.length * rowHeight()}px`;
      if (chosen) reveal(chosen);
      place();
    },
    choose(item) {
      chosen = item;
      reveal(item);
      place();
    },
  };
}
