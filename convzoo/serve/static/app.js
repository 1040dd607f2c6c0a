// The page: pictures in, answers of one or two models beside each other. Names come from files and are only ever text.
import { ask, models } from "./api.js";
import { photograph } from "./camera.js";
import { element, listed, named } from "./draw.js";
import { language, say, sayAll, setLanguage, text } from "./text.js";

const at = (id) => document.getElementById(id);
let cards = [];

function fill() {
  for (const card of cards) {
    for (const id of ["first", "second"]) at(id).append(element("option", { value: card.name, textContent: `${card.name} · ${card.runtime}` }));
  }
  at("second").prepend(say(element("option", { value: "" }), "none"));
  at("second").value = cards[1]?.name ?? "";
  for (const id of ["first", "second"]) at(id).addEventListener("change", about);
  about();
}

function about() {
  for (const id of ["first", "second"]) {
    const card = cards.find(({ name }) => name === at(id).value);
    const input = card?.input_hw?.toReversed().join("×") ?? text("anySize");
    const size = card?.size_bytes ? `${(card.size_bytes / 1e6).toFixed(1)} MB` : "";
    at(`${id}-about`).textContent = card ? text("classes", { network: card.network, count: card.classes, input, size }) : "";
  }
}

// The place of one model's answer to a picture, and the answer once it has come.
function answer(card, file, url) {
  const picture = say(element("img", { src: url }), "picture", { name: file.name }, "alt");
  const stage = element("div", { className: "stage" }, picture);
  picture.addEventListener("load", () => {
    picture.classList.toggle("small", picture.naturalWidth < 200);
    stage.style.maxWidth = `calc(70vh * ${picture.naturalWidth / picture.naturalHeight})`; // a tall one is seen whole
  });
  const facts = say(element("p", { className: "facts" }), "asking");
  const below = element("div", { className: "about" }, element("h4", { textContent: card.name }), facts);
  const place = element("article", { className: "card" }, element("div", { className: "frame" }, stage), below);
  const row = ask(card.name, file).then(({ row, run, all }) => {
    say(facts, "time", { run, all });
    const key = element("p", { className: "key" }, say(element("span"), "whyHint"), element("i", { hidden: true }));
    const list = listed(row, card, file, stage, key);
    if (list.childElementCount && card.explains) below.append(key);
    below.append(list.childElementCount ? list : say(element("p"), "nothing"));
    return row;
  }).catch((error) => {
    facts.classList.add("error");
    say(facts, "failed", { error: error.message });
    return null;
  });
  return { place, row };
}

// What the answers come to, in a line: for the status, and of two models above their answers.
function summary(chosen, rows, line) {
  const lists = rows.map((row) => row?.detections ?? row?.classes ?? []);
  if (rows.length === 2 && rows[0]?.classes && rows[1]?.classes) {
    const [first, second] = lists.map(([best]) => named(best));
    if (first === second) say(line, "both", { name: first });
    else say(line, "differ", { first, second });
  } else if (rows.length === 2 && rows[0]?.detections && rows[1]?.detections) {
    say(line, "counts", { first: lists[0].length, second: lists[1].length });
  }
  const best = lists.map((list, i) => text("sees", { model: chosen[i].name, list: list.slice(0, 3).map(named).join(", ") || text("nothing") }));
  return rows.some(Boolean) ? best.join(" — ") : "";
}

async function take(files) {
  const chosen = [at("first").value, at("second").value].map((name) => cards.find((card) => card.name === name)).filter(Boolean);
  for (const file of [...files]) {
    if (!file.type.startsWith("image/")) {
      say(at("status"), "noPicture", { name: file.name });
      continue;
    }
    say(at("status"), "asking");
    const url = URL.createObjectURL(file);
    const asked = chosen.map((card) => answer(card, file, url));
    const line = element("p");
    const remove = say(element("button", { type: "button", className: "quiet", textContent: "×" }), "remove", { name: file.name }, "aria-label");
    const head = element("header", {}, element("div", {}, element("h3", { textContent: file.name }), line), remove);
    const whole = element("section", { className: "picture" }, head, element("div", { className: "pair" }, ...asked.map(({ place }) => place)));
    remove.addEventListener("click", () => forget(whole, url));
    at("answers").hidden = false;
    at("answers-title").after(whole);
    const rows = await Promise.all(asked.map(({ row }) => row));
    const status = summary(chosen, rows, line);
    delete at("status").dataset.text;
    at("status").textContent = status;
  }
}

function forget(whole, url) {
  for (const image of whole.querySelectorAll(".heat")) URL.revokeObjectURL(image.src);
  URL.revokeObjectURL(url);
  const next = (whole.nextElementSibling ?? whole.previousElementSibling)?.querySelector("header button") ?? at("choose");
  whole.remove();
  at("answers").hidden = !at("answers").querySelector(".picture");
  next.focus();
}

function switchLanguage() {
  setLanguage(language === "en" ? "zh" : "en");
  at("language").lang = language === "zh" ? "en" : "zh-CN";
  about();
}

for (const id of ["files", "camera"]) at(id).addEventListener("change", (event) => { take(event.target.files).finally(() => { event.target.value = ""; }); });
at("choose").addEventListener("click", () => at("files").click());
at("photograph").addEventListener("click", () => photograph(take));
document.addEventListener("paste", (event) => take(event.clipboardData.files));
document.addEventListener("dragover", (event) => { event.preventDefault(); at("drop").classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) at("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => { event.preventDefault(); at("drop").classList.remove("over"); take(event.dataTransfer.files); });
at("language").addEventListener("click", switchLanguage);
say(at("language"), "other").lang = language === "zh" ? "en" : "zh-CN";
sayAll();
try {
  cards = await models();
  fill();
} catch (error) {
  say(at("status"), "failed", { error: error.message });
}
