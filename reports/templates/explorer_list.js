"use strict";
// A list of any length of which only the visible rows exist. One stop in the tab order; arrow keys move the selection.

const SampleList = (() => {
  const OVERSCAN = 6;

  /**
   * box: the scrolling element; make(row): the content of an option; label: for screen readers;
   * picked(row, opened): called when the selection moves, `opened` when the reader asked for the details.
   */
  function create(box, make, picked) {
    const sizer = Page.element("div", { class: "sizer", role: "presentation" });
    box.append(sizer);
    let rows = new Uint32Array(0);
    let chosen = -1; // position in rows
    let height = 0;
    let waiting = false;
    const drawn = new Map();

    function id(position) {
      return `${box.id}-${position}`;
    }

    function option(position) {
      const made = Page.element("div", {
        role: "option",
        id: id(position),
        class: "row",
        "aria-posinset": position + 1,
        "aria-setsize": rows.length,
        "aria-selected": String(position === chosen),
        style: `transform:translateY(${position * height}px)`,
      });
      made.append(...make(rows[position]));
      return made;
    }

    function draw() {
      waiting = false;
      const first = Math.max(0, Math.floor(box.scrollTop / height) - OVERSCAN);
      const last = Math.min(rows.length - 1, Math.ceil((box.scrollTop + box.clientHeight) / height) + OVERSCAN);
      for (const [position, made] of drawn) {
        if (position < first || position > last) {
          made.remove();
          drawn.delete(position);
        }
      }
      for (let position = first; position <= last; position++) {
        if (drawn.has(position)) continue;
        const made = option(position);
        drawn.set(position, made);
        sizer.append(made);
      }
    }

    function schedule() {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(draw);
    }

    function redraw() {
      for (const made of drawn.values()) made.remove();
      drawn.clear();
      height = parseFloat(getComputedStyle(box).getPropertyValue("--row")) || 80;
      sizer.style.height = `${rows.length * height}px`;
      draw();
    }

    function mark(position) {
      drawn.get(chosen)?.setAttribute("aria-selected", "false");
      chosen = position;
      drawn.get(chosen)?.setAttribute("aria-selected", "true");
      if (position < 0) box.removeAttribute("aria-activedescendant");
      else box.setAttribute("aria-activedescendant", id(position));
    }

    function reveal(position) {
      const top = position * height;
      if (top < box.scrollTop) box.scrollTop = top;
      else if (top + height > box.scrollTop + box.clientHeight) box.scrollTop = top + height - box.clientHeight;
      draw();
    }

    function pick(position, opened) {
      if (rows.length === 0) return;
      const next = Math.min(rows.length - 1, Math.max(0, position));
      reveal(next);
      mark(next);
      picked(rows[next], opened);
    }

    /** Show other rows; with `stay` the selected one stays selected where it is among them, otherwise the first is. */
    function show(next, stay) {
      const kept = chosen < 0 || !stay ? undefined : rows[chosen];
      rows = next;
      const found = kept === undefined ? -1 : rows.indexOf(kept);
      chosen = found >= 0 ? found : rows.length ? 0 : -1;
      box.classList.toggle("empty", rows.length === 0);
      box.scrollTop = 0;
      redraw();
      if (chosen > 0) reveal(chosen);
      mark(chosen);
      picked(chosen < 0 ? null : rows[chosen], false);
    }

    const page = () => Math.max(1, Math.floor(box.clientHeight / height) - 1);
    const moves = {
      ArrowDown: () => chosen + 1,
      ArrowUp: () => chosen - 1,
      PageDown: () => chosen + page(),
      PageUp: () => chosen - page(),
      Home: () => 0,
      End: () => rows.length - 1,
    };
    box.addEventListener("scroll", schedule, { passive: true });
    box.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key === "Enter" || event.key === " ") pick(chosen, true);
      else if (event.key in moves) pick(moves[event.key](), false);
      else return;
      event.preventDefault();
    });
    box.addEventListener("click", (event) => {
      const made = event.target.closest("[role=option]");
      if (made !== null) pick(Number(made.getAttribute("aria-posinset")) - 1, true);
    });
    new ResizeObserver(() => (box.clientHeight ? redraw() : undefined)).observe(box);

    return {
      show,
      step: (by) => pick(chosen + by, false),
      seek: (row) => pick(Math.max(0, rows.indexOf(row)), false),
      position: () => chosen,
      size: () => rows.length,
    };
  }

  return { create };
})();
