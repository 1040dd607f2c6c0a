// What the page says, in each language that it speaks.
export const TEXTS = {
  en: {
    other: "中文", models: "Models", first: "Model", second: "Compared with", none: "nothing", drop: "Drop pictures here",
    paste: "or paste one from the clipboard", choose: "Choose pictures", photograph: "Take a photograph", answers: "Answers",
    private: "Pictures go to this server and nowhere else; none is kept.", asking: "Looking…", done: "Done.", nothing: "Nothing was detected.",
    time: "{run} ms in the model, {all} ms in all", why: "Show what speaks for {name}", failed: "No answer: {error}", token: "This server asks for its token:",
    sees: "{model}: {list}", picture: "The picture {name}",
  },
  zh: {
    other: "English", models: "模型", first: "模型", second: "对比模型", none: "无", drop: "把图片拖到这里",
    paste: "也可以直接粘贴剪贴板里的图片", choose: "选择图片", photograph: "拍照", answers: "结果",
    private: "图片只发送到这台服务器，不会外传，也不会保存。", asking: "正在识别…", done: "完成。", nothing: "没有检测到目标。",
    time: "模型用时 {run} 毫秒，共 {all} 毫秒", why: "显示支持“{name}”的区域", failed: "没有结果：{error}", token: "请输入服务器口令：",
    sees: "{model}：{list}", picture: "图片 {name}",
  },
};

export let language = localStorage.getItem("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export function setLanguage(name) {
  language = name;
  localStorage.setItem("language", name);
}

export function text(key, values = {}) {
  return TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}
