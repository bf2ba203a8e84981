// Elements without markup: everything that comes from the daemon or the operator becomes text, never HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, listeners (`onclick`) and children: nodes or text; null is left out. */
export function element(tag, attributes = {}, ...children) {
  return build(document.createElement(tag), attributes, children);
}

/** The same of a drawing. */
export function drawing(tag, attributes = {}, ...children) {
  return build(document.createElementNS(SVG, tag), attributes, children);
}

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Text is touched only where it differs: a reader's place, a selection and what is announced stay as they are. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function set(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value === true ? "" : value)) node.setAttribute(name, value === true ? "" : value);
}

/** The sign of a state: the shape is one of those in index.html. */
export function sign(shape) {
  const use = drawing("use", { href: `#shape-${shape}` });
  return drawing("svg", { class: "sign", viewBox: "0 0 16 16", "aria-hidden": "true" }, use);
}

/** A state as sign and word; `update` with another one. */
export function badge(kind = "badge") {
  const icon = sign("unknown");
  const word = element("span");
  const node = element("span", { class: kind }, icon, word);
  return {
    node,
    update(state) {
      set(node, "data-tone", state.tone);
      set(icon.firstChild, "href", `#shape-${state.shape}`);
      say(word, state.word);
    },
  };
}

/**
 * Children of `parent` that follow a list: each item keeps its nodes as long as its key stays, so that focus, selection and what is open stay, too.
 * `make(item)` returns `{ nodes, update(item) }`.
 */
export function following(parent, key, make) {
  let parts = new Map();
  return (items) => {
    const next = new Map();
    for (const item of items) {
      // Two of the same key would fight for one place.
      let name = key(item);
      while (next.has(name)) name += " ";
      const part = parts.get(name) ?? make(item);
      part.update(item);
      next.set(name, part);
    }
    // Before the others find their places: whoever is moved loses the focus.
    for (const [name, part] of parts) {
      if (!next.has(name)) part.nodes.forEach((node) => node.remove());
    }
    let place = parent.firstChild;
    for (const node of [...next.values()].flatMap((part) => part.nodes)) {
      if (node === place) place = place.nextSibling;
      else parent.insertBefore(node, place);
    }
    parts = next;
  };
}

/** A bar of so much of a whole, with what it means for who cannot see it. */
export function bar(label) {
  const full = drawing("rect", { class: "bar-fill", x: 0, y: 0, height: 8, width: 0, rx: 0 });
  const node = element(
    "div",
    { class: "bar", role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 },
    drawing("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, full),
  );
  return {
    node,
    update(share, tone, text) {
      const percent = Math.min(100, Math.max(0, share * 100));
      set(node, "data-tone", tone);
      set(node, "aria-valuenow", percent.toFixed(1));
      set(node, "aria-valuetext", text);
      // What is used at all can be seen.
      set(full, "width", percent > 0 ? Math.max(percent, 0.8).toFixed(2) : 0);
    },
  };
}

/** Of a young course there are places for so many values: it need not be two minutes old to be seen. */
const PLACES_MIN = 15;

/** The course of a figure as a small line; what it says is in the text beside it. */
export function sparkline() {
  const line = drawing("polyline", { class: "spark-line", points: "" });
  const area = drawing("polygon", { class: "spark-area", points: "" });
  const node = drawing(
    "svg",
    { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" },
    area,
    line,
  );
  return {
    node,
    /** `values` oldest first, of at most `places`; the newest is at the right edge. What is above `full` makes the line lower. */
    update(values, places, full = 1) {
      const top = Math.max(...values, full);
      const step = 100 / (Math.min(places, Math.max(values.length, PLACES_MIN)) - 1);
      const points = values.map((value, at) => {
        const x = 100 - (values.length - 1 - at) * step;
        return `${x.toFixed(1)},${(22.5 - (value / top) * 21).toFixed(1)}`;
      });
      set(line, "points", points.join(" "));
      const first = points.at(0)?.split(",")[0];
      set(area, "points", points.length > 1 ? `${first},24 ${points.join(" ")} 100,24` : "");
    },
  };
}
