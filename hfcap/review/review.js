"use strict";
const at = id => document.getElementById(id);
let items = [], shown = [], current = null;
const drafts = new Map();

const kinds = {
  all: item => true,
  flagged: item => item.review !== "" && !item.accepted,
  missing: item => item.text === "",
  open: item => !item.accepted,
};

function stateOf(item) {
  if (drafts.has(item.number)) return "not saved";
  if (item.accepted) return "accepted";
  if (item.text === "") return "without caption";
  return item.review ? "marked for review" : "";
}

function noteDraft() {
  if (current === null) return;
  const text = at("text").value;
  if (text === items[current].text) drafts.delete(current); else drafts.set(current, text);
  at("state").textContent = stateOf(items[current]);
  label(current);
}

function label(number) {
  const entry = at("list").querySelector(`[data-number="${number}"]`);
  if (!entry) return;
  const state = stateOf(items[number]);
  entry.querySelector("small").textContent = state || items[number].name;
  entry.setAttribute("aria-label", items[number].name + (state ? ", " + state : ""));
}

function show(number) {
  current = number;
  const none = number === null;
  at("empty").hidden = !none;
  document.querySelector("main").hidden = none;
  for (const id of ["previous", "next", "accept", "save"]) at(id).disabled = none;
  at("place").textContent = none ? "" : `${shown.indexOf(number) + 1} of ${shown.length}`;
  if (none) return;
  const item = items[number];
  at("image").src = `image/${number}`;
  at("image").alt = item.text || item.name;
  at("name").textContent = item.name;
  at("why").textContent = item.accepted ? "" : item.review;
  at("text").value = drafts.has(number) ? drafts.get(number) : item.text;
  at("text").disabled = at("accept").disabled = at("save").disabled = item.problem !== "";
  at("error").textContent = item.problem;
  at("state").textContent = stateOf(item);
  at("accept").disabled = at("accept").disabled || (item.text === "" && !drafts.has(number));
  at("previous").disabled = shown.indexOf(number) <= 0;
  at("next").disabled = shown.indexOf(number) >= shown.length - 1;
  for (const entry of at("list").querySelectorAll("button"))
    entry.setAttribute("aria-current", String(Number(entry.dataset.number) === number));
}

function choose() {
  shown = items.filter(kinds[at("filter").value]).map(item => item.number);
  at("list").replaceChildren(...shown.map(number => {
    const entry = document.createElement("li"), button = document.createElement("button");
    const image = document.createElement("img"), name = document.createElement("small");
    image.loading = "lazy"; image.alt = ""; image.width = image.height = 80; image.src = `small/${number}`;
    button.dataset.number = number; button.append(image, name); entry.append(button);
    button.addEventListener("click", () => { show(number); scrollTo(0, 0); });
    return entry;
  }));
  shown.forEach(label);
  show(shown.includes(current) ? current : shown.length ? shown[0] : null);
}

function go(by) {
  const place = shown.indexOf(current) + by;
  if (place >= 0 && place < shown.length) show(shown[place]);
}

async function save(goOn) {
  if (current === null || at("save").disabled) return;
  const number = current, text = at("text").value, version = items[number].version;
  at("error").textContent = "";
  let answer, value;
  try {
    answer = await fetch("save", {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({number, text, version}),
    });
    value = await answer.json();
  } catch (error) {
    at("error").textContent = "not saved: hfcap does not answer; is the command still running?";
    return;
  }
  if (answer.ok) {
    items[number] = value;
    drafts.delete(number);
  } else {
    if (value.item) { items[number] = value.item; noteDraft(); }
    at("error").textContent = `not saved: ${value.error}` + (value.item ? "; save again to replace it" : "");
    return;
  }
  label(number);
  if (current !== number) return;
  if (goOn && shown.indexOf(number) < shown.length - 1) go(1); else show(number);
}

at("filter").addEventListener("change", choose);
at("text").addEventListener("input", noteDraft);
at("previous").addEventListener("click", () => go(-1));
at("next").addEventListener("click", () => go(1));
at("save").addEventListener("click", () => save(false));
at("accept").addEventListener("click", () => save(true));
addEventListener("beforeunload", event => { if (drafts.size) event.preventDefault(); });
addEventListener("keydown", event => {
  const writing = event.target === at("text");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); save(true); return; }
  if (writing && event.key === "Escape") { at("text").blur(); return; }
  if (writing || event.target === at("filter") || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = {
    ArrowRight: () => go(1), j: () => go(1), ArrowLeft: () => go(-1), k: () => go(-1),
    a: () => { if (!at("accept").disabled) save(true); }, s: () => save(false),
    e: () => at("text").focus(),
  };
  if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
});

fetch("items").then(answer => answer.json()).then(value => {
  if (value.error) { at("error").textContent = value.error; return; }
  items = value;
  choose();
  document.body.dataset.ready = "yes";
});
