// The page of `xvlm-data serve`: the same sections, over whole manifests, and questions to them.

async function ask(path, given, body) {
  const query = new URLSearchParams(Object.entries(given || {}).filter(([, value]) => value !== "" && value !== null && value !== undefined));
  const answer = await fetch(`${path}${query.size ? `?${query}` : ""}`, body ? { method: "POST", body: JSON.stringify(body) } : undefined);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error || answer.statusText);
  return found;
}

const STEP = 48;

// A filter of the gallery as the server takes it.
const parameters = (filter) => ({
  text: filter.text, source: filter.source, split: filter.split,
  with: filter.granularities.size === GRANULARITIES.length ? "" : [...filter.granularities].join(",") || ",",
  least: filter.least > 0 ? filter.least : "", most: filter.most < 1 ? filter.most : "", kind: filter.kind,
});

class Live {
  constructor(manifests, at, sql) {
    Object.assign(this, { manifests, at, sql, entry: manifests[at], viewer: new Viewer(), cache: new Map(), doc: null });
    this.path = `/api/manifests/${at}`;
    this.extra = el("div");
    this.main = el("main", { class: "wrap" });
    this.bar = el("div");
    this.build();
  }

  build() {
    const go = el("input", { type: "text", placeholder: "row or id", "aria-label": "Row number or id", size: 14, name: "place" });
    const jump = (start) => {
      this.start = start;
      this.gallery.restart();
    };
    const random = el("button", { class: "button", type: "button", on: { click: () => jump(Math.floor(Math.random() * this.entry.rows)) } }, "Anywhere");
    const form = el("form", { class: "inline", on: { submit: (event) => {
      event.preventDefault();
      this.place(go.value.trim()).then(jump).catch((error) => {
        this.gallery.status.classList.add("error");
        this.gallery.status.textContent = error.message;
      });
    } } }, go, el("button", { class: "button" }, "Go to"));
    const exported = el("button", { class: "button", type: "button", on: { click: () => this.select(parameters(this.gallery.filter)) } }, "Export what fits");
    this.gallery = new Gallery({ find: (filter, cursor, say) => this.find(filter, cursor, say), viewer: this.viewer,
      about: `all ${number(this.entry.rows)} of them`, extra: el("span", { class: "push" }, form, random, exported) });
    const choice = this.manifests.length > 1 && el("select", { "aria-label": "Manifest", name: "manifest", on: { change: (event) => {
      location.hash = `m=${event.target.value}`;
      location.reload();
    } } }, this.manifests.map((entry, i) => el("option", { value: i, selected: i === this.at }, entry.name)));
    this.choice = choice || "";
    this.parts = [this.gallery.element];
    if (this.sql) this.parts.push(this.questions());
    if (this.sql && this.manifests.length > 1) this.parts.push(this.comparison());
    this.progress = el("p", { class: "status", role: "status" }, "counting …");
    this.summary = el("section", { id: "summary", "aria-label": "Summary" }, this.progress);
    this.main.append(this.summary, ...this.parts);
    this.top = el("header", { class: "wrap top" }, el("h1", null, said(this.entry.name)), el("p", null, said(this.entry.spec)));
    this.nav = navigation(this.parts, this.choice);
    document.getElementById("app").append(this.top, this.nav, this.main, el("footer", { class: "wrap" }, "xvlm-data serve. Nothing can be changed from here; selections are downloaded as new manifests."));
    this.gallery.restart().then(() => { document.documentElement.dataset.ready = "true"; });
    this.watch();
  }

  async place(text) {
    if (/^[0-9]+$/.test(text)) {
      if (Number(text) >= this.entry.rows) throw new Error(`there are ${number(this.entry.rows)} rows, from 0 on`);
      return Number(text);
    }
    const { row } = await ask(`${this.path}/place`, { id: text });
    if (row === null) throw new Error("no row has this id");
    return row;
  }

  // Goes on asking until a page is full, the manifest is at its end, or somebody wants something else.
  async find(filter, cursor, say) {
    const rows = [];
    const given = parameters(filter);
    let from = cursor === undefined ? this.start || 0 : cursor;
    this.start = cursor === undefined ? 0 : this.start;
    if (filter.kind && filter.ofRows.has(filter.kind)) {
      const kind = this.doc.suspicious.find((one) => one.kind === filter.kind);
      const found = await ask(`${this.path}/chosen`, { rows: kind.examples.join(",") });
      return { rows: found.rows, next: null, note: (shown) => `${number(shown)} examples` };
    }
    do {
      const found = await ask(`${this.path}/rows`, { ...given, from });
      rows.push(...found.rows);
      from = found.next;
      if (from !== null && rows.length < STEP && !say(`${number(rows.length)} found in the first ${number(from)} of ${number(this.entry.rows)} rows …`)) break;
    } while (from !== null && rows.length < STEP);
    const until = from === null ? `all ${number(this.entry.rows)} rows` : `the first ${number(from)} of ${number(this.entry.rows)} rows`;
    return { rows, next: from, note: (shown) => (shown ? `${number(shown)} shown, of ${until}` : `None of ${until} fits.`) };
  }

  async row(place) {
    if (!this.cache.has(place)) this.cache.set(place, ask(`${this.path}/chosen`, { rows: place }).then((found) => found.rows[0]));
    return this.cache.get(place);
  }

  // A form, so that the browser saves the file as it comes.
  select(given) {
    const form = el("form", { method: "post", action: `${this.path}/selection`, hidden: true },
      Object.entries(given).filter(([, value]) => value !== "").map(([name, value]) => {
        const field = el("textarea", { name });
        field.value = value;
        return field;
      }));
    document.body.append(form);
    form.submit();
    form.remove();
  }

  async watch() {
    const { manifests } = await ask("/api/manifests");
    const entry = manifests[this.at];
    if (entry.problem) {
      this.progress.classList.add("error");
      this.progress.textContent = entry.problem;
      return;
    }
    if (!entry.ready) {
      this.progress.replaceChildren(`${entry.stage} `, entry.of ? el("progress", { value: entry.done, max: entry.of, "aria-label": entry.stage }) : "", entry.of ? ` ${number(entry.done)} of ${number(entry.of)} rows` : "");
      setTimeout(() => this.watch(), 500);
      return;
    }
    this.doc = await ask(`${this.path}/document`);
    const doc = this.doc;
    const kinds = kindTitles(doc);
    const ofRows = new Set(doc.suspicious.filter((kind) => kind.unit !== "concepts").map((kind) => kind.kind));
    this.gallery.offer({ sources: doc.statistics.sources, splits: doc.statistics.splits, kinds, ofRows });
    const sections = [distributions(doc), texts(doc, (words) => this.gallery.searchFor(words)), leftOut(doc),
      suspicious(doc, (row) => this.row(row), this.viewer, ofRows), origin(doc)];
    this.summary.replaceWith(summary(doc));
    this.main.append(...sections);
    const top = heading({ ...doc.about, name: this.entry.name });
    this.top.replaceWith(top);
    const nav = navigation([...this.parts, ...sections], this.choice);
    this.nav.replaceWith(nav);
    document.documentElement.dataset.counted = "true";
  }

  questions() {
    const input = el("textarea", { id: "sql-text", spellcheck: "false", "aria-label": "A SELECT" });
    input.value = "SELECT text, count(*) AS n, avg(area) AS mean_area\nFROM concepts WHERE granularity = 'object'\nGROUP BY text ORDER BY n DESC LIMIT 20";
    const status = el("p", { class: "status", role: "status" });
    const answer = el("div");
    const look = el("button", { class: "button", type: "button", hidden: true }, "Show as pictures");
    const exported = el("button", { class: "button", type: "button", hidden: true, on: { click: () => this.select({ sql: input.value }) } }, "Export these rows");
    const run = async () => {
      status.classList.remove("error");
      status.textContent = "asking …";
      look.hidden = exported.hidden = true;
      const start = performance.now();
      try {
        const found = await ask("/api/sql", null, { sql: input.value });
        const seconds = ((performance.now() - start) / 1000).toFixed(2);
        status.textContent = `${found.more ? "the first " : ""}${plural(found.rows.length, "row")} in ${seconds} s`;
        const cell = (value) => (value === null ? el("span", { class: "muted" }, "null") : typeof value === "number" ? String(Number.isInteger(value) ? value : Number(value.toPrecision(6))) : said(typeof value === "string" ? value : JSON.stringify(value)));
        answer.replaceChildren(el("div", { class: "scroll answer", tabindex: "0", role: "region", "aria-label": "Answer" }, el("table", null,
          el("thead", null, el("tr", null, found.columns.map((name, i) => el("th", { scope: "col", class: found.rows.length && typeof found.rows[0][i] === "number" ? "n" : null }, said(name))))),
          el("tbody", null, found.rows.map((row) => el("tr", null, row.map((value) => el("td", { class: typeof value === "number" ? "n" : null }, cell(value)))))))));
        const column = found.columns.indexOf("row");
        const places = column < 0 ? [] : [...new Set(found.rows.map((row) => row[column]).filter((place) => Number.isInteger(place)))].slice(0, STEP);
        look.hidden = !places.length;
        exported.hidden = column < 0 && !found.columns.includes("id");
        look.onclick = async () => {
          const { rows } = await ask(`${this.path}/chosen`, { rows: places.join(",") });
          this.viewer.open(rows, rows[0], { text: "" });
        };
      } catch (error) {
        status.classList.add("error");
        status.textContent = error.message;
        answer.replaceChildren();
      }
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
    });
    const names = this.manifests.map((entry) => `"${entry.name}"`).join(", ");
    return section("sql", "SQL", `One SELECT over images and concepts, of ${names} by schema; DuckDB answers, and nothing can be changed.`,
      el("form", { class: "sql", on: { submit: (event) => { event.preventDefault(); run(); } } }, input,
        el("div", { class: "row" }, el("button", { class: "button primary" }, "Ask (Ctrl + Enter)"), status, el("span", { class: "push" }, look, exported))), answer);
  }

  comparison() {
    const others = this.manifests.map((entry, i) => [entry, i]).filter(([, i]) => i !== this.at);
    const choice = el("select", { "aria-label": "The other manifest", name: "other" }, others.map(([entry, i]) => el("option", { value: i }, entry.name)));
    const status = el("p", { class: "status", role: "status" });
    const answer = el("div");
    const run = async () => {
      const other = Number(choice.value);
      status.textContent = "comparing …";
      status.classList.remove("error");
      try {
        const [found, ours, theirs] = await Promise.all([ask(`${this.path}/compare/${other}`), ask(`${this.path}/document`), ask(`/api/manifests/${other}/document`)]);
        status.textContent = ours && theirs ? "" : "distributions come when both are counted";
        answer.replaceChildren(this.differences(found, this.manifests[other].name, other), ours && theirs ? this.beside(ours, theirs, this.manifests[other].name) : "");
      } catch (error) {
        status.classList.add("error");
        status.textContent = error.message;
      }
    };
    return section("compare", "Compare", "with another manifest, row by row by the ids",
      el("form", { class: "row", on: { submit: (event) => { event.preventDefault(); run(); } } }, choice, el("button", { class: "button primary" }, "Compare"), status), answer);
  }

  differences(found, name, other) {
    const path = `/api/manifests/${other}`;
    const open = async (places, at) => {
      const { rows } = await ask(`${at}/chosen`, { rows: places.join(",") });
      this.viewer.open(rows, rows[0], { text: "" });
    };
    const button = (places, at, label) => (places.length ? el("button", { class: "button", type: "button", on: { click: () => open(places, at) } }, label) : "");
    const parts = Object.entries(found.parts).filter(([, count]) => count).map(([part, count]) => `${part} of ${number(count)}`).join(", ");
    const changed = found.examples.changed;
    return el("div", { class: "chart" }, table(["", "rows", ""], [
      ["in both", number(found.both), ""],
      [said(`only in ${this.entry.name}`), number(found.only_one), button(found.examples.only_one, this.path, "Look")],
      [said(`only in ${name}`), number(found.only_other), button(found.examples.only_other, path, "Look")],
      [`in both, but not alike${parts ? `: ${parts}` : ""}`, number(found.changed),
        [button(changed.map(([row]) => row), this.path, "Look here"), " ", button(changed.map(([, row]) => row), path, "Look there")]],
    ]));
  }

  beside(ours, theirs, name) {
    const figures = ours.figures.map((figure, i) => [figure.quantity, number(figure.number), number(theirs.figures[i].number)]);
    const mean = (doc, key, granularity) => { const h = doc.statistics[key][granularity]; return !h || h.mean === null ? "–" : Number(h.mean.toPrecision(3)).toString(); };
    for (const [key, words] of [["box_area", "mean area of"], ["box_aspect", "mean aspect of"], ["words", "mean words of"]]) {
      for (const granularity of key === "words" ? GRANULARITIES : ["region", "object"]) {
        figures.push([`${words} ${NAMES[granularity]}`, mean(ours, key, granularity), mean(theirs, key, granularity)]);
      }
    }
    const charts = [];
    for (const [key, title, label] of [["concepts_of", "Concepts per image", null], ["box_area", "Box area", PERCENT], ["box_aspect", "Box aspect", RATIO], ["words", "Words per text", null]]) {
      for (const granularity of GRANULARITIES) {
        const [a, b] = [ours, theirs].map((doc) => doc.statistics[key][granularity]);
        if (a && b && (a.max || b.max)) charts.push(histogram(`${title}: ${NAMES[granularity]}`, "", { [this.entry.name]: a, [name]: b }, label));
      }
    }
    return el("div", null, el("div", { class: "chart beside" }, table(["", said(this.entry.name), said(name)], figures)),
      el("div", { class: "figures beside" }, charts.filter(Boolean)));
  }
}

(async () => {
  const { manifests, sql } = await ask("/api/manifests");
  const wanted = Number(new URLSearchParams(location.hash.slice(1)).get("m") || 0);
  new Live(manifests, wanted < manifests.length ? wanted : 0, sql);
})();
