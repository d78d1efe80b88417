"use strict";
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const wantsDark = matchMedia("(prefers-color-scheme: dark)");
  const shown = () => root.dataset.theme || (wantsDark.matches ? "dark" : "light");
  const tell = () => {
    const dark = shown() === "dark";
    theme.textContent = dark ? "Light" : "Dark";
    theme.setAttribute("aria-label", dark ? "Switch to light colours" : "Switch to dark colours");
    theme.setAttribute("aria-pressed", String(dark));
  };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = shown() === "dark" ? "light" : "dark";
    tell();
  });
  wantsDark.addEventListener("change", tell);
  tell();

  const printer = document.getElementById("print");
  printer.hidden = false;
  printer.addEventListener("click", () => print());
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((each) => { each.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((each) => { each.open = false; }));

  const value = (row, at, number) => {
    const text = row.cells[at].dataset.sort;
    return number ? (text === "" ? null : Number(text)) : text.toLowerCase();
  };
  const sort = (table, heading) => {
    const at = heading.cellIndex;
    const number = heading.classList.contains("number");
    const up = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const [x, y] = [value(a, at, number), value(b, at, number)];
      if (x === null || y === null) return (x === null) - (y === null); // what is unknown comes last
      const order = number ? x - y : x < y ? -1 : x > y ? 1 : 0;
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const heading of table.tHead.rows[0].cells) {
      heading.querySelector("button").addEventListener("click", () => sort(table, heading));
    }
  }

  const open = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.tagName === "DETAILS") {
      target.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", open);
  open();
})();
