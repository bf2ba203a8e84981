// Every text that is shown against what is behind it: the worst pairs first, as WCAG 2.2 counts them (relative luminance, 1.4.3).
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  canvas.canvas.width = canvas.canvas.height = 1;
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((part, at) => part * (a / 255) + below[at] * (1 - a / 255));
  const luminance = (parts) => {
    const [r, g, b] = parts.map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    if (!node) return [255, 255, 255];
    const own = rgba(getComputedStyle(node).backgroundColor);
    return own[3] === 255 ? own.slice(0, 3) : over(own, ground(node.parentElement));
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (texts.currentNode.data.trim() === "" || !node.checkVisibility() || node.closest(".unseen, noscript, script, option, :disabled")) continue;
    const below = ground(node);
    const text = over(rgba(getComputedStyle(node).color), below);
    const [light, dark] = [luminance(text), luminance(below)].sort((a, b) => b - a);
    found.push({ ratio: (light + 0.05) / (dark + 0.05), text: texts.currentNode.data.trim().slice(0, 40), of: node.className || node.tagName });
  }
  found.sort((a, b) => a.ratio - b.ratio);
  // Of what can be pressed or filled in, either the edge or the ground stands out (1.4.11); boxes to tick are the browser's own.
  const ratio = (one, other) => {
    const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  };
  const edges = [...document.querySelectorAll("button, select, input:not([type=checkbox])")].filter((node) => node.checkVisibility() && !node.disabled);
  const faint = edges.flatMap((node) => {
    const style = getComputedStyle(node);
    const around = ground(node.parentElement);
    // What looks like text has no edge.
    if (style.borderTopWidth === "0px" && rgba(style.backgroundColor)[3] === 0) return [];
    const best = Math.max(ratio(over(rgba(style.borderTopColor), around), around), ratio(ground(node), around));
    return best < 3 ? [{ ratio: best, text: "its edge", of: node.id || node.className || node.innerText }] : [];
  });
  return { seen: found.length, bad: [...found.filter((pair) => pair.ratio < 4.5), ...faint] };
})()
