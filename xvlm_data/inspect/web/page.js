// The page that opens from disk: everything is in it.

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { document: doc, rows } = data;
  const kinds = kindTitles(doc);
  const ofRows = new Set(doc.suspicious.filter((kind) => kind.unit !== "concepts").map((kind) => kind.kind));
  const byNumber = new Map(rows.map((row) => [row.row, row]));
  const kindsOfRow = new Map(rows.map((row) => [row.row, new Set()]));
  for (const kind of doc.suspicious) for (const row of kind.examples) if (kindsOfRow.has(row)) kindsOfRow.get(row).add(kind.kind);
  const viewer = new Viewer();
  const STEP = 48;
  // Without a filter the even choice comes first, and what looks suspicious after it.
  const even = new Set(data.even);
  const ordered = [...rows.filter((row) => even.has(row.row)), ...rows.filter((row) => !even.has(row.row))];
  const find = async (filter, cursor = 0) => {
    const found = ordered.filter((row) => wantedRow(filter, row, (one) => kindsOfRow.get(one.row)));
    const next = cursor + STEP < found.length ? cursor + STEP : null;
    return { rows: found.slice(cursor, cursor + STEP), next,
      note: (shown) => (found.length ? `${number(shown)} of ${number(found.length)} that fit, of ${number(rows.length)} pictures in this page` : `None of the ${number(rows.length)} pictures in this page fits. They are a sample of ${number(doc.about.rows)}; xvlm-data serve looks through all of them.`) };
  };
  const gallery = new Gallery({ find, viewer,
    about: rows.length < doc.about.rows ? `${number(data.even.length)} evenly spread over the manifest, and examples of what is worth a second look` : "all of the manifest" });
  gallery.offer({ sources: doc.statistics.sources, splits: doc.statistics.splits, kinds, ofRows });
  const sections = [gallery.element, distributions(doc), texts(doc, (words) => gallery.searchFor(words)), leftOut(doc),
    suspicious(doc, (row) => byNumber.get(row) || null, viewer, ofRows), origin(doc)];
  document.getElementById("app").append(heading(doc.about), navigation(sections),
    el("main", { class: "wrap" }, summary(doc), sections),
    el("footer", { class: "wrap" }, `Made by xvlm-data inspect ${data.version}. One file, no network: it can be sent and kept.`));
  gallery.restart();
  document.documentElement.dataset.ready = "true";
})();
