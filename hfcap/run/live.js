"use strict";
const at = id => document.getElementById(id);
let asked = false;

function cells(kind, texts) {
  const row = document.createElement("tr");
  for (const text of texts) {
    const cell = document.createElement(kind);
    cell.textContent = text;
    cell.dir = "auto";
    row.append(cell);
  }
  return row;
}

function show(state) {
  at("lines").replaceChildren(...state.lines.map(line => {
    const paragraph = document.createElement("p");
    paragraph.textContent = line;
    return paragraph;
  }));
  at("progress").value = state.total ? state.step / state.total : 0;
  at("stop").disabled = !state.can_stop || asked;
  at("stop").textContent = asked && state.can_stop ? "Stopping after this update" : "Stop training";
  // Drawn by hfcap itself; its texts are escaped there.
  at("plots").innerHTML = state.plots.join("");
  const samples = state.samples;
  at("samples").replaceChildren(...samples.length ? [
    cells("th", ["update", ...samples[0].captions.map(one => one.image_id)]),
    ...samples.map(row => cells("td", [row.step, ...row.captions.map(one => one.caption)])),
  ] : []);
}

async function look() {
  try {
    const answer = await fetch("state"), state = await answer.json();
    if (answer.ok) show(state);
    at("error").textContent = answer.ok ? "" : state.error;
    document.body.dataset.ready = "yes";
  } catch (error) {
    at("error").textContent = "hfcap does not answer; is the command still running?";
  }
  setTimeout(look, 2000);
}

at("stop").addEventListener("click", async () => {
  if (!confirm("Stop after this update? A checkpoint is written, and the same command goes on there.")) return;
  const answer = await fetch("stop", {method: "POST", headers: {"Content-Type": "application/json"}, body: "{}"});
  asked = answer.ok;
  at("stop").disabled = answer.ok;
  if (!answer.ok) at("error").textContent = (await answer.json()).error;
});

look();
