// Building the page. What comes from a manifest becomes text or an attribute value, never markup:
// nothing here parses HTML, and the page's policy forbids it too.

const SVG = "http://www.w3.org/2000/svg";

function make(node, given, children) {
  for (const [name, value] of Object.entries(given || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    } else if (name === "style") {
      for (const [property, text] of Object.entries(value)) node.style.setProperty(property, text);
    } else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const el = (tag, given, ...children) => make(document.createElement(tag), given, children);
const svg = (tag, given, ...children) => make(document.createElementNS(SVG, tag), given, children);

// Text of a manifest, which may run right to left or hold marks that would turn its surroundings.
const said = (text, given) => el("bdi", { dir: "auto", ...given }, text);

const NUMBER = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const number = (value) => NUMBER.format(value);
const short = (value) => (value < 100000 ? NUMBER.format(value) : SHORT.format(value));
const share = (value) => {
  const percent = 100 * value;
  if (percent === 0) return "0 %";
  return `${Number(percent.toPrecision(percent < 99.95 && percent >= 10 ? 3 : 2))} %`;
};
const bytes = (value) => {
  let unit = 0;
  for (; value >= 1024 && unit < 4; unit += 1) value /= 1024;
  return `${unit ? value.toFixed(1) : value} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
};
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

const GRANULARITIES = ["image", "region", "object"];
const NAMES = { image: "captions", region: "regions", object: "objects" };
const known = (granularity) => (GRANULARITIES.includes(granularity) ? granularity : "");

// `text` in pieces, with what was searched for marked.
function marked(text, wanted) {
  if (!wanted) return said(text);
  const low = text.toLowerCase();
  const pieces = [];
  let at = 0;
  // Where lower case has another length than the text, places do not fit; then nothing is marked.
  if (low.length === text.length) {
    for (let found = low.indexOf(wanted); found >= 0; found = low.indexOf(wanted, at)) {
      pieces.push(text.slice(at, found), el("mark", null, text.slice(found, found + wanted.length)));
      at = found + wanted.length;
    }
  }
  pieces.push(text.slice(at));
  return said(pieces);
}
