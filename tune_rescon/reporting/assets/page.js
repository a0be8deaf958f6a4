"use strict";
// Draws the plots in the light or dark theme, the visible ones first; sorts the table of trials.
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const elements = [...document.querySelectorAll(".chart")];
  const coarse = matchMedia("(pointer: coarse)").matches;
  const darkness = matchMedia("(prefers-color-scheme: dark)");
  const config = { displayModeBar: false, responsive: true, showTips: false };
  const drawn = new Set();

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // A figure may name the colours "page" and "ink", which depend on the theme.
  function inTheme(value) {
    if (value === "page") return colour("--card");
    if (value === "ink") return colour("--ink");
    if (Array.isArray(value)) return value.map(inTheme);
    if (!value || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, inTheme(item)]));
  }

  function layoutOf(figure) {
    const ink = colour("--ink");
    const line = colour("--line");
    const layout = {
      ...inTheme(figure.layout),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      hoverlabel: { bgcolor: colour("--shade"), bordercolor: line, font: { color: ink } },
    };
    // A finger scrolls the page; a mouse can zoom into a plot.
    if (coarse) layout.dragmode = false;
    for (const name of ["xaxis", "yaxis"]) {
      layout[name] = { gridcolor: line, linecolor: line, zerolinecolor: line, ...layout[name] };
    }
    return layout;
  }

  // Only `line` may name a colour; the other keys have long arrays, which are not copied.
  function traceOf(trace) {
    const copy = { ...trace };
    if (trace.line) copy.line = inTheme(trace.line);
    if (trace.marker?.line) copy.marker = { ...trace.marker, line: inTheme(trace.marker.line) };
    return copy;
  }

  async function draw(element) {
    const figure = figures[element.id];
    if (figure.minWidth) element.style.minWidth = `${figure.minWidth}px`;
    try {
      await Plotly.react(element, figure.data.map(traceOf), layoutOf(figure), config);
      drawn.add(element);
      root.dataset.drawn = `${drawn.size}/${elements.length}`;
    } catch (error) {
      // The other plots must still be drawn.
      console.error(`${element.id} was not drawn:`, error);
    }
  }

  const idle = window.requestIdleCallback || ((work) => setTimeout(work, 50));
  const inSight = (element) => element.getBoundingClientRect().top < innerHeight;

  // The visible plots are drawn first, and the others one by one while the browser is idle.
  async function drawAll() {
    for (const element of elements.filter(inSight)) await draw(element);
    performance.mark("interactive");
    const watch = new IntersectionObserver(
      (entries) => entries.forEach((entry) => entry.isIntersecting && !drawn.has(entry.target) && draw(entry.target)),
      { rootMargin: "300px" }
    );
    elements.forEach((element) => watch.observe(element));
    for (const element of elements) {
      await new Promise((resolve) => idle(resolve, { timeout: 500 }));
      if (!drawn.has(element)) await draw(element);
    }
    watch.disconnect();
    performance.mark("complete");
    root.dataset.complete = "yes";
  }

  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : darkness.matches;
  }

  function redraw() {
    drawn.forEach(draw);
  }

  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    sessionStorage.setItem("theme", root.dataset.theme);
    redraw();
  });
  darkness.addEventListener("change", redraw);

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", () => {
      const text = document.getElementById(button.dataset.copy).textContent;
      navigator.clipboard?.writeText(text).then(() => { button.textContent = "copied"; });
    });
  }

  // A click on a heading sorts by its column, a second click in the other direction. Texts follow the numbers.
  function sortBy(table, column, rising) {
    const body = table.tBodies[0];
    const value = (row) => row.cells[column].textContent.trim();
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      const [m, n] = [parseFloat(x), parseFloat(y)];
      if (isNaN(m) && isNaN(n)) return rising * x.localeCompare(y);
      if (isNaN(m) || isNaN(n)) return isNaN(m) ? 1 : -1;
      return rising * (m - n);
    };
    body.replaceChildren(...[...body.rows].sort(compare));
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      cell.firstElementChild.addEventListener("click", () => {
        const rising = cell.ariaSort === "ascending" ? -1 : 1;
        for (const other of table.tHead.rows[0].cells) other.ariaSort = "none";
        cell.ariaSort = rising === 1 ? "ascending" : "descending";
        sortBy(table, column, rising);
      });
    });
  }

  drawAll();
})();
