// What the page does by itself: curves are read off, cells open their pictures, pictures are enlarged, numbers renewed.
const first = (node, selector) => node.querySelector(selector);

function text(value, unit) {
  if (value === undefined) return "-";
  if (unit === "%") return `${Number(value.toFixed(2))} %`;
  if (value !== 0 && Math.abs(value) < 1000 && !Number.isInteger(value)) return String(Number(value.toPrecision(4)));
  return Math.round(value).toLocaleString("en-US");
}

// The value of a line at x: of its last point that is not beyond it.
function valueAt(points, x) {
  let low = 0, high = points.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= x) low = middle + 1; else high = middle;
  }
  return low ? points[low - 1][1] : undefined;
}

function startChart(figure) {
  const input = first(figure, "input"), plot = first(figure, ".plot"), cursor = first(figure, ".cursor");
  if (!input) return;
  const chart = JSON.parse(first(figure, "script").textContent);
  const places = [...new Set(chart.series.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
  const values = [...figure.querySelectorAll(".legend b")], at = first(figure, ".at b");
  input.max = places.length - 1;
  input.value = places.length - 1;
  const show = (visible) => {
    const x = places[Number(input.value)];
    const shown = chart.series.map((line) => text(valueAt(line.points, x), chart.unit));
    at.textContent = text(x, "");
    values.forEach((node, i) => { node.textContent = shown[i]; });
    input.setAttribute("aria-valuetext", `${chart.label} ${text(x, "")}: ${chart.series.map((line, i) => `${line.name} ${shown[i]}`).join(", ")}`);
    cursor.style.left = `${100 * (x - chart.x[0]) / (chart.x[1] - chart.x[0])}%`;
    cursor.hidden = !visible;
  };
  const near = (event) => {
    const area = plot.getBoundingClientRect();
    const x = chart.x[0] + (event.clientX - area.left) / area.width * (chart.x[1] - chart.x[0]);
    let best = 0;
    places.forEach((place, i) => { if (Math.abs(place - x) < Math.abs(places[best] - x)) best = i; });
    input.value = best;
    show(true);
  };
  plot.addEventListener("pointermove", near);
  plot.addEventListener("pointerdown", near);
  plot.addEventListener("pointerleave", () => { if (document.activeElement !== input) { input.value = places.length - 1; show(false); } });
  input.addEventListener("input", () => show(true));
  input.addEventListener("blur", () => { input.value = places.length - 1; show(false); });
  show(false);
}

function startSection(root) {
  root.querySelectorAll(".chart").forEach(startChart);
}

// One listener for all that is pressed, also for what is renewed later.
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.gallery) openGallery(button);
  else if (button.classList.contains("open")) enlarge(button);
  else if (button.classList.contains("copy")) copy(button);
});

const hint = first(document, ".gallery .hint");

function openGallery(button) {
  const section = button.closest("section"), place = first(section, ".gallery");
  const isOpen = button.getAttribute("aria-expanded") === "true";
  section.querySelectorAll("[data-gallery]").forEach((other) => other.setAttribute("aria-expanded", "false"));
  place.replaceChildren(...(isOpen ? [hint.cloneNode(true)] : []));
  if (isOpen) return;
  button.setAttribute("aria-expanded", "true");
  place.append(document.getElementById(button.dataset.gallery).content.cloneNode(true));
  place.scrollIntoView({ block: "nearest" });
}

function enlarge(button) {
  const dialog = first(document, "dialog"), text = document.createElement("p");
  const stage = first(button, ".stage").cloneNode(true), picture = first(stage, "img");
  stage.style.setProperty("--ratio", picture.getAttribute("width") / picture.getAttribute("height"));
  text.textContent = picture.alt;
  first(dialog, ".enlarged").replaceChildren(stage, text);
  dialog.showModal();
}

async function copy(button) {
  const command = first(button.parentElement, "pre");
  try {
    await navigator.clipboard.writeText(command.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(command);
    button.textContent = "Selected";
  }
}

document.addEventListener("click", (event) => { if (event.target.matches("dialog")) event.target.close(); });
startSection(document);

// --- while it is served
let version = null;

async function renew() {
  const live = first(document, ".live");
  try {
    const now = await (await fetch("version")).text();
    live.textContent = "live";
    live.classList.remove("gone");
    if (version !== null && now !== version) await replaceNews();
    version = now;
  } catch {
    live.textContent = "no answer";
    live.classList.add("gone");
  }
}

// Take over what is new; what somebody reads with the keyboard, or has opened, is left until they are done.
async function replaceNews() {
  const news = new DOMParser().parseFromString(await (await fetch("")).text(), "text/html");
  for (const selector of ["header > .state", "#numbers", "#curves .charts", "main > article", "main > section[id]:not(#numbers):not(#curves)"]) {
    const fresh = [...news.querySelectorAll(selector)];
    document.querySelectorAll(selector).forEach((old, i) => {
      const same = fresh[i] && old.dataset.text === fresh[i].textContent;
      if (!fresh[i] || same || old.contains(document.activeElement) || old.querySelector("[aria-expanded=true]")) return;
      fresh[i].dataset.text = fresh[i].textContent;
      old.replaceWith(fresh[i]);
      startSection(fresh[i]);
    });
  }
  document.title = news.title;
}

if ("live" in document.body.dataset) {
  renew();
  setInterval(renew, 2000);
}
