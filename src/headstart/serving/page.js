"use strict";
const facts = JSON.parse(document.getElementById("facts").textContent);
const at = (id) => document.getElementById(id);
const SHOWN_AT_FIRST = 10;  // classes
let asking = null;  // the question under way; a newer one takes its place

// ---- the answer

function percent(probability) {
  // Nothing but certainty is shown as 100 %.
  const shown = Math.min(probability * 100, probability < 1 ? 99.9 : 100);
  return `${shown < 0.1 && probability > 0 ? "< 0.1" : shown.toFixed(1)} %`;
}

function row([name, probability]) {
  const line = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  const bar = document.createElement("span");
  bar.className = "bar";
  bar.style.width = `${probability * 100}%`;
  const label = document.createElement("span");
  label.className = "name";
  label.textContent = name;
  head.append(bar, label);
  const value = document.createElement("td");
  value.textContent = percent(probability);
  line.append(head, value);
  return line;
}

function show(prediction) {
  const classes = Object.entries(prediction.probabilities).sort((one, other) => other[1] - one[1]);
  at("best").textContent = prediction.class;
  at("sure").textContent = percent(prediction.probability);
  at("classes").replaceChildren(...classes.slice(0, SHOWN_AT_FIRST).map(row));
  at("all").hidden = classes.length <= SHOWN_AT_FIRST;
  at("all").textContent = `Show all ${classes.length} classes`;
  at("all").onclick = () => {
    at("classes").replaceChildren(...classes.map(row));
    at("all").hidden = true;
  };
  at("result").hidden = false;
  at("status").textContent = `${prediction.class}, ${percent(prediction.probability)}`;
  at("status").className = "unseen";  // the heading says it to those who see
}

function say(text) {
  at("status").className = "";
  at("status").textContent = text;
}

function complain(text) {
  say("");
  at("result").hidden = true;
  at("problem").textContent = text;
  at("problem").hidden = false;
}

// ---- the question

async function ask(options) {
  asking?.abort();
  const mine = (asking = new AbortController());
  at("problem").hidden = true;
  at("result").hidden = true;
  say("Classifying …");
  try {
    const response = await fetch("predict", { method: "POST", signal: mine.signal, ...options });
    const answer = await response.json();
    if (mine !== asking) return;
    if (response.ok) show(answer.predictions[0]);
    else complain(answer.detail);
  } catch (error) {
    if (mine !== asking) return;
    complain(`The server did not answer (${error.message}). Does it still run?`);
  }
}

function askForPhoto(file) {
  if (!file) return;
  URL.revokeObjectURL(at("preview").src);
  at("preview").src = URL.createObjectURL(file);
  at("preview").alt = file.name;
  at("preview").hidden = false;
  at("call").textContent = "Choose another photo";
  if (file.size > facts.limits.max_body - 1000) {
    asking?.abort();
    asking = null;
    complain(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB; expected up to ${(facts.limits.max_body / 1e6).toFixed(1)} MB.`);
    return;
  }
  const form = new FormData();
  form.append("file", file);
  ask({ body: form });
}

function askForTexts() {
  const [first, second] = [at("text").value, at("text-pair").value];
  const body = facts.takes === "pairs" ? { pairs: [[first, second]] } : { texts: [first] };
  ask({ headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
}

// ---- the form

function listenForPhotos() {
  const drop = at("drop");
  // What the browser cannot show, the server may be able to read.
  at("preview").onerror = () => { at("preview").hidden = true; };
  at("file").onchange = () => askForPhoto(at("file").files[0]);
  at("file").onclick = () => { at("file").value = ""; };  // the same photo may be chosen again
  // A photo dropped beside the field must not replace the page.
  addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    askForPhoto(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => askForPhoto(event.clipboardData.files[0]));
}

at("photos").hidden = facts.takes !== "photos";
at("texts").hidden = facts.takes === "photos";
at("second").hidden = facts.takes !== "pairs";
if (facts.takes === "photos") listenForPhotos();
if (facts.takes === "pairs") at("text-label").textContent = "First text";
at("ask").onsubmit = (event) => { event.preventDefault(); askForTexts(); };
at("ask").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit();
};

const address = new URL("predict", location.href).href;
const json = facts.takes === "pairs" ? '{"pairs": [["a text", "another"]]}' : '{"texts": ["a text"]}';
at("program").textContent = facts.takes === "photos"
  ? `curl -F file=@photo.jpg ${address}`
  : `curl --json '${json}' ${address}`;
