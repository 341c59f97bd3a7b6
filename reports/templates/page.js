"use strict";
// The page around the explorer: theme, current section, sorting of tables, enlarged figures. No library, no network.

const Page = (() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === true) made.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  // ---- theme ----

  function remembered() {
    try {
      return localStorage.getItem("report-theme");
    } catch (error) {
      if (error instanceof DOMException) return null; // storage is refused to this page: follow the system
      throw error;
    }
  }

  function remember(theme) {
    try {
      localStorage.setItem("report-theme", theme);
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
    }
  }

  function show(theme) {
    root.dataset.theme = theme;
    const dark = theme === "dark";
    const button = document.querySelector("#theme");
    button.querySelector("span").textContent = dark ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${dark ? "light" : "dark"} colours`);
    for (const source of document.querySelectorAll("picture source")) source.media = dark ? "all" : "not all";
  }

  function theme() {
    const button = document.querySelector("#theme");
    button.hidden = false;
    show(remembered() ?? (system.matches ? "dark" : "light"));
    system.addEventListener("change", () => remembered() ?? show(system.matches ? "dark" : "light"));
    button.addEventListener("click", () => {
      const next = root.dataset.theme === "dark" ? "light" : "dark";
      remember(next);
      show(next);
    });
  }

  // ---- where the reader is ----

  function sections() {
    const links = new Map();
    for (const link of document.querySelectorAll(".bar nav a")) links.set(link.hash.slice(1), link);
    const watched = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          if (!entry.isIntersecting) continue;
          for (const [id, link] of links) {
            if (id === entry.target.id) link.setAttribute("aria-current", "true");
            else link.removeAttribute("aria-current");
          }
        }
      },
      { rootMargin: "-45% 0px -50% 0px" },
    );
    for (const id of links.keys()) watched.observe(document.getElementById(id));
  }

  // ---- tables ----

  function key(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    if (column > 0) return cell.dataset.text ?? null; // a dash: no value, always last
    return cell.textContent.trim();
  }

  function compare(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return sign * (a - b);
    return sign * String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function sort(table, original, head, column) {
    const now = head.getAttribute("aria-sort");
    const first = column === 0 ? "ascending" : "descending";
    const second = column === 0 ? "descending" : "ascending";
    const next = now === null ? first : now === first ? second : null;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    const sign = next === "ascending" ? 1 : -1;
    const rows = next === null ? original : [...original].sort((a, b) => compare(key(a, column), key(b, column), sign));
    if (next !== null) head.setAttribute("aria-sort", next);
    table.classList.toggle("sorted", next !== null);
    table.tBodies[0].append(...rows);
  }

  function sortable(table) {
    const original = [...table.tBodies[0].rows];
    for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
      const label = head.querySelector(".label");
      const button = element("button", { type: "button", class: "sort", title: "Sort by this column" });
      button.append(...label.childNodes);
      label.append(button);
      button.addEventListener("click", () => sort(table, original, head, column));
    }
  }

  // ---- enlarged pictures ----

  let shown = [];
  let at = 0;

  function enlarge(items, index) {
    shown = items;
    at = index;
    const box = document.querySelector("#lightbox");
    paint(box);
    if (!box.open) box.showModal();
  }

  function paint(box) {
    const item = shown[at];
    const image = box.querySelector("img");
    image.src = item.src;
    image.alt = item.alt;
    box.querySelector("b").textContent = item.title;
    const stage = box.querySelector(".stage");
    stage.className = "stage";
    stage.classList.toggle("small", Boolean(item.small));
    stage.classList.toggle("pixel", Boolean(item.pixel));
    for (const button of box.querySelectorAll("[data-step]")) button.hidden = shown.length < 2;
  }

  function step(by) {
    if (shown.length < 2) return;
    at = (at + by + shown.length) % shown.length;
    paint(document.querySelector("#lightbox"));
  }

  function figures() {
    const box = document.querySelector("#lightbox");
    const links = [...document.querySelectorAll(".plate a")];
    for (const [index, link] of links.entries()) {
      link.addEventListener("click", (event) => {
        event.preventDefault();
        const items = links.map((other) => {
          const image = other.querySelector("img");
          const dark = root.dataset.theme === "dark" && other.querySelector("source");
          return { src: dark ? dark.srcset : image.getAttribute("src"), alt: image.alt, title: other.dataset.title };
        });
        enlarge(items, index);
      });
    }
    box.querySelector(".close").addEventListener("click", () => box.close());
    for (const button of box.querySelectorAll("[data-step]")) {
      button.addEventListener("click", () => step(Number(button.dataset.step)));
    }
    box.querySelector(".stage").addEventListener("click", (event) => event.currentTarget.classList.toggle("whole"));
    box.addEventListener("click", (event) => event.target === box && box.close());
    box.addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight") step(1);
      else if (event.key === "ArrowLeft") step(-1);
      else return;
      event.preventDefault();
    });
  }

  function start() {
    theme();
    sections();
    for (const table of document.querySelectorAll("figure table")) sortable(table);
    figures();
  }

  return { element, enlarge, start };
})();

Page.start();
