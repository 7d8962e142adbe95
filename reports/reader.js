"use strict";
const index = JSON.parse(document.getElementById("index").textContent);
const PAGE = 100;
const byId = (id) => document.getElementById(id);
const form = byId("filter"), list = byId("list"), trace = byId("trace"), status = byId("status");
const together = Number(document.body.dataset.together);
const unpacked = new Map();
let found = [], page = 0, open = null;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function textOf(place) {
  const block = Math.floor(place / together);
  if (!unpacked.has(block)) {
    const bytes = Uint8Array.from(atob(byId("block-" + block).textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    unpacked.set(block, JSON.parse(await new Response(stream).text()));
    if (unpacked.size > 20) unpacked.delete(unpacked.keys().next().value);
  }
  return unpacked.get(block)[place % together];
}

function filter() {
  const chosen = new FormData(form);
  const number = (name, none) => (chosen.get(name) === "" ? none : Number(chosen.get(name)));
  const words = chosen.get("problem").trim().toLowerCase();
  const low = number("tokens-from", 0), high = number("tokens-to", Infinity), chunks = number("chunks", 0);
  found = index.map((line, place) => [line, place]).filter(([line]) =>
    (chosen.get("arm") === "" || line[0] === chosen.get("arm")) &&
    (chosen.get("outcome") === "" || line[3] === chosen.get("outcome")) &&
    line[4] >= low && line[4] <= high && line[5] >= chunks &&
    line[1].toLowerCase().includes(words));
  const order = chosen.get("order");
  if (order === "longest") found.sort((a, b) => b[0][4] - a[0][4]);
  if (order === "shortest") found.sort((a, b) => a[0][4] - b[0][4]);
  page = 0;
  draw();
}

function draw() {
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  list.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(([line, place]) => {
    const row = element("tr");
    const name = element("button", line[1] + " · " + line[2]);
    name.type = "button";
    name.dataset.place = place;
    if (place === open) name.setAttribute("aria-current", "true");
    name.addEventListener("click", () => read(place));
    const first = element("td");
    first.append(name);
    row.append(first, element("td", line[0]), element("td", line[3], line[3]), element("td", line[4], "number"),
      element("td", line[5], "number"), element("td", line[6] ? "itself" : "cut off"));
    return row;
  }));
  status.textContent = found.length + " of " + index.length + " traces, page " + (page + 1) + " of " + pages;
  byId("previous").disabled = page === 0;
  byId("next").disabled = page + 1 >= pages;
}

async function read(place, focused = true) {
  open = place;
  const line = index[place], said = await textOf(place);
  if (open !== place) return;
  const parts = [element("h2", line[1] + " · sample " + line[2]),
    element("p", line[0] + " · " + line[4] + " thinking tokens · " + line[3], "caption"),
    element("pre", said.question, "question")];
  said.chunks.forEach(([carried, text, tokens, finish], at) => {
    const end = finish === "stop" ? "ended by the model" : "ended by its length";
    parts.push(element("h3", "chunk " + (at + 1) + " · " + tokens + " tokens · " + end, "boundary"));
    if (carried) parts.push(element("pre", carried, "carried"));
    parts.push(element("pre", text));
  });
  const verdict = said.error !== null ? "failed: " + said.error
    : (said.answer === null ? "no answer" : "answer: " + said.answer) + " · expected: " + said.expected;
  parts.push(element("p", verdict, "verdict " + line[3]));
  trace.replaceChildren(...parts);
  trace.scrollTop = 0;
  list.querySelectorAll("[aria-current]").forEach((button) => button.removeAttribute("aria-current"));
  list.querySelector('[data-place="' + place + '"]')?.setAttribute("aria-current", "true");
  if (focused) trace.focus({ preventScroll: window.innerWidth > 800 });
}

function go(step) {
  const at = found.findIndex(([, place]) => place === open);
  const next = found[at + step];
  if (next === undefined) return;
  page = Math.floor((at + step) / PAGE);
  draw();
  read(next[1]);
}

for (const arm of new Set(index.map((line) => line[0]))) byId("arm").append(element("option", arm));
[...byId("arm").options].slice(1).forEach((option) => { option.value = option.textContent; });
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
byId("previous").addEventListener("click", () => { page -= 1; draw(); });
byId("next").addEventListener("click", () => { page += 1; draw(); });
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT/.test(event.target.tagName)) return;
  if (event.key === "j") go(1);
  if (event.key === "k") go(-1);
});
filter();
if (found.length) read(found[0][1], false);
