// Body of a function whose first argument is a CSS selector; returns sentences about what is wrong with the layout.
const root = document.querySelector(arguments[0]);
const problems = [];
const short = (text) => JSON.stringify(text.trim().replace(/\s+/g, " ").slice(0, 40));
const width = document.documentElement.clientWidth;
const SLACK = 1.5; // CSS pixels that rounding may cost

if (document.documentElement.scrollWidth > width + 1)
  problems.push(`the page is ${document.documentElement.scrollWidth} px wide in a window of ${width} px`);

// An element that is there for screen readers only, or not at all.
const hidden = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const style = getComputedStyle(e);
    if (style.display === "none" || style.visibility !== "visible" || +style.opacity === 0) return true;
    if (style.clipPath !== "none" && e.clientWidth <= 1) return true;
    if (style.clip !== "auto" && e.clientWidth <= 1) return true;
    if (e.tagName === "DETAILS" && !e.open && !element.closest("summary")) return true;
  }
  return false;
};

const corners = (element, node) => {
  if (element instanceof SVGGraphicsElement) { // rotated text fills less than its bounding rectangle
    const box = element.getBBox(), to = element.getScreenCTM();
    const at = (x, y) => { const p = new DOMPoint(x, y).matrixTransform(to); return [p.x, p.y]; };
    return [[at(box.x, box.y), at(box.x + box.width, box.y), at(box.x + box.width, box.y + box.height),
             at(box.x, box.y + box.height)]];
  }
  const range = document.createRange();
  range.selectNodeContents(node);
  return [...range.getClientRects()].filter((r) => r.width > 0.5 && r.height > 0.5)
    .map((r) => [[r.left, r.top], [r.right, r.top], [r.right, r.bottom], [r.left, r.bottom]]);
};
const bounds = (quad) => ({
  left: Math.min(...quad.map((p) => p[0])), right: Math.max(...quad.map((p) => p[0])),
  top: Math.min(...quad.map((p) => p[1])), bottom: Math.max(...quad.map((p) => p[1])),
});

const texts = [];
const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const element = node.parentElement;
  if (!node.data.trim() || element.closest("script, style, option, textarea, title, noscript, template")) continue;
  if (hidden(element)) continue;
  for (const quad of corners(element, node)) texts.push({ node, element, quad, box: bounds(quad) });
}

for (const { node, element, box } of texts) {
  let scrolls = false;
  for (let e = element; e && e !== document.documentElement; e = e.parentElement) {
    const style = getComputedStyle(e), inner = e.getBoundingClientRect();
    if (style.display === "inline" && !(e instanceof SVGSVGElement)) continue;
    if (/auto|scroll/.test(style.overflowX) && e.scrollWidth > e.clientWidth) scrolls = true;
    const clips = e instanceof SVGElement ? e instanceof SVGSVGElement && style.overflow !== "visible"
      : /hidden|clip/.test(style.overflowX + style.overflowY);
    if (clips && !scrolls && (box.left < inner.left - SLACK || box.right > inner.right + SLACK ||
        box.top < inner.top - 3 || box.bottom > inner.bottom + 3)) {
      problems.push(`${short(node.data)} is cut by its ${e.tagName.toLowerCase()}${e.id ? "#" + e.id : ""}`);
      break;
    }
  }
  if (!scrolls && (box.right > width + SLACK || box.left < -SLACK))
    problems.push(`${short(node.data)} reaches ${Math.round(Math.max(box.right - width, -box.left))} px out of the page`);
}
// Choices and fields show their own text, which no text node has.
for (const field of root.querySelectorAll("select, input:not([type=checkbox]):not([type=radio]):not([type=range])")) {
  if (hidden(field)) continue;
  if (field.scrollWidth > field.clientWidth + 1) problems.push(`what stands in field ${field.name || field.id} is cut`);
  const box = field.getBoundingClientRect();
  if (box.right > width + SLACK) problems.push(`field ${field.name || field.id} reaches out of the page`);
}

// Do two convex shapes share more than a hair? (separating axes)
const overlap = (a, b) => {
  let least = Infinity;
  for (const shape of [a, b])
    for (let i = 0; i < 2; i++) {
      const [x, y] = [shape[i + 1][1] - shape[i][1], shape[i][0] - shape[i + 1][0]];
      const length = Math.hypot(x, y) || 1;
      const on = (quad) => quad.map((p) => (p[0] * x + p[1] * y) / length);
      const [p, q] = [on(a), on(b)];
      least = Math.min(least, Math.min(Math.max(...p), Math.max(...q)) - Math.max(Math.min(...p), Math.min(...q)));
      if (least <= 0) return 0;
    }
  return least;
};
const floats = (element) => {
  for (let e = element; e; e = e.parentElement)
    if (/fixed|sticky/.test(getComputedStyle(e).position)) return e;
  return null;
};
texts.forEach((one) => { one.floats = floats(one.element); });
texts.sort((a, b) => a.box.top - b.box.top);
for (let i = 0; i < texts.length; i++)
  for (let j = i + 1; j < texts.length && texts[j].box.top < texts[i].box.bottom; j++) {
    const [a, b] = [texts[i], texts[j]];
    if (a.node === b.node || a.floats !== b.floats || a.element.contains(b.element) && a.element !== b.element &&
        a.element instanceof SVGElement) continue;
    if (b.element.contains(a.element) && a.element !== b.element && b.element instanceof SVGElement) continue;
    // A line's box is taller than its letters.
    const allowed = 0.3 * Math.min(a.box.bottom - a.box.top, b.box.bottom - b.box.top);
    if (a.box.right - b.box.left > SLACK && b.box.right - a.box.left > SLACK && overlap(a.quad, b.quad) > Math.max(allowed, 2))
      problems.push(`${short(a.node.data)} and ${short(b.node.data)} lie over each other`);
  }
return [...new Set(problems)];
