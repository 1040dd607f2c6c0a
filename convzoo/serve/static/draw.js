// A picture with what a model says about it: boxes and their names on it, a list below it, what speaks for an answer over it.
import { heat } from "./api.js";
import { say, text } from "./text.js";

// Okabe and Ito's colours that dark letters can be read on; a class keeps its own as long as the page is open.
const COLOURS = ["#e69f00", "#56b4e9", "#f0e442", "#009e73", "#cc79a7", "#d55e00", "#9ad0a0", "#b9a3e3"];
const classes = new Map();

export function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function shape(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function colour(entry) {
  if (!classes.has(entry.class)) classes.set(entry.class, COLOURS[classes.size % COLOURS.length]);
  return classes.get(entry.class);
}

export const named = (entry) => entry.title ?? entry.class;

// Shows of names that cover each other the best one's; the others show when their answer is pointed at.
function declutter(tags) {
  const shown = [];
  for (const tag of tags) {
    const place = tag.getBoundingClientRect();
    const covers = shown.some((other) => place.left < other.right && place.right > other.left && place.top < other.bottom && place.bottom > other.top);
    tag.classList.toggle("behind", covers);
    if (!covers) shown.push(place);
  }
}

// Draws the boxes of a detector, the best last and so on top, and returns for each the nodes that belong to it.
export function drawBoxes(stage, row) {
  const svg = shape("svg", { class: "layer", viewBox: `0 0 ${row.width} ${row.height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const drawn = row.detections.map((entry) => {
    const [x1, y1, x2, y2] = entry.box_xyxy;
    const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
    const tag = element("span", { className: "tag", textContent: named(entry) });
    tag.setAttribute("aria-hidden", "true");
    tag.style.background = colour(entry);
    if (x1 > row.width / 2) tag.style.right = `${100 * (1 - Math.min(x2, row.width) / row.width)}%`;
    else tag.style.left = `${(100 * Math.max(x1, 0)) / row.width}%`;
    tag.style.top = `${(100 * Math.max(y1, 0)) / row.height}%`;
    if (y1 > row.height * 0.06) tag.style.transform = "translateY(-100%)";
    return [shape("rect", { ...place, class: "edge" }), shape("rect", { ...place, stroke: colour(entry) }), tag];
  });
  for (const [edge, line, tag] of [...drawn].reverse()) {
    svg.append(edge, line);
    stage.append(tag);
  }
  stage.querySelector("img").after(svg);
  new ResizeObserver(() => declutter(drawn.map(([, , tag]) => tag))).observe(stage);
  return drawn;
}

// Returns the list of answers; one that can be explained is a button that lays its heat over the picture.
export function listed(row, card, file, stage, key) {
  const entries = row.detections ?? row.classes;
  const nodes = row.detections ? drawBoxes(stage, row) : entries.map(() => []);
  const list = element("ol", { className: entries.length > 8 ? "long" : "" }, ...entries.map((entry, i) => {
    const line = answerLine(entry, card, Boolean(row.detections));
    const focus = (on) => {
      stage.classList.toggle("focus", on && nodes[i].length > 0);
      for (const node of nodes[i]) node.classList.toggle("on", on);
    };
    line.addEventListener("mouseenter", () => focus(true));
    line.addEventListener("mouseleave", () => focus(false));
    line.addEventListener("focusin", () => focus(true));
    line.addEventListener("focusout", () => focus(false));
    if (card.explains) line.firstChild.addEventListener("click", () => explain(line.firstChild, entry, card, file, stage, key));
    return line;
  }));
  if (entries.length > 8 && !card.explains) list.tabIndex = 0; // what scrolls must be reached by keys
  return say(list, "list", { model: card.name }, "aria-label");
}

function answerLine(entry, card, isBox) {
  const bar = element("span", { className: "bar" });
  bar.style.width = `${100 * entry.score}%`;
  const parts = [bar, element("span", { className: "name", textContent: named(entry) }), element("span", { className: "score", textContent: `${(100 * entry.score).toFixed(1)} %` })];
  if (isBox) {
    const chip = element("span", { className: "chip" });
    chip.style.background = colour(entry);
    parts.splice(1, 0, chip);
  }
  if (!card.explains) return element("li", {}, element("div", { className: "row" }, ...parts));
  const button = element("button", { type: "button" }, ...parts);
  button.setAttribute("aria-pressed", "false");
  return element("li", {}, say(button, "why", { name: named(entry) }, "title"));
}

async function explain(button, entry, card, file, stage, key) {
  const pressed = button.getAttribute("aria-pressed") === "true";
  for (const other of button.closest("ol").querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
  const old = stage.querySelector(".heat");
  if (old) URL.revokeObjectURL(old.src);
  old?.remove();
  say(key.firstChild, "whyHint");
  key.lastChild.hidden = true;
  if (pressed) return;
  button.setAttribute("aria-pressed", "true");
  try {
    const url = await heat(card.name, file, entry);
    if (button.getAttribute("aria-pressed") !== "true") return URL.revokeObjectURL(url);
    stage.querySelector("img").after(element("img", { className: "layer heat", src: url, alt: text("speaks", { name: named(entry) }) }));
    say(key.firstChild, "speaks", { name: named(entry) });
    key.lastChild.hidden = false;
  } catch (error) {
    button.setAttribute("aria-pressed", "false");
    say(document.getElementById("status"), "failed", { error: error.message });
  }
}
