// What makes a page usable with other than eyes and a mouse, as far as a program can say: each place that breaks a rule, with the rule (WCAG 2.2).
(() => {
  const broken = [];
  const note = (rule, node) => broken.push(`${rule}: ${node.outerHTML.slice(0, 160)}`);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const shown = (selector) => all(selector).filter((node) => node.checkVisibility() && !node.closest("[aria-hidden=true]"));
  // 3.1.1, 2.4.2
  if (!document.documentElement.lang) note("the language is said", document.documentElement);
  if (document.title.trim() === "") note("there is a title", document.documentElement);
  // 4.1.1 of WCAG 2.1, and what refers to something finds it.
  const ids = new Set();
  for (const node of all("[id]")) {
    if (ids.has(node.id)) note("an id is one element's", node);
    ids.add(node.id);
  }
  for (const name of ["aria-labelledby", "aria-describedby", "aria-controls", "for"]) {
    for (const node of all(`[${name}]`)) {
      if (!node.getAttribute(name).split(" ").every((id) => ids.has(id))) note(`${name} refers to something`, node);
    }
  }
  // 1.3.1: one place for what is the page's own, headings in steps, lists of items, tables with heads.
  if (shown("main").length !== 1) note("there is one main part", document.body);
  let level = 0;
  for (const head of shown("h1, h2, h3, h4, h5, h6")) {
    const next = Number(head.tagName[1]);
    if (next > level + 1) note("no level of headings is left out", head);
    if (head.textContent.trim() === "") note("a heading says something", head);
    level = next;
  }
  if (shown("h1").length !== 1) note("there is one heading of the first level", document.body);
  for (const list of shown("ul, ol")) {
    if ([...list.children].some((child) => child.tagName !== "LI")) note("a list has items only", list);
  }
  for (const list of shown("dl")) {
    const parts = [...list.querySelectorAll("dt, dd")];
    if (parts[0]?.tagName !== "DT" || parts.at(-1)?.tagName !== "DD") note("terms have what is said of them", list);
  }
  for (const table of shown("table")) {
    const heads = [...table.querySelectorAll("thead th")];
    if (heads.length === 0 || heads.some((head) => head.scope !== "col" || head.textContent.trim() === "")) note("columns have heads", table);
    for (const row of table.querySelectorAll("tbody tr")) {
      const columns = [...row.children].reduce((sum, cell) => sum + cell.colSpan, 0);
      if (columns !== heads.length) note("a row has every column", row);
    }
  }
  // 1.1.1
  for (const image of all("svg, img")) {
    const named = image.closest("[aria-hidden=true]") || image.getAttribute("aria-label") || image.getAttribute("alt") !== null;
    if (!named) note("an image is named or left out", image);
  }
  // 2.4.3: in the order of the document, and nothing that is left out of what is read can be reached.
  for (const node of all("[tabindex]")) {
    if (node.tabIndex > 0) note("nobody pushes in", node);
  }
  for (const node of all("[aria-hidden=true] :is(a, button, input, select), [aria-hidden=true]:is(a, button, input, select)")) note("what is hidden cannot be reached", node);
  // 3.3.2, 4.1.2
  for (const field of shown("input, select, textarea")) {
    if (field.labels.length === 0 && !field.getAttribute("aria-label")) note("a field has a label", field);
  }
  for (const meter of shown("[role=meter]")) {
    const [now, least, most] = ["valuenow", "valuemin", "valuemax"].map((name) => Number.parseFloat(meter.getAttribute(`aria-${name}`)));
    if (!(least <= now && now <= most) || !meter.getAttribute("aria-valuetext")) note("a meter says how much", meter);
  }
  for (const node of shown("[aria-expanded]")) {
    if (node.tagName !== "BUTTON") note("what opens is a button", node);
  }
  if (all("th[aria-sort]").length > 1) note("a table is sorted by one column", document.body);
  // 2.1.1: what has a listener is something that keys reach. Ours are on elements that are made for it.
  for (const node of all("[onclick], a:not([href])")) note("what is clicked is a button or a link", node);
  return { rules: ids.size, broken };
})()
