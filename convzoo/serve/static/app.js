// The page: pictures in, answers of one or two models beside each other. Names come from files and are only ever text.
import { ask, heat, models } from "./api.js";
import { language, setLanguage, text } from "./text.js";

const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#4a90d9", "#d55e00", "#cc79a7"];
const at = (id) => document.getElementById(id);
let cards = [];

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function shape(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function say() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = text(node.dataset.text);
  at("language").textContent = text("other");
  at("language").lang = language === "zh" ? "en" : "zh-CN";
  const none = at("second").querySelector('option[value=""]');
  if (none) none.textContent = text("none");
}

function fill() {
  for (const card of cards) {
    for (const id of ["first", "second"]) at(id).append(element("option", { value: card.name, textContent: `${card.name} · ${card.runtime}` }));
  }
  at("second").prepend(element("option", { value: "" }));
  at("second").value = cards[1]?.name ?? "";
}

function boxes(row) {
  const svg = shape("svg", { class: "layer", viewBox: `0 0 ${row.width} ${row.height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const [i, { box_xyxy: [x1, y1, x2, y2] }] of row.detections.entries()) {
    const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
    svg.append(shape("rect", { ...place, class: "edge" }), shape("rect", { ...place, stroke: COLOURS[i % COLOURS.length] }));
  }
  return svg;
}

function line(entry, card, file, stage) {
  const name = entry.title ?? entry.class;
  const parts = [element("span", { className: "name", textContent: name }), element("span", { className: "score", textContent: `${(100 * entry.score).toFixed(1)} %` })];
  const bar = element("span", { className: "bar" });
  bar.style.width = `${100 * entry.score}%`;
  if (!card.explains) return element("li", {}, element("div", { className: "row" }, bar, ...parts));
  const button = element("button", { type: "button", title: text("why", { name }) }, bar, ...parts);
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", async () => {
    const pressed = button.getAttribute("aria-pressed") === "true";
    for (const other of button.closest("ol").querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
    stage.querySelector(".heat")?.remove();
    if (pressed) return;
    button.setAttribute("aria-pressed", "true");
    try {
      const url = await heat(card.name, file, entry);
      if (button.getAttribute("aria-pressed") === "true") stage.append(element("img", { className: "layer heat", src: url, alt: "" }));
    } catch (error) {
      at("status").textContent = text("failed", { error: error.message });
    }
  });
  return element("li", {}, button);
}

async function answer(card, file, url) {
  const picture = element("img", { src: url, alt: text("picture", { name: file.name }) });
  picture.addEventListener("load", () => picture.classList.toggle("small", picture.naturalWidth < 200));
  const stage = element("div", { className: "stage" }, picture);
  const facts = element("p", { className: "facts", textContent: text("asking") });
  const about = element("div", { className: "about" }, element("h3", { textContent: card.name }), facts);
  const place = element("article", { className: "card" }, stage, about);
  const filled = ask(card.name, file).then(({ row, run, all }) => {
    facts.textContent = text("time", { run, all });
    const entries = row.detections ?? row.classes;
    if (row.detections) stage.append(boxes(row));
    about.append(entries.length ? element("ol", {}, ...entries.map((entry) => line(entry, card, file, stage))) : element("p", { textContent: text("nothing") }));
    return text("sees", { model: card.name, list: entries.slice(0, 3).map((entry) => entry.title ?? entry.class).join(", ") || text("nothing") });
  }).catch((error) => {
    facts.textContent = text("failed", { error: error.message });
    return facts.textContent;
  });
  return { place, filled };
}

async function take(files) {
  const chosen = [at("first").value, at("second").value].map((name) => cards.find((card) => card.name === name)).filter(Boolean);
  for (const file of [...files].filter((file) => file.type.startsWith("image/"))) {
    at("status").textContent = text("asking");
    const url = URL.createObjectURL(file);
    const asked = await Promise.all(chosen.map((card) => answer(card, file, url)));
    at("answers-title").after(element("div", { className: "pair" }, ...asked.map(({ place }) => place)));
    at("status").textContent = (await Promise.all(asked.map(({ filled }) => filled))).join(" — ");
  }
}

for (const [button, input] of [["choose", "files"], ["photograph", "camera"]]) {
  at(button).addEventListener("click", () => at(input).click());
  at(input).addEventListener("change", (event) => { take(event.target.files); });
}
document.addEventListener("paste", (event) => take(event.clipboardData.files));
document.addEventListener("dragover", (event) => { event.preventDefault(); at("drop").classList.add("over"); });
document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => { event.preventDefault(); at("drop").classList.remove("over"); take(event.dataTransfer.files); });
at("language").addEventListener("click", () => { setLanguage(language === "en" ? "zh" : "en"); say(); });
say();
cards = await models();
fill();
say();
