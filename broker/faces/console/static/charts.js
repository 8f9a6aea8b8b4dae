// Draws each table of a figure as lines, by uPlot. The table stays: it says what the picture does, for all who cannot see it.
"use strict";

(() => {
  const DASHES = [[], [8, 4], [2, 4], [12, 4, 2, 4]]; // a line is told by its dashes too, not by its colour alone
  const HEIGHT = 190;
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function stamp(ts, step) {
    const said = new Date(ts * 1000).toUTCString(); // "Thu, 26 Nov 2026 08:00:00 GMT"
    const hour = said.slice(17, 22);
    return step >= 86_400 || hour === "00:00" ? said.slice(5, 11) : hour; // midnight says which day begins
  }

  function read(table) {
    const names = [...table.querySelectorAll("thead th")].slice(1).map((cell) => cell.textContent);
    const rows = [...table.querySelectorAll("tbody tr")];
    const times = rows.map((row) => Number(row.cells[0].dataset.at) / 1000);
    const values = names.map((_, at) => rows.map((row) => Number(row.cells[at + 1].textContent.replaceAll(",", ""))));
    return { names, data: [times, ...values] };
  }

  function draw(figure) {
    const table = figure.querySelector("table");
    const place = figure.querySelector("[data-plot]");
    if (!table || !place) return;
    const { names, data } = read(table);
    const colours = ["--line-1", "--line-2", "--line-3", "--line-4"].map(ink);
    const axis = { stroke: ink("--soft"), grid: { stroke: ink("--line"), width: 1 }, ticks: { stroke: ink("--line") } };
    place.replaceChildren();
    const plot = new uPlot({
      width: place.clientWidth,
      height: HEIGHT,
      tzDate: (ts) => uPlot.tzDate(new Date(ts * 1000), "Etc/UTC"),
      legend: { live: false },
      cursor: { drag: { x: false, y: false } },
      scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
      axes: [{ ...axis, values: (_, splits, at, space, step) => splits.map((ts) => stamp(ts, step)) }, { ...axis, size: 60 }],
      series: [{ label: "From" }, ...names.map((label, at) => ({
        label, stroke: colours[at], width: 2, dash: DASHES[at], points: { show: data[0].length < 40, size: 5 },
      }))],
    }, data, place);
    new ResizeObserver(() => {
      if (place.clientWidth && place.clientWidth !== plot.width) plot.setSize({ width: place.clientWidth, height: HEIGHT });
    }).observe(place);
  }

  const all = () => document.querySelectorAll("figure[data-chart]").forEach(draw);
  all();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
})();
