// What the page says, in each language that it speaks.
export const TEXTS = {
  en: {
    other: "中文", models: "Models", first: "Model", second: "Compared with", none: "no other model", drop: "Drop pictures here",
    paste: "or paste one from the clipboard", choose: "Choose pictures", photograph: "Take a photograph", shoot: "Take it", leave: "Cancel", answers: "Answers",
    private: "Pictures go to this server and nowhere else; none is kept.", asking: "Looking…", nothing: "Nothing was detected.",
    classes: "{network} · {count} classes · {input} · {size}", anySize: "any size",
    time: "{run} ms in the model, {all} ms in all", why: "Show what speaks for {name}", whyHint: "Choose an answer to see what speaks for it.", speaks: "What speaks for {name}", list: "Answers of {model}",
    failed: "No answer: {error}", silent: "the server is not reached", token: "This server asks for its token:", noPicture: "{name} is no picture.", remove: "Remove {name}",
    both: "Both say {name}.", differ: "They differ: {first}, or {second}.", counts: "Boxes: {first}, and {second}.", sees: "{model}: {list}", picture: "The picture {name}",
  },
  zh: {
    other: "English", models: "模型", first: "模型", second: "对比模型", none: "不对比", drop: "把图片拖到这里",
    paste: "也可以直接粘贴剪贴板里的图片", choose: "选择图片", photograph: "拍照", shoot: "拍摄", leave: "取消", answers: "结果",
    private: "图片只发送到这台服务器，不会外传，也不会保存。", asking: "正在识别…", nothing: "没有检测到目标。",
    classes: "{network} · {count} 类 · {input} · {size}", anySize: "任意尺寸",
    time: "模型用时 {run} 毫秒，共 {all} 毫秒", why: "显示支持“{name}”的区域", whyHint: "点选一个结果，查看图中支持它的区域。", speaks: "支持“{name}”的区域", list: "{model} 的结果",
    failed: "没有结果：{error}", silent: "无法连接服务器", token: "请输入服务器口令：", noPicture: "{name} 不是图片。", remove: "移除 {name}",
    both: "两个模型一致：{name}。", differ: "两个模型不一致：{first}；{second}。", counts: "分别检测到 {first} 个和 {second} 个目标。", sees: "{model}：{list}", picture: "图片 {name}",
  },
};

export let language = localStorage.getItem("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");
const values = new WeakMap();

export function setLanguage(name) {
  language = name;
  localStorage.setItem("language", name);
  sayAll();
}

export function text(key, values = {}) {
  return TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

// Writes a text into a node, or into one of its attributes, and again when the language changes.
export function say(node, key, given = {}, attribute = "") {
  node.dataset.text = key;
  values.set(node, { given, attribute });
  write(node);
  return node;
}

export function sayAll() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.querySelectorAll("[data-text]").forEach(write);
}

function write(node) {
  const { given, attribute } = values.get(node) ?? {};
  if (attribute) node.setAttribute(attribute, text(node.dataset.text, given));
  else node.textContent = text(node.dataset.text, given);
}
