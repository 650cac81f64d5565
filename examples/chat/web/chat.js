// The page of the chat: hears by server-sent events, speaks by POST. Only text is put in, never markup.
"use strict";

const MOST_LINES = 1000;
const AGAIN_MS = 3000;
const HUES = 5;

const $ = (id) => document.getElementById(id);
let name = decodeURIComponent(location.hash.slice(1));
let seat = "";
let again = 0;

// Puts a line in, and keeps what is read in view unless the reader has scrolled up.
function put(kind, text, who = "") {
  const lines = $("lines");
  const follow = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 40;
  const line = document.createElement("div");
  line.className = kind;
  if (who) {
    const by = document.createElement("b");
    by.textContent = who;
    line.append(by);
    line.classList.add("hue" + ([...who].reduce((hash, c) => (hash * 7 + c.codePointAt(0)) % 997, 0) % HUES));
  }
  line.append(text);
  lines.append(line);
  while (lines.children.length > MOST_LINES) lines.firstChild.remove();
  if (follow) lines.scrollTop = lines.scrollHeight;
}

// What the chat says is "NAME: text", or news: "* NAME joined".
function hear(text) {
  const parts = /^([^\s:*]+): ([^]*)$/u.exec(text);
  if (!parts) {
    const renamed = /^\* (\S+) is now (\S+)$/u.exec(text);
    if (renamed && renamed[1] === name) name = renamed[2];
    put("news", text.replace(/^\* /, ""));
  } else {
    put(parts[1] === name ? "line own" : "line", parts[2], parts[1]);
  }
}

function listen() {
  clearTimeout(again);
  const events = new EventSource("events?name=" + encodeURIComponent(name));
  events.addEventListener("seat", (event) => {
    seat = JSON.parse(event.data);
    $("state").textContent = "you are " + name;
    $("door").hidden = true;
    $("say").hidden = false;
    $("text").focus();
  });
  events.addEventListener("end", (event) => {
    put("news", JSON.parse(event.data));
    close(events);
  });
  events.onmessage = (event) => hear(JSON.parse(event.data));
  events.onerror = () => {
    close(events);
    $("state").textContent = "not connected; trying again";
    again = setTimeout(listen, AGAIN_MS);
  };
}

function close(events) {
  events.close();
  seat = "";
  $("state").textContent = "not connected";
  $("say").hidden = true;
  $("door").hidden = false;
}

async function say(text) {
  try {
    const answer = await fetch("say", { method: "POST", headers: { "X-Seat": seat }, body: text });
    if (!answer.ok) put("news", "not said: " + (await answer.text()));
  } catch (error) {
    put("news", "not said: " + error.message);
  }
}

$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  name = $("name").value.trim();
  listen();
});

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  $("text").value = "";
  if (text) say(text);
});

if (name) listen();
