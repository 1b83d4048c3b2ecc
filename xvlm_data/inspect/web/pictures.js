// Pictures with their boxes: in cards, and large in a dialog where boxes and texts point to each other.

const KIND_TITLES = {};

// What is looked for: text (lower case), granularities, sizes of boxes (parts of the image), kind.
function wantedConcept(filter, concept) {
  const [granularity, box, text, attributes, kinds] = concept;
  if (known(granularity) && !filter.granularities.has(granularity)) return false;
  if (filter.text && !text.toLowerCase().includes(filter.text) &&
      !attributes.some((attribute) => attribute.toLowerCase().includes(filter.text))) return false;
  if (filter.kind && filter.kind in KIND_TITLES && !filter.ofRows.has(filter.kind) && !kinds.includes(filter.kind)) return false;
  if (filter.least > 0 || filter.most < 1) {
    if (!box || granularity === "image") return false;
    const area = box[2] * box[3];
    if (area < filter.least || area > filter.most) return false;
  }
  return true;
}

function aboutRow(row) {
  const counts = new Map();
  for (const [granularity] of row.concepts) counts.set(granularity, (counts.get(granularity) || 0) + 1);
  return GRANULARITIES.filter((name) => counts.has(name)).map((name) => [name, counts.get(name)]);
}

// A picture with boxes. `chosen(concept)` tells which boxes are drawn; `point(index or null)` is
// told which one the pointer is on.
function picture(row, chosen, point) {
  const sized = row.width > 0 && row.height > 0;
  const holder = el("span", { class: "picture" });
  let ratio = sized ? row.width / row.height : 4 / 3;
  const fit = () => {
    const room = holder.parentElement;
    if (!room) return;
    const style = getComputedStyle(room);
    const width = room.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const height = room.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
    const wide = Math.min(width, height * ratio);
    holder.style.width = `${wide}px`;
    holder.style.height = `${wide / ratio}px`;
  };
  const blank = (why) => el("span", { class: "blank" }, why || "no picture");
  if (row.image) {
    holder.append(el("img", { src: row.image, alt: "", decoding: "async", loading: "lazy",
      on: {
        error: (event) => event.target.replaceWith(blank("the picture could not be shown")),
        load: ({ target }) => {
          if (sized || !target.naturalHeight) return;
          ratio = target.naturalWidth / target.naturalHeight;
          fit();
        },
      } }));
  } else holder.append(blank(row.problem));
  const canvas = svg("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" });
  const drawn = new Map();
  const order = row.concepts.map((_, i) => i)
    .filter((i) => row.concepts[i][1] && row.concepts[i][0] !== "image" && chosen(row.concepts[i]))
    .sort((a, b) => row.concepts[b][1][2] * row.concepts[b][1][3] - row.concepts[a][1][2] * row.concepts[a][1][3]);
  for (const i of order) {
    const [granularity, [cx, cy, w, h]] = row.concepts[i];
    const place = { x: cx - w / 2, y: cy - h / 2, width: Math.max(w, 0), height: Math.max(h, 0) };
    const halo = svg("rect", { ...place, class: "halo" });
    const box = svg("rect", { ...place, class: `box ${GRANULARITIES.includes(granularity) ? granularity : ""}`,
      "data-concept": i, on: { pointerenter: () => point(i), pointerleave: () => point(null) } });
    canvas.append(halo, box);
    drawn.set(i, [halo, box]);
  }
  holder.append(canvas);
  const name = el("span", { class: "name", hidden: true });
  holder.append(name);
  // Shows one concept, several, or (null) all alike; the name of the one that is pointed at.
  holder.show = (indexes, named) => {
    holder.classList.toggle("some", indexes !== null);
    for (const [i, parts] of drawn) for (const part of parts) part.classList.toggle("on", indexes !== null && indexes.includes(i));
    name.hidden = named === null || named === undefined || !drawn.has(named);
    if (name.hidden) return;
    const [, [cx, cy, w, h], text, attributes] = row.concepts[named];
    name.replaceChildren(said([...attributes, text].join(" ")));
    const above = cy - h / 2 > 0.1;
    name.style.left = `${Math.min(70, Math.max(0, 100 * (cx - w / 2)))}%`;
    name.style.top = above ? "auto" : `${Math.min(88, 100 * (cy + h / 2))}%`;
    name.style.bottom = above ? `${100 - 100 * (cy - h / 2)}%` : "auto";
  };
  holder.fit = fit;
  return holder;
}

const FIT = new ResizeObserver((entries) => entries.forEach((entry) => {
  const inside = entry.target.querySelector(":scope > .picture");
  if (inside && inside.fit) inside.fit();
}));

function framed(tag, given, inside) {
  const frame = el(tag, given, inside);
  FIT.observe(frame);
  return frame;
}

function card(row, filter, open) {
  const chosen = (concept) => wantedConcept({ ...filter, text: "" }, concept);
  const shown = picture(row, chosen, (i) => shown.show(i === null ? wanted() : [i], i));
  const matches = row.concepts.map((_, i) => i).filter((i) => wantedConcept(filter, row.concepts[i]));
  const wanted = () => (filter.text || (filter.kind && !filter.ofRows.has(filter.kind)) ? matches : null);
  shown.show(wanted(), null);
  const first = filter.text && matches.length ? row.concepts[matches[0]][2] : row.caption || (row.concepts[0] || [])[2] || "";
  const flags = new Set(row.concepts.flatMap((concept) => concept[4]));
  const about = aboutRow(row);
  const words = about.map(([name, count]) => plural(count, NAMES[name].slice(0, -1))).join(", ");
  return el("li", null, el("button", {
    class: "card", type: "button", "data-row": row.row,
    "aria-label": `${row.id}: ${words || "no concepts"}. ${first}`, on: { click: () => open(row) },
  },
  framed("span", { class: "frame" }, shown),
  el("span", { class: "words" },
    el("span", { class: "say" }, marked(first, filter.text)),
    el("span", { class: "meta" },
      about.map(([name, count]) => el("span", null, el("i", { class: `dot ${name}` }), number(count))),
      flags.size ? el("span", { class: "flag", title: [...flags].map((kind) => KIND_TITLES[kind]).join(", ") }, "▲ look twice") : null,
      said(row.id)))));
}

class Viewer {
  constructor() {
    this.title = el("h2", { id: "viewer-title" });
    this.panes = el("div", { class: "panes", tabindex: "-1" });
    this.position = el("span", { class: "muted small", role: "status" });
    const button = (text, label, act) => el("button", { class: "button", type: "button", "aria-label": label, on: { click: act } }, text);
    this.dialog = el("dialog", { class: "viewer", "aria-labelledby": "viewer-title", on: { keydown: (event) => this.key(event), click: (event) => {
      if (event.target === this.dialog) this.dialog.close();
    } } },
    el("div", { class: "inner" },
      el("div", { class: "head" }, this.title, this.position,
        el("span", { class: "push" }, button("←", "Previous picture", () => this.step(-1)), button("→", "Next picture", () => this.step(1)),
          button("Close", "Close", () => this.dialog.close()))),
      this.panes));
    document.body.append(this.dialog);
  }

  open(rows, row, filter) {
    this.rows = rows;
    this.filter = filter;
    this.at = rows.indexOf(row);
    this.draw();
    if (!this.dialog.open) this.dialog.showModal();
  }

  step(by) {
    const next = this.at + by;
    if (next < 0 || next >= this.rows.length) return;
    this.at = next;
    const inside = this.panes.contains(document.activeElement);
    this.draw();
    // What had the focus is gone; keys must still reach the dialog.
    if (inside) this.panes.focus({ preventScroll: true });
  }

  key(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) {
      event.preventDefault();
      this.step(by);
    }
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (move) {
      event.preventDefault();
      const items = [...this.panes.querySelectorAll(".concept")];
      const now = items.indexOf(document.activeElement);
      const next = items[Math.min(items.length - 1, Math.max(0, now + move))];
      if (next) next.focus();
    }
  }

  draw() {
    const row = this.rows[this.at];
    const size = row.width && row.height ? `${number(row.width)} × ${number(row.height)}` : "size unknown";
    this.title.replaceChildren(said(row.id));
    this.position.textContent = `${size} · row ${number(row.row)} · ${this.at + 1} of ${this.rows.length}`;
    const all = this.filter.highlight || (() => false);
    const items = new Map();
    const point = (i, scroll) => {
      shown.show(i === null ? first : [i], i);
      for (const [index, item] of items) item.classList.toggle("on", index === i);
      if (scroll && i !== null) items.get(i).scrollIntoView({ block: "nearest" });
    };
    const shown = picture(row, () => true, (i) => point(i, true));
    const matches = row.concepts.map((_, i) => i).filter((i) => all(row.concepts[i]));
    const first = matches.length && matches.length < row.concepts.length ? matches : null;
    const groups = [...GRANULARITIES, ...new Set(row.concepts.map((concept) => concept[0]).filter((name) => !known(name)))];
    const list = groups.map((name) => {
      const inside = row.concepts.map((concept, i) => [concept, i]).filter(([concept]) => concept[0] === name);
      if (!inside.length) return null;
      return [
        el("h3", null, el("i", { class: `dot ${known(name)}` }), `${number(inside.length)} `, known(name) ? NAMES[name] : said(name || "of no granularity")),
        el("ul", null, inside.map(([[, , text, attributes, kinds], i]) => {
          const item = el("button", {
            type: "button", class: `concept ${known(name)} ${first && !matches.includes(i) ? "off" : ""}`, "data-concept": i,
            on: { pointerenter: () => point(i), pointerleave: () => point(null), focus: () => point(i), blur: () => point(null), click: () => point(i) },
          },
          marked(text || "(no text)", this.filter.text), attributes.length ? el("span", { class: "attributes" }, " ", said(attributes.join(", "))) : null,
          kinds.length ? el("span", { class: "why" }, ` ▲ ${kinds.map((kind) => KIND_TITLES[kind]).join(", ")}`) : null);
          items.set(i, item);
          return el("li", null, item);
        })),
      ];
    });
    this.panes.replaceChildren(
      framed("div", { class: "stage" }, shown),
      el("div", { class: "list" },
        row.concepts.length ? list.flat() : el("p", { class: "muted" }, "no concepts"),
        row.hidden ? el("p", { class: "muted small" }, `and ${plural(row.hidden, "more concept")} that this page leaves out`) : null,
        row.problem ? el("p", { class: "small flag" }, said(row.problem)) : null));
    point(null);
  }
}
