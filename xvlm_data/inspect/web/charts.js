// Charts: columns, maps, rank and frequency. Each has its numbers in a table, too.

const PERCENT = (edge) => share(edge).replace(" ", "");
const RATIO = (edge) => (edge < 1 ? `1:${Number((1 / edge).toPrecision(3))}` : `${Number(edge.toPrecision(3))}:1`);

function table(heads, rows) {
  const cell = (tag, value, i) => el(tag, { class: i ? "n" : null, scope: tag === "th" ? "col" : null }, value);
  return el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table" }, el("table", null,
    el("thead", null, el("tr", null, heads.map((head, i) => cell("th", head, i)))),
    el("tbody", null, rows.map((row) => el("tr", null, row.map((value, i) => cell("td", value, i)))))));
}

const numbers = (heads, rows) => el("details", null, el("summary", null, "Numbers"), table(heads, rows));

function legend(names) {
  return el("span", { class: "legend" }, names.map((name) =>
    el("span", null, el("i", { class: `dot ${known(name)}` }), NAMES[name] || name)));
}

// The words of a bin: counts have whole numbers, everything else runs from edge to edge.
function binName(edges, i, label) {
  if (!label) {
    if (i === 0) return edges[0] === 1 ? "0" : `below ${edges[0]}`;
    if (i === edges.length) return `${edges[i - 1]} or more`;
    return edges[i] - 1 === edges[i - 1] ? `${edges[i - 1]}` : `${edges[i - 1]} to ${edges[i] - 1}`;
  }
  if (i === 0) return `below ${label(edges[0])}`;
  if (i === edges.length) return `${label(edges[i - 1])} or more`;
  return `${label(edges[i - 1])} to ${label(edges[i])}`;
}

// `series`: name -> histogram {edges, counts, count, mean, max}, all with the same edges.
function histogram(title, about, series, label) {
  const names = Object.keys(series).filter((name) => series[name].count > 0 && series[name].max > 0);
  if (!names.length) return null;
  const edges = series[names[0]].edges;
  let bins = Array.from({ length: edges.length + 1 }, (_, i) => i);
  const filled = bins.filter((i) => names.some((name) => series[name].counts[i]));
  bins = bins.slice(filled[0], filled[filled.length - 1] + 1);
  const part = (name, i) => series[name].counts[i] / series[name].count;
  const top = Math.max(...names.flatMap((name) => bins.map((i) => part(name, i))));
  const bars = bins.map((i) => {
    const words = names.map((name) => `${NAMES[name] || name}: ${share(part(name, i))}`).join(", ");
    return el("div", { class: "bin", title: `${binName(edges, i, label)} — ${words}` },
      names.map((name) => el("i", { class: known(name), style: { height: `${(100 * part(name, i)) / top}%` } })));
  });
  const tick = (i) => (label ? (i === 0 ? "" : label(edges[i - 1])) : `${i === 0 ? 0 : edges[i - 1]}${i === edges.length ? "+" : ""}`);
  const usual = names.map((name) => {
    const most = bins.reduce((best, i) => (series[name].counts[i] > series[name].counts[best] ? i : best), bins[0]);
    return `${NAMES[name] || name} most often ${binName(edges, most, label)}`;
  });
  const show = label || ((value) => Number(value.toFixed(1)).toString());
  return el("figure", { class: "chart" },
    el("figcaption", null, el("h3", null, title), legend(names)),
    el("div", { role: "img", "aria-label": `${title}: ${usual.join("; ")}` },
      el("div", { class: "bars" }, bars),
      el("div", { class: `ticks ${label ? "edges" : ""}` }, bins.map((i) => el("span", null, tick(i))))),
    el("p", { class: "small muted" }, about, " ", names.map((name) =>
      `${names.length > 1 ? `${NAMES[name] || name}: ` : ""}mean ${show(series[name].mean)}, largest ${show(series[name].max)}`).join("; "), "."),
    numbers(["", ...names.map((name) => NAMES[name] || name)],
      bins.map((i) => [binName(edges, i, label), ...names.map((name) => `${number(series[name].counts[i])} (${share(part(name, i))})`)])));
}

// `cells`: rows of counts, the top one first unless `upwards`.
function heatMap(name, cells, words, ends, upwards) {
  const size = cells.length;
  const top = Math.max(1, ...cells.flat());
  const total = cells.flat().reduce((sum, count) => sum + count, 0);
  if (!total) return null;
  const squares = [];
  let [acrossSum, downSum] = [0, 0];
  cells.forEach((row, down) => row.forEach((count, across) => {
    if (!count) return;
    acrossSum += count * (across + 0.5);
    downSum += count * (down + 0.5);
    squares.push(svg("rect", {
      x: across, y: upwards ? size - 1 - down : down, width: 1.02, height: 1.02,
      fill: "currentColor", "fill-opacity": Math.max(0.03, Math.sqrt(count / top)).toFixed(3),
    }, svg("title", null, `${share(count / total)}`)));
  }));
  const mean = [acrossSum, downSum].map((sum) => share(sum / total / size));
  return el("div", { class: `map ${known(name)}` },
    el("span", null, NAMES[name]),
    svg("svg", { viewBox: `0 0 ${size} ${size}`, preserveAspectRatio: "none", role: "img", "aria-label": `${NAMES[name]}: ${words(mean)}` }, squares),
    el("span", { class: "ends" }, ends.map((end) => el("span", null, end))));
}

function maps(title, about, all, words, ends, upwards) {
  const drawn = ["region", "object"].map((name) => heatMap(name, all[name], words, ends, upwards)).filter(Boolean);
  if (!drawn.length) return null;
  return el("figure", { class: "chart" },
    el("figcaption", null, el("h3", null, title)),
    el("div", { class: "maps" }, drawn),
    el("p", { class: "small muted" }, about));
}

// How often the first, second, fourth, … most frequent text occurs; both axes logarithmic.
function ranks(name, points) {
  if (points.length < 6) return null;
  const across = Math.log(points[points.length - 1][0]) || 1;
  const up = Math.log(points[0][1]) || 1;
  const line = points.map(([rank, count]) => `${(100 * Math.log(rank)) / across},${100 - (100 * Math.log(count)) / up}`).join(" ");
  const middle = points[Math.floor(points.length / 2)];
  return el("div", { class: "ranks" },
    svg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img",
      "aria-label": `The most frequent text occurs ${number(points[0][1])} times, number ${number(middle[0])} occurs ${number(middle[1])} times` },
    svg("polyline", { points: line, class: `stroke-${name}` })),
    el("span", { class: "ends muted" }, el("span", null, `1st: ${short(points[0][1])} ×`), el("span", null, "rank and frequency, logarithmic"),
      el("span", null, `${short(points[points.length - 1][0])}th: ${short(points[points.length - 1][1])} ×`)));
}
