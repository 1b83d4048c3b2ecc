// The pictures of a page and what chooses among them. `find(filter, cursor)` answers with a promise
// of {rows, next, note}: the rows to add, where to go on (null at the end), and how much that is.

class Gallery {
  constructor({ find, viewer, about, extra }) {
    Object.assign(this, { find, viewer, rows: [] });
    this.filter = { text: "", source: "", split: "", granularities: new Set(GRANULARITIES), least: 0, most: 1, kind: "", ofRows: new Set() };
    this.grid = el("ul", { class: "grid" });
    this.status = el("p", { class: "status", role: "status", "aria-live": "polite" });
    this.button = el("button", { class: "button", type: "button", on: { click: () => this.more() } }, "Show more");
    this.moreRow = el("div", { class: "more" }, this.button);
    this.search = el("input", { type: "search", id: "search", placeholder: "dog, traffic light, on the left …", autocomplete: "off", spellcheck: "false",
      on: { input: () => this.later() } });
    this.selects = el("span", { class: "selects" });
    const percent = (key, label, start) => el("input", { type: "number", min: 0, max: 100, step: "any", value: start, "aria-label": label, name: key,
      on: { input: (event) => {
        const value = parseFloat(event.target.value);
        this.filter[key] = Number.isFinite(value) ? value / 100 : start / 100;
        this.later();
      } } });
    this.filters = el("form", { class: "filters", role: "search", "aria-label": "Choose pictures", on: { submit: (event) => event.preventDefault() } },
      el("label", { class: "search" }, "Text ( / )", this.search),
      el("fieldset", null, el("legend", null, "With"), el("span", { class: "inline" }, GRANULARITIES.map((name) =>
        el("label", { class: "chip" }, el("input", { type: "checkbox", name: `with-${name}`, checked: true, on: { change: (event) => {
          if (event.target.checked) this.filter.granularities.add(name);
          else this.filter.granularities.delete(name);
          this.restart();
        } } }), el("i", { class: `dot ${name}` }), NAMES[name])))),
      el("fieldset", null, el("legend", null, "Box, % of the image"), el("span", { class: "inline" },
        percent("least", "Smallest box, percent of the image", 0), "to", percent("most", "Largest box, percent of the image", 100))),
      this.selects);
    this.element = el("section", { id: "pictures", "aria-labelledby": "pictures-title" },
      el("header", null, el("h2", { id: "pictures-title" }, "Pictures"), el("p", null, about)),
      this.filters, el("div", { class: "row" }, this.status, extra), this.grid, this.moreRow);
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName) && !viewer.dialog.open) {
        event.preventDefault();
        this.search.focus();
      }
    });
  }

  // What there is to choose from, once it is known: name -> count, and kind -> title.
  offer({ sources, splits, kinds, ofRows }) {
    this.filter.ofRows = ofRows;
    const select = (key, label, values, all) => el("label", null, label,
      el("select", { name: key, on: { change: (event) => { this.filter[key] = event.target.value; this.restart(); } } },
        el("option", { value: "" }, all), Object.entries(values).map(([value, text]) => el("option", { value }, text))));
    const counted = (of) => Object.fromEntries(Object.entries(of).map(([name, count]) => [name, `${name} (${short(count)})`]));
    this.selects.replaceChildren(...[
      Object.keys(sources).length > 1 && select("source", "Source", counted(sources), "all sources"),
      Object.keys(splits).length > 1 && select("split", "Split", counted(splits), "all splits"),
      Object.keys(kinds).length > 0 && select("kind", "Suspicious", kinds, "whatever"),
    ].filter(Boolean));
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.restart(), 120);
  }

  searchFor(text) {
    this.search.value = text;
    this.restart();
    this.element.scrollIntoView();
    this.search.focus({ preventScroll: true });
  }

  restart() {
    this.filter.text = this.search.value.trim().toLowerCase();
    this.rows = [];
    this.grid.replaceChildren();
    this.cursor = undefined;
    return this.more();
  }

  // Answers to an older filter are dropped.
  async more() {
    const asked = (this.asked = Symbol("asked"));
    this.button.disabled = true;
    try {
      const { rows, next, note } = await this.find(this.filter, this.cursor, (text) => {
        if (asked === this.asked) this.status.textContent = text;
        return asked === this.asked;
      });
      if (asked !== this.asked) return;
      this.cursor = next;
      this.rows.push(...rows);
      const filter = { ...this.filter, granularities: new Set(this.filter.granularities) };
      const narrowed = filter.text || filter.kind || filter.least > 0 || filter.most < 1 || filter.granularities.size < GRANULARITIES.length;
      if (narrowed) filter.highlight = (concept) => wantedConcept(filter, concept);
      this.grid.append(...rows.map((row) => card(row, filter, (chosen) => this.viewer.open(this.rows, chosen, filter))));
      this.status.classList.remove("error");
      this.status.textContent = note(this.rows.length);
      this.moreRow.hidden = next === null || next === undefined;
    } catch (error) {
      if (asked !== this.asked) return;
      this.status.classList.add("error");
      this.status.textContent = error.message;
    } finally {
      if (asked === this.asked) this.button.disabled = false;
    }
  }
}

// Whether a row has something that a filter asks for.
function wantedRow(filter, row, kindsOfRow) {
  if (filter.source && row.source !== filter.source) return false;
  if (filter.split && row.split !== filter.split) return false;
  if (filter.kind && filter.ofRows.has(filter.kind) && !kindsOfRow(row).has(filter.kind)) return false;
  const plain = !filter.text && !filter.kind && filter.least <= 0 && filter.most >= 1 && filter.granularities.size === GRANULARITIES.length;
  if (plain) return true;
  if (filter.text && row.id.toLowerCase().includes(filter.text)) return true;
  return row.concepts.some((concept) => wantedConcept(filter, concept));
}
