// What the page asks the server, and nobody else.
import { text } from "./text.js";

async function request(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers }).catch(() => { throw new Error(text("silent")); });
  if (response.status === 401) {
    const typed = prompt(text("token"));
    if (typed) {
      sessionStorage.setItem("token", typed);
      return request(path, options);
    }
  }
  if (!response.ok) throw new Error((await response.json().catch(() => ({}))).error ?? response.status);
  return response;
}

export async function models() {
  return (await request("/models")).json();
}

export async function ask(name, file) {
  const started = performance.now();
  const response = await request(`/predict/${encodeURIComponent(name)}`, { method: "POST", body: file });
  const row = await response.json();
  const run = Number(/run;dur=([\d.]+)/.exec(response.headers.get("Server-Timing"))?.[1] ?? 0);
  return { row, run: run.toFixed(1), all: (performance.now() - started).toFixed(0) };
}

// The heat of an answer's class, or of its box's, as the address of a picture to lay over the one asked about.
export async function heat(name, file, entry) {
  const query = new URLSearchParams({ class: entry.class });
  if (entry.box_xyxy) query.set("box", entry.box_xyxy.join(","));
  const response = await request(`/explain/${encodeURIComponent(name)}?${query}`, { method: "POST", body: file });
  return URL.createObjectURL(await response.blob());
}
