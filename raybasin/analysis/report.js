// Draws the charts of the report, sorts and filters its tables, and shows the point that is clicked.
// Texts from the results become text nodes, never markup.
"use strict";
(() => {
  const { charts, details } = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  const drawn = new Map(); // each plot and what it shows, to be drawn again when the page turns dark or light

  function element(tag, text, className) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  // Charts

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return { "@ink": of("--ink"), "@soft": of("--soft"), line: of("--line"), paper: of("--paper") };
  }

  function themed(value, palette) {
    if (typeof value === "string") return value.startsWith("@") && palette[value] ? palette[value] : value;
    if (Array.isArray(value)) return value.map((one) => themed(one, palette));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, themed(one, palette)]));
  }

  function layout(chart, palette) {
    const axis = (own) => ({ automargin: true, gridcolor: palette.line, zerolinecolor: palette.line, ...own });
    return {
      margin: { l: 50, r: 12, t: 30, b: 40 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: palette["@soft"], activecolor: palette["@ink"] },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: palette["@ink"], size: 12, family: "system-ui, sans-serif" },
      hoverlabel: { align: "left", bgcolor: palette.paper, bordercolor: palette["@soft"], font: { color: palette["@ink"] } },
      legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", font: { size: 11 } },
      ...themed(chart.layout, palette),
      xaxis: axis(chart.layout.xaxis), yaxis: axis(chart.layout.yaxis),
    };
  }

  // Texts of tiles are no wider and no higher than the smallest tile.
  function fitted(plot, { data, fit }) {
    if (!fit) return data;
    const [wide, high] = [plot.clientWidth - 130, plot.clientHeight - 90]; // without axes and colour bar
    const size = Math.max(3, Math.min(12, Math.floor(Math.min((wide * fit.width) / 0.6, (high * fit.height) / 1.4))));
    return data.map((one) => (one.mode === "text" ? { ...one, textfont: { ...one.textfont, size } } : one));
  }

  // A rim of its tile's colour around each text, so that lines do not strike it through.
  function halo(plot) {
    const rims = plot.data.find((one) => one.mode === "text")?.meta;
    if (!rims) return;
    for (const group of plot.querySelectorAll(".textpoint")) {
      const rim = rims[group.__data__.i];
      if (rim) group.style.cssText = `paint-order: stroke; stroke: ${rim}; stroke-width: 6px; stroke-linejoin: round`;
    }
  }

  function draw(plot, chart) {
    const palette = colours();
    drawn.set(plot, chart);
    // Named one by one: among plotly's own there is a button that sends the chart to a server.
    const buttons = [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]];
    const options = { responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtons: buttons };
    return Plotly.react(plot, themed(fitted(plot, chart), palette), layout(chart, palette), options);
  }

  function fill(grid, wanted) {
    for (const plot of grid.querySelectorAll(".plot")) {
      drawn.delete(plot);
      Plotly.purge(plot);
    }
    // All places first: a chart takes the width that it finds when it is drawn.
    const plots = wanted.map(() => element("div", undefined, "plot"));
    grid.replaceChildren(...plots.map((plot, i) => {
      const box = element("div");
      box.append(element("h3", wanted[i].title), plot);
      return box;
    }));
    plots.forEach((plot, i) => draw(plot, wanted[i]).then(() => {
      halo(plot);
      plot.on("plotly_afterplot", () => halo(plot));
      plot.on("plotly_click", (event) => {
        const point = event.points.map((one) => one.customdata).find((one) => Number.isInteger(one));
        if (point !== undefined) choose(point, true);
      });
    }));
  }

  window.addEventListener("resize", () => drawn.forEach((chart, plot) => chart.fit && draw(plot, chart)));
  dark.addEventListener("change", () => drawn.forEach((chart, plot) => draw(plot, chart)));

  // The point that is clicked

  const panel = document.getElementById("point");

  function table(head, rows) {
    const made = element("table", undefined, "cards");
    const titles = element("tr");
    for (const text of head) titles.append(element("th", text));
    const top = element("thead");
    top.append(titles);
    const body = element("tbody");
    for (const row of rows) {
      const line = element("tr");
      row.forEach((text, i) => {
        const cell = element("td", text);
        cell.dataset.label = head[i];
        line.append(cell);
      });
      body.append(line);
    }
    made.append(top, body);
    return made;
  }

  function choose(number, move) {
    const point = details.points[number];
    panel.hidden = false;
    panel.querySelector("h2").textContent = point.title;
    const body = panel.querySelector(".figures tbody");
    body.replaceChildren();
    for (const [name, text, verdict] of point.figures) {
      const row = element("tr");
      row.append(element("td", name), element("td", text), element("td", verdict, "verdict"));
      body.append(row);
    }
    for (const part of ["replicates", "members"])
      panel.querySelector("." + part).replaceChildren(table(point[part].head, point[part].rows));
    fill(panel.querySelector(".charts"), point.charts);
    for (const row of document.querySelectorAll("tr[data-point]"))
      row.classList.toggle("chosen", Number(row.dataset.point) === number);
    if (move) panel.scrollIntoView({ behavior: calm.matches ? "auto" : "smooth", block: "start" });
  }

  // Tables

  function compare(a, b) {
    if (a === "" || b === "") return (a === "") - (b === ""); // what is not known stands last
    const numbers = [Number(a), Number(b)];
    return numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
  }

  function sort(of, column, down) {
    const heading = of.tHead.rows[0].cells[column];
    for (const other of of.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...of.tBodies[0].rows].map((row) => [row.cells[column].dataset.by, row]);
    const known = rows.filter(([by]) => by !== ""), unknown = rows.filter(([by]) => by === "");
    known.sort(([a], [b]) => (down ? compare(b, a) : compare(a, b)));
    of.tBodies[0].append(...[...known, ...unknown].map(([, row]) => row));
  }

  function explorable(of) {
    [...of.tHead.rows[0].cells].forEach((heading, column) => {
      const button = element("button");
      button.type = "button";
      button.title = "sort";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => sort(of, column, heading.getAttribute("aria-sort") === "ascending"));
    });
    const order = element("label", " sorted by "); // headings are not seen on a narrow page
    const by = element("select");
    by.append(element("option", ""));
    for (const heading of of.tHead.rows[0].cells) by.append(element("option", heading.dataset.name));
    by.addEventListener("change", () => { if (by.selectedIndex) sort(of, by.selectedIndex - 1, false); });
    order.append(by);
    const label = element("label", "Only rows with ");
    const words = element("input");
    words.type = "search";
    const count = element("span", "", "note");
    words.addEventListener("input", () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      const rows = [...of.tBodies[0].rows];
      for (const row of rows) {
        const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
        row.hidden = !wanted.every((word) => text.includes(word));
      }
      count.textContent = wanted.length ? ` ${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
    });
    label.append(words);
    const line = element("p");
    line.append(label, count, order);
    of.parentElement.before(line);
    for (const row of of.querySelectorAll("tr[data-point]")) {
      row.tabIndex = 0;
      const open = () => choose(Number(row.dataset.point), true);
      row.addEventListener("click", open);
      row.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
    }
  }

  document.querySelectorAll("table[data-name]").forEach(explorable);

  // Everything at first

  for (const grid of document.querySelectorAll("[data-figure]")) {
    const name = grid.dataset.figure;
    if (name !== "map") fill(grid, charts[name]);
  }
  const map = document.querySelector('[data-figure="map"]');
  const values = document.getElementById("values");
  if (map) {
    const select = values.querySelector("select");
    values.hidden = false;
    select.addEventListener("change", () => fill(map, charts.map[select.value]));
    fill(map, charts.map[select.value]);
  }
  if (details.points.length) choose(details.first, false);
})();
