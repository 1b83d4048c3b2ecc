// The sections of a page, each from its part of the document that `look.py` makes.

function heading(about, extra) {
  const facts = [about.source, about.split, about.generator, plural(about.shards, "file"), bytes(about.bytes)].filter(Boolean);
  return el("header", { class: "wrap top" },
    el("h1", null, said(about.name || about.spec || "Manifest")),
    el("p", null, said(facts.join("  ·  ")), about.licence ? [el("br"), said(about.licence)] : null), extra);
}

function navigation(sections, extra) {
  const links = sections.map((section) => el("a", { href: `#${section.id}` }, section.querySelector("h2").textContent));
  const theme = el("button", { class: "button", type: "button", on: { click: () => {
    const dark = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    document.documentElement.dataset.theme = dark === "dark" ? "light" : "dark";
  } } }, "Light / dark");
  const watch = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    for (const link of links) {
      if (link.hash === `#${entry.target.id}`) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }), { rootMargin: "-20% 0px -70% 0px" });
  sections.forEach((section) => watch.observe(section));
  return el("nav", { class: "bar", "aria-label": "Sections" }, el("div", { class: "wrap" }, links, el("span", { class: "push" }, extra, " ", theme)));
}

function section(id, title, about, ...inside) {
  return el("section", { id, "aria-labelledby": `${id}-title` },
    el("header", null, el("h2", { id: `${id}-title` }, title), about ? el("p", null, about) : null), inside);
}

function verdict(line) {
  if (!line || line.status === "unchecked") return null;
  const wanted = line.official === null ? line.paper : line.official;
  const off = line.difference === null ? "" : `${line.difference >= 0 ? "+" : "−"}${share(Math.abs(line.difference))}`;
  const good = line.status === "ok";
  return el("p", { class: `verdict ${good ? "ok" : "outside"}`, title: line.origin || null },
    `${good ? "✓" : "✗"} expected ${number(wanted)}`, el("br"),
    `${off} · ${good ? "within" : "more than"} ${share(line.tolerance)} off`);
}

function summary(doc) {
  const statistics = doc.statistics;
  const tiles = doc.figures.filter((figure) => figure.number || (figure.expected && figure.expected.status !== "unchecked")).map((figure) =>
    el("div", { class: "tile" },
      el("p", { class: "label" }, el("i", { class: `dot ${figure.granularity || ""}` }), figure.quantity),
      el("p", { class: "number" }, `${figure.exact ? "" : "≈ "}${number(figure.number)}`),
      el("p", { class: "note" }, figure.granularity
        ? `on ${short(figure.images)} images${statistics.texts[figure.granularity] ? `, ${statistics.texts[figure.granularity].exact && figure.exact ? "" : "≥ "}${short(statistics.texts[figure.granularity].distinct)} different` : ""}`
        : [`${short(statistics.images.embedded)} embedded`, statistics.images.sizes_unknown ? `, ${short(statistics.images.sizes_unknown)} of unknown size` : "",
          statistics.rows_without_concepts ? `, ${short(statistics.rows_without_concepts)} without concepts` : ""]),
      verdict(figure.expected)));
  const per = statistics.concepts_per_image;
  tiles.push(el("div", { class: "tile" },
    el("p", { class: "label" }, el("i", { class: "dot" }), "concepts an image"),
    el("p", { class: "number" }, per.mean === null ? "–" : per.mean.toFixed(1)),
    el("p", { class: "note" }, per.max === null ? "" : `from ${number(per.min)} to ${number(per.max)}; ${short(statistics.attributes)} attributes in all`)));
  const part = doc.counted.rows < doc.counted.of
    ? `Counted on ${number(doc.counted.rows)} of ${number(doc.counted.of)} rows, evenly spread; sums are from manifest.json where they are exact.` : null;
  return el("section", { id: "summary", "aria-label": "Summary" },
    el("div", { class: "tiles" }, tiles),
    part ? el("p", { class: "status" }, part) : null,
    doc.expected.length ? el("div", { class: "chart" }, table(["", "", "expected", "found", ""], doc.expected.flatMap(({ name, lines }) =>
      lines.filter((line) => line.status !== "unchecked").map((line) => [said(name), line.quantity, number(line.official === null ? line.paper : line.official),
        line.found === null ? "–" : number(line.found), el("span", { class: line.status === "ok" ? "ok" : "outside" }, line.status)])))) : null,
    doc.recipe ? el("p", { class: "status" }, "Expected counts are of the recipe ", said(doc.recipe), ".") : null,
    doc.warnings.length ? el("ul", { class: "warnings" }, doc.warnings.map((line) => el("li", null, said(line)))) : null);
}

function distributions(doc) {
  const s = doc.statistics;
  const figures = [
    histogram("Concepts per image", "Images by how many concepts they have.", s.concepts_of),
    histogram("Box area", "Share of the image that a box covers, logarithmic.", s.box_area, PERCENT),
    histogram("Box aspect", "Width to height in pixels.", s.box_aspect, RATIO),
    histogram("Words per text", "Texts by their number of words.", s.words),
    maps("Where boxes are", "Centres of boxes. A corner that is empty, or the only one that is not, hints at boxes in other units.",
      s.box_centres, (mean) => `centres of boxes; on average ${mean[0]} from the left and ${mean[1]} from the top`, ["left", "right"], false),
    maps("How wide and high boxes are", "Width to the right, height upwards, both as parts of the image. A cloud that lies on one side hints at swapped sides.",
      s.box_sides, (mean) => `sides of boxes; on average ${mean[0]} of the width and ${mean[1]} of the height`, ["narrow", "wide"], true),
  ];
  const splits = { source: s.sources, split: s.splits };
  for (const [name, counts] of Object.entries(splits)) {
    if (Object.keys(counts).length > 1) {
      const total = Object.values(counts).reduce((sum, count) => sum + count, 0);
      figures.push(el("figure", { class: "chart" }, el("figcaption", null, el("h3", null, `Images by ${name}`)),
        table(["", "images", ""], Object.entries(counts).slice(0, 20).map(([value, count]) => [said(value), number(count), share(count / total)]))));
    }
  }
  return section("distributions", "Distributions", null, el("div", { class: "figures" }, figures.filter(Boolean)));
}

function texts(doc, search) {
  const found = doc.statistics.texts;
  const columns = GRANULARITIES.filter((name) => found[name]).map((name) => {
    const text = found[name];
    const most = text.top.length ? text.top[0][1] : 1;
    return el("div", { class: "chart" },
      el("h3", null, el("i", { class: `dot ${name}`, style: { display: "inline-block", "margin-right": "0.45rem" } }), `Texts of ${NAMES[name]}`),
      el("p", { class: "small muted" }, `${text.exact ? "" : "at least "}${number(text.distinct)} different in ${number(text.total)}; ${number(text.once)} (${share(text.once / Math.max(1, text.distinct))}) occur once`,
        text.exact ? "" : `; counts may be low by up to ${number(text.undercount)}`),
      el("ol", { class: "frequent", tabindex: "0", "aria-label": `Most frequent texts of ${NAMES[name]}` }, text.top.map(([words, count]) => el("li", null,
        el("button", { type: "button", title: "Look for it among the pictures", on: { click: () => search(words) } },
          el("i", { class: name, style: { width: `${(100 * count) / most}%` } }), said(words || "(empty)"), el("span", { class: "count" }, number(count)))))),
      ranks(name, text.ranks),
      text.distinct > text.top.length ? [el("p", { class: "small muted" }, `Some of those that occur ${text.tail[0][1] === 1 ? "once" : `${number(text.tail[0][1])} times`}:`),
        el("div", { class: "tail" }, text.tail.map(([words]) => said(words || "(empty)")))] : null);
  });
  return section("texts", "Texts", "the most frequent ones, and their tails", columns.length ? el("div", { class: "texts" }, columns) : el("p", { class: "muted" }, "There are none."));
}

function leftOut(doc) {
  const counts = doc.build.counts;
  const sum = (of) => Object.values(of || {}).reduce((total, count) => total + (Number.isFinite(count) ? count : 0), 0);
  const rows = Object.entries(counts).filter(([, of]) => of && of.raw).map(([kind, of]) => {
    const parts = { kept: of.kept || 0, filtered: sum(of.filtered), rejected: sum(of.rejected) };
    const bar = el("div", { class: "stack", role: "img", "aria-label": Object.entries(parts).map(([name, count]) => `${name} ${share(count / of.raw)}`).join(", ") },
      Object.entries(parts).map(([name, count]) => el("i", { class: name, style: { width: `${(100 * count) / of.raw}%` } })));
    return [said(kind), number(of.raw), ...Object.values(parts).map((count) => `${number(count)}`), bar];
  });
  if (!rows.length && !doc.left_out.length) {
    return section("left-out", "Left out", null, el("p", { class: "muted" }, "Not known: there is no manifest.json with counts, and no rejects.parquet beside it."));
  }
  const reasons = doc.left_out.map((reason) => el("details", null,
    el("summary", null, said(`${reason.kind}: ${reason.reason}`), ` — ${number(reason.count)}`, reason.flag ? el("span", null, ", a rule; turned off by ", el("code", null, reason.flag)) : ""),
    el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Examples" }, el("table", null,
      el("thead", null, el("tr", null, ["record", "where", "what"].map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", null, reason.examples.map((example) => el("tr", null,
        el("td", null, said(example.record_id || "–")), el("td", null, said(`${example.source_file || ""} ${example.location || ""}`)), el("td", null, said(example.message || "")))))))));
  return section("left-out", "Left out", "what the build read and did not keep, by reason",
    el("div", { class: "chart" },
      rows.length ? [el("span", { class: "legend" }, ["kept", "filtered", "rejected"].map((name) => el("span", null, el("i", { class: `dot ${name}` }), { kept: "kept", filtered: "filtered by a rule", rejected: "rejected as broken" }[name]))),
        table(["", "in the release", "kept", "filtered", "rejected", ""], rows)] : null,
      Number.isInteger(doc.build.clipped_boxes) ? el("p", { class: "small muted" }, `${plural(doc.build.clipped_boxes, "box").replace("boxs", "boxes")} clipped to the image.`) : null,
      reasons));
}

function suspicious(doc, rowOf, viewer, ofRows) {
  const found = doc.suspicious.filter((kind) => kind.number !== 0);
  const clean = doc.suspicious.filter((kind) => kind.number === 0);
  const cards = found.map((kind) => {
    const thumbs = el("div", { class: "thumbs" });
    const entry = el("div", { class: "chart kind" },
      el("h3", null, kind.title),
      kind.number === null ? null : el("p", null, el("span", { class: "number" }, number(kind.unit === "concepts" ? kind.number : kind.rows)),
        el("span", { class: "muted small" }, kind.unit === "concepts" ? ` concepts on ${plural(kind.rows, "image")}` : ` images share ${plural(kind.number, "value")}`)),
      el("p", { class: "small muted" }, kind.about), thumbs);
    Promise.all(kind.examples.map(rowOf)).then((rows) => {
      const shown = rows.filter(Boolean);
      const filter = { text: "", highlight: ofRows.has(kind.kind) ? null : (concept) => concept[4].includes(kind.kind) };
      thumbs.append(...shown.map((row) => {
        const small = picture(row, (concept) => !filter.highlight || filter.highlight(concept), () => {});
        const flagged = row.concepts.find((concept) => concept[4].includes(kind.kind));
        return framed("button", { type: "button", title: flagged ? flagged[2] : row.id,
          "aria-label": `${kind.title}: ${row.id}${flagged ? `, ${flagged[2]}` : ""}`, on: { click: () => viewer.open(shown, row, filter) } }, small);
      }));
    });
    return entry;
  });
  return section("suspicious", "Look twice", "no errors by themselves, and each kind has innocent cases",
    cards.length ? el("div", { class: "kinds" }, cards) : null,
    clean.length ? el("p", { class: "status" }, `Nothing found of: ${clean.map((kind) => kind.title.toLowerCase()).join("; ")}.`) : null);
}

function origin(doc) {
  const about = doc.about;
  const flat = (value) => (value === null || typeof value !== "object" ? String(value) : JSON.stringify(value));
  const facts = [["schema version", about.schema_version], ["generator", about.generator], ["licence", about.licence], ["image root", about.image_root],
    ["fingerprint", about.fingerprint], ...Object.entries(about.options || {}).map(([name, value]) => [`option ${name}`, value]),
    ["inputs", doc.build.inputs.length ? doc.build.inputs.join(", ") : null],
    ...Object.entries(doc.statistics.further_columns).map(([name, of]) => [`column ${name}`, `${of.type}; ${number(of.elements)} on ${plural(of.rows, "image")}`])]
    .filter(([, value]) => value !== null && value !== undefined);
  return section("origin", "Origin", "where the manifest comes from, and with which options",
    el("div", { class: "chart" }, el("dl", { class: "facts" }, facts.map(([name, value]) => [el("dt", null, said(name)), el("dd", null, said(flat(value)))]))));
}

const kindTitles = (doc) => {
  for (const kind of doc.suspicious) KIND_TITLES[kind.kind] = kind.title;
  return Object.fromEntries(doc.suspicious.filter((kind) => kind.number).map((kind) => [kind.kind, `${kind.title} (${short(kind.number)})`]));
};
